//! What the engines of losses over rows of classes share (softmax, margin, picked, …): the arguments of a call,
//! layouts, reductions, kinds, the graph. An engine gives the text of its loss of a row to [`f_rows`].

use tch::{Device, Kind, Tensor};

use super::arguments::name_of_factors;
use super::engine::{self, BLOCKS, Ends, Engine, Finish, Forward, PACK, Sum, are_aligned, is_stored, parts};
use super::launch::{Block, Kernel, Launch, THREADS, WARP};
use super::modules;
use super::source::Recipe;
use super::source::rows::Plan;
use crate::autograd::{self, Header};
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::graph::Recording;
use crate::kernels::rows::{Layout, Note, RowReduction, Rows};
use crate::kernels::tensors::{f_own, f_plain};
use crate::numeric::{is_floating, wide_kind};
use crate::{InvalidValues, LossError};

const ROWS: Kernel = Kernel { name: c"rows", types: &["RowCall"] };
const COUNT: Kernel = Kernel { name: c"count", types: &["Call"] };

/// The numbers of a row that a thread keeps in registers at most: as many as leave enough registers for all else of the
/// 128 that `BLOCKS_AT_ONCE` in rows.cu allows.
const KEPT: usize = 32;
/// The same where they are read one by one, which needs more registers for their places.
const KEPT_ONE_BY_ONE: usize = 24;
const KEPT_DOUBLE: usize = 6;
/// The number of classes is below this, so that a kernel counts them in 32 bits. Places have 64.
const CLASSES: i64 = 1 << 30;

/// An engine's loss of a row.
pub(in crate::kernels) struct RowKernel {
    /// The text with the function `row_loss` in CUDA C++, which is made of all else here; see
    /// [`around_row_loss`](super::source::rows::around_row_loss).
    pub(super) write: fn(&Recipe) -> String,
    pub(super) definitions: String,
    pub(super) formulas: Vec<Recording>,
    /// The numbers that it is given.
    pub(super) parameters: Vec<f64>,
    /// Whether there are targets without a loss.
    pub(super) partial: bool,
    /// The share of a target that is spread over all classes.
    pub(super) smoothing: f64,
    /// How many numbers of each class a thread keeps.
    pub(super) arrays: usize,
    /// How many rows of the input belong to one target.
    pub(super) views: usize,
    /// Whether `row_loss` multiplies by what a mean over the targets needs, whatever the reduction is.
    pub(super) own_mean: bool,
    /// Whether whole warps share a row and keep all of it; it takes no longer ones.
    pub(super) held_by_warps: bool,
}

impl RowKernel {
    /// One with this text and no options.
    pub(super) fn of(write: fn(&Recipe) -> String) -> Self {
        Self {
            write,
            definitions: String::new(),
            formulas: vec![],
            parameters: vec![],
            partial: true,
            smoothing: 0.0,
            arrays: 1,
            views: 1,
            own_mean: false,
            held_by_warps: false,
        }
    }
}

/// The losses of `rows`, reduced, with a graph; the `composite` of input and target, which has their second derivatives,
/// where the engine does not take the call.
pub(in crate::kernels) fn f_rows(
    kernel: impl FnOnce() -> RowKernel,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Result<Tensor, Composite>, LossError> {
    if !takes(rows)? {
        return Ok(Err(composite));
    }
    let kind = rows.input.f_kind()?;
    let engine = RowEngine::f_new(kernel(), rows, reduction)?;
    let reduce = match reduction {
        RowReduction::None => Reduce::No,
        RowReduction::Mean => Reduce::Mean,
        // What the sum is divided by is counted on the device.
        RowReduction::Sum | RowReduction::WeightedMean | RowReduction::CountedMean => Reduce::Sum(1.0),
    };
    engine::f_fused(kind, Box::new(engine), &[rows.input, rows.target], reduce, composite)
}

fn takes(rows: &Rows) -> Result<bool, LossError> {
    let (kind, target_kind) = (rows.input.f_kind()?, rows.target.f_kind()?);
    let (input, target) = (Header::of(rows.input), Header::of(rows.target));
    let is_beside = |weight: &Tensor| Header::of(weight).is_on_device_of(&input) && !weight.requires_grad();
    Ok(is_floating(kind)
        && (target_kind == Kind::Int64 || target_kind == kind)
        && input.is_numbers_of(kind)
        && target.is_numbers_of(target_kind)
        && target.is_on_device_of(&input)
        && input.elements() != 0
        && input.size()[rows.class_dim] < CLASSES
        && !rows.target.requires_grad()
        && rows.weight.is_none_or(is_beside))
}

/// A loss of rows with all that a backward pass needs besides input and target.
struct RowEngine {
    kernel: RowKernel,
    kind: Kind,
    device: Device,
    class_dim: usize,
    reduction: RowReduction,
    ignored: Option<i64>,
    /// A weight for each class, in the kind that kernels compute in.
    weights: Option<Tensor>,
    /// The sum of the weights in double precision, where smoothing needs it.
    weight_sum: Option<Tensor>,
    note: Option<Note>,
}

/// What a kernel writes and what it multiplies derivatives by: a number, a tensor of one number or of one for `each`
/// row, and what the mean is over.
#[derive(Clone, Copy, Default)]
pub(super) struct Outputs<'a> {
    pub(super) gradient: Option<&'a Tensor>,
    pub(super) losses: Option<&'a Tensor>,
    pub(super) sums: Option<&'a Tensor>,
    pub(super) counts: Option<&'a Tensor>,
    pub(super) factors: Option<&'a Tensor>,
    /// Where a target without a loss is noted.
    pub(super) note: Option<&'a Tensor>,
    pub(super) each: bool,
    pub(super) factor: f64,
}

/// What a kernel of rows is given.
pub(super) struct RowCall<'a> {
    pub(super) kind: Kind,
    pub(super) input: &'a Tensor,
    pub(super) target: &'a Tensor,
    /// In the kind that kernels compute in.
    pub(super) weights: Option<&'a Tensor>,
    /// In double precision.
    pub(super) weight_sum: Option<&'a Tensor>,
    pub(super) rows: usize,
    pub(super) classes: usize,
    pub(super) inner: usize,
    pub(super) ignored: Option<i64>,
    pub(super) smoothing: f64,
    pub(super) parameters: &'a [f64],
    pub(super) outputs: Outputs<'a>,
}

impl RowCall<'_> {
    /// Writes it as `RowCall` in rows.cu.
    pub(super) fn write(&self, block: &mut Block) {
        let Outputs { gradient, losses, sums, counts, factors, note, each, factor } = self.outputs;
        block.tensors([Some(self.input), Some(self.target), self.weights, self.weight_sum]);
        block.tensors([gradient, losses, factors, counts, sums, note]);
        block.longs([self.rows as i64, self.inner as i64, self.ignored.unwrap_or(0)]);
        block.int(self.classes as i32);
        block.flags([self.ignored.is_some(), each]);
        block.int(parts(counts));
        block.reals(self.kind, [factor, 1.0 - self.smoothing, self.smoothing / self.classes as f64]);
        block.array(self.kind, self.parameters);
    }
}

impl RowEngine {
    fn f_new(kernel: RowKernel, rows: &Rows, reduction: RowReduction) -> Result<Self, LossError> {
        let (kind, device) = (rows.input.f_kind()?, rows.input.device());
        let (mut weights, weight_sum) = f_weights(rows.weight, rows.input, kernel.smoothing)?;
        let needed = autograd::grad_enabled() && rows.input.requires_grad();
        if needed && (reduction == RowReduction::None || !is_stored(kind)) {
            // A backward pass reads the weights again, which others may have changed by then.
            weights = weights.as_ref().map(f_own).transpose()?;
        }
        let (class_dim, ignored, note) = (rows.class_dim, rows.ignore_index, rows.note.cloned());
        Ok(Self { kernel, kind, device, class_dim, reduction, ignored, weights, weight_sum, note })
    }

    fn f_layout(&self, arguments: &[&Tensor]) -> Result<Layout, LossError> {
        Layout::f_new(arguments[0], self.class_dim, arguments[1])
    }

    /// Whether a mean is over what has to be counted.
    fn counts(&self) -> bool {
        self.kernel.own_mean || self.is_counted_mean()
    }

    /// Whether the loss is the sum over what has been counted.
    fn is_counted_mean(&self) -> bool {
        matches!(self.reduction, RowReduction::WeightedMean | RowReduction::CountedMean)
    }

    /// How many targets there are.
    fn rows(&self, layout: &Layout) -> usize {
        layout.input.numel() / layout.classes / self.kernel.views
    }

    /// What the mean is over, where it is over what has to be counted. In parts: as many as a block has threads at most,
    /// since each block adds them up. An error where that could not be launched.
    fn f_counts(&self, layout: &Layout) -> Result<Result<Option<Tensor>, ()>, LossError> {
        if !self.counts() {
            return Ok(Ok(None));
        }
        let write = |recipe: &Recipe| recipe.head() + include_str!("source/count.cu");
        let launcher = modules::launcher_of(self.device, Recipe::plain(self.kind, write), &[COUNT]);
        let Some(launcher) = launcher else { return Ok(Err(())) };
        let rows = self.rows(layout);
        let parts = rows.div_ceil(THREADS as usize).clamp(1, THREADS as usize) as u32;
        let counts = Tensor::f_empty([2 * i64::from(parts)], (Kind::Double, self.device))?;
        let weights = self.weights.as_ref().filter(|_| self.reduction != RowReduction::CountedMean);
        let mut block = Block::default();
        block.tensors([Some(&layout.target), weights, Some(&counts)]);
        block.longs([rows as i64, self.ignored.unwrap_or(0)]);
        block.int(layout.classes as i32);
        block.flags([self.ignored.is_some()]);
        // SAFETY: the block has the layout of `Call` in count.cu; all tensors are on the device and of the kinds and
        // lengths that it says, and their memory is freed on the same stream, behind the kernel.
        let launched = unsafe { block.launch(&*launcher, COUNT, parts) };
        Ok(if launched { Ok(Some(counts)) } else { Err(()) })
    }

    /// The kernels for this layout, the place of a gradient and the factors of it.
    fn kernels<'a>(
        &'a self,
        layout: &'a Layout,
        gradient: Option<&Tensor>,
        factors: Option<&Tensor>,
    ) -> Option<Kernels<'a>> {
        // Shares are read in packs, as the input is.
        let target = Some(&layout.target).filter(|target| Header::of(target).is_numbers_of(self.kind));
        let aligned = are_aligned([Some(&layout.input), target, gradient].into_iter().flatten());
        let RowKernel { arrays, held_by_warps, partial, write, .. } = self.kernel;
        let least = if held_by_warps { WARP } else { 1 };
        let plan = plan([layout.classes, layout.inner], self.kind, aligned, arrays, least);
        if held_by_warps && !plan.held {
            return None;
        }
        let factor = name_of_factors(factors, self.kind);
        let common = format!("#define PARTIAL {}\ntypedef {factor} Factor;\n", u8::from(partial));
        let recipe = Recipe {
            kind: self.kind,
            parameters: self.kernel.parameters.len(),
            definitions: [&plan.definitions(), &common, &self.kernel.definitions[..]].concat(),
            formulas: self.kernel.formulas.clone(),
            write,
        };
        let launcher = modules::launcher_of(self.device, recipe, &[ROWS])?;
        Some(Kernels { call: self, layout, plan, launcher })
    }
}

impl Engine for RowEngine {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        let classes = arguments[0].size()[self.class_dim] as usize;
        arguments[0].numel() / classes / self.kernel.views
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let layout = self.f_layout(arguments)?;
        let gradient = wanted[0].then(|| f_like(&layout.input)).transpose()?;
        let Some(kernels) = self.kernels(&layout, gradient.as_ref(), None) else { return Ok(None) };
        let f_memory = |note: &Note| InvalidValues::f_memory(self.device, note.argument, &note.expected);
        let note = self.note.as_ref().map(f_memory).transpose()?;
        let counts = match sum {
            None => None,
            Some(_) => match self.f_counts(&layout)? {
                Ok(counts) => counts,
                Err(()) => return Ok(None),
            },
        };
        let of_mean = counts.as_ref().filter(|_| self.is_counted_mean());
        let f_losses = || {
            let mut size = arguments[0].size();
            size.remove(self.class_dim);
            Ok(Tensor::f_empty(&size, (self.kind, self.device))?)
        };
        let f_run = |Ends { losses, sums, scale }: Ends| {
            let (gradient, counts, note) = (gradient.as_ref(), counts.as_ref(), note.as_ref());
            Ok(kernels.run(Outputs { gradient, losses, sums, counts, note, factor: scale, ..Outputs::default() }))
        };
        let finish = Finish { counts: of_mean, partial: self.kernel.partial };
        let ended = engine::f_end(self.device, sum, (kernels.grid(), finish), f_losses, f_run)?;
        Ok(ended.map(|(loss, valid)| Forward { loss, gradients: gradient.into_iter().collect(), valid }))
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        _: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let layout = self.f_layout(arguments)?;
        let (gradient, factors) = (f_like(&layout.input)?, grad.f_contiguous()?);
        let Some(kernels) = self.kernels(&layout, Some(&gradient), Some(&factors)) else { return Ok(None) };
        let counts = if scale.is_some() { self.f_counts(&layout)? } else { Ok(None) };
        let Ok(counts) = counts else { return Ok(None) };
        let outputs = Outputs {
            gradient: Some(&gradient),
            counts: counts.as_ref(),
            factors: Some(&factors),
            each: scale.is_none(),
            factor: scale.unwrap_or(1.0),
            ..Outputs::default()
        };
        Ok(kernels.run(outputs).then_some(vec![gradient]))
    }
}

/// A new tensor of the size, kind and layout of this one.
fn f_like(tensor: &Tensor) -> Result<Tensor, LossError> {
    Ok(tensor.f_detach()?.f_empty_like()?)
}

/// How many blocks go through so many rows.
pub(super) fn grid(rows: usize, plan: Plan) -> u32 {
    rows.div_ceil(THREADS as usize / plan.threads).clamp(1, BLOCKS) as u32
}

/// How a kernel goes through rows of so many classes, which are `inner` numbers apart. `arrays` numbers of each class
/// are kept, and `least` threads share a row at least. Short rows share a warp, and long ones have a block each. Of
/// classes that lie apart, a thread goes through those of a pixel, so that the threads of a warp read numbers that lie
/// beside each other.
pub(super) fn plan([classes, inner]: [usize; 2], kind: Kind, aligned: bool, arrays: usize, least: usize) -> Plan {
    let pack = PACK / kind.elt_size_in_bytes();
    let most = if kind == Kind::Double { KEPT_DOUBLE } else { KEPT };
    let in_packs = inner == 1 && aligned && classes.is_multiple_of(pack) && pack * arrays <= most;
    let width = if in_packs { pack } else { 1 };
    let kept = if in_packs { most } else { most.min(KEPT_ONE_BY_ONE) } / arrays;
    if inner > 1 {
        let packs = classes.next_multiple_of(if classes > 2 { 4 } else { 1 });
        let held = packs <= kept;
        return Plan { threads: 1, packs: if held { packs } else { (kept / 3).max(1) }, width, held, strided: true };
    }
    let packs_of_row = classes / width;
    let of_warp = packs_of_row.next_power_of_two().clamp(least, WARP);
    for threads in [of_warp, THREADS as usize] {
        let packs = packs_of_row.div_ceil(threads);
        if packs * width <= kept {
            return Plan { threads, packs, width, held: true, strided: false };
        }
    }
    let packs = (kept / 2 / width).max(1);
    Plan { threads: THREADS as usize, packs, width, held: false, strided: false }
}

/// The kernels of a call, loaded.
struct Kernels<'a> {
    call: &'a RowEngine,
    layout: &'a Layout,
    plan: Plan,
    launcher: Box<dyn Launch>,
}

impl Kernels<'_> {
    fn grid(&self) -> u32 {
        grid(self.call.rows(self.layout), self.plan)
    }

    /// Launches the kernel over all rows. Whether that could be done.
    fn run(&self, outputs: Outputs) -> bool {
        let (call, layout) = (self.call, self.layout);
        let mut block = Block::default();
        let row_call = RowCall {
            kind: call.kind,
            input: &layout.input,
            target: &layout.target,
            weights: call.weights.as_ref(),
            weight_sum: call.weight_sum.as_ref(),
            rows: call.rows(layout),
            classes: layout.classes,
            inner: layout.inner,
            ignored: call.ignored,
            smoothing: call.kernel.smoothing,
            parameters: &call.kernel.parameters,
            outputs,
        };
        row_call.write(&mut block);
        // SAFETY: the block has the layout of `RowCall`; all tensors are on the device and of the kinds and lengths
        // that it says, and their memory is freed on the same stream, behind the kernel.
        unsafe { block.launch(&*self.launcher, ROWS, self.grid()) }
    }
}

/// The weights in the kind that kernels of this input compute in, and their sum where smoothing needs it.
pub(super) fn f_weights(
    weight: Option<&Tensor>,
    input: &Tensor,
    smoothing: f64,
) -> Result<(Option<Tensor>, Option<Tensor>), LossError> {
    let wide = wide_kind(input)?;
    let f_of_kernels = |weight: &Tensor| Ok::<_, LossError>(f_plain(&weight.f_to_kind(wide)?)?.f_contiguous()?);
    let weights = weight.map(f_of_kernels).transpose()?;
    let summed = weights.as_ref().filter(|_| smoothing != 0.0);
    let weight_sum = summed.map(|weights| weights.f_sum(Kind::Double)).transpose()?;
    Ok((weights, weight_sum))
}
