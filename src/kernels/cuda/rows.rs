//! What the engines of losses over rows of classes share (softmax, margin, picked, …): the arguments of a call,
//! layouts, reductions, kinds, the graph. An engine gives the text of its loss of a row to [`f_rows`].

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::engine::{BLOCKS, PACK, address, f_scale, is_stored};
use super::launch::{Block, Kernel, Launch, THREADS};
use super::modules;
use super::source::rows::{Plan, WARP, rows};
use crate::LossError;
use crate::autograd::{self, Context, Header, StoredGradients};
use crate::kernels::engine::{Composite, composite_of, f_with_graph, widely};
use crate::kernels::rows::{Layout, RowReduction, Rows};
use crate::kernels::tensors::f_own;
use crate::numeric::wide_kind;

const ROWS: Kernel = Kernel { name: c"rows", types: &["RowCall"] };
const COUNT: Kernel = Kernel { name: c"count", types: &["RowCall"] };
const FINISH: Kernel =
    Kernel { name: c"finish_rows", types: &["const double*", "int", "double", "const double*", "int", "Element*"] };

/// The numbers of a row that a thread keeps in registers at most: as many as leave enough registers for all else of the
/// 128 that `BLOCKS_AT_ONCE` in rows.cu allows.
const KEPT: usize = 32;
/// The same where they are read one by one, which needs more registers for their places.
const KEPT_ONE_BY_ONE: usize = 24;
const KEPT_DOUBLE: usize = 6;
/// The number of classes is below this, so that a kernel counts them in 32 bits. Places have 64.
const CLASSES: i64 = 1 << 30;

/// An engine's loss of a row.
pub(super) struct RowKernel {
    /// The function `row_loss` in CUDA C++.
    pub(super) text: String,
    /// The numbers that it is given.
    pub(super) parameters: Vec<f64>,
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

impl Default for RowKernel {
    fn default() -> Self {
        Self {
            text: String::new(),
            parameters: vec![],
            smoothing: 0.0,
            arrays: 1,
            views: 1,
            own_mean: false,
            held_by_warps: false,
        }
    }
}

/// The losses of `rows`, reduced, with a graph. `None` where the engine does not take the call. Second derivatives are
/// those of the `composite` of input and target.
pub(super) fn f_rows<C>(
    kernel: impl FnOnce() -> RowKernel,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let composite = widely(composite_of(move |[input, target]: [&Tensor; 2]| composite(input, target)));
    Ok(f_of_composite(kernel, rows, reduction, composite)?.ok())
}

/// [`f_rows`] with the composite of input and target as an engine has it, which is handed back where the engine does
/// not take the call.
pub(super) fn f_of_composite(
    kernel: impl FnOnce() -> RowKernel,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Result<Tensor, Composite>, LossError> {
    if !takes(rows)? {
        return Ok(Err(composite));
    }
    f_loss(Call::f_new(kernel(), rows, reduction)?, rows, composite)
}

fn takes(rows: &Rows) -> Result<bool, LossError> {
    let (kind, target_kind) = (rows.input.f_kind()?, rows.target.f_kind()?);
    let (input, target) = (Header::of(rows.input), Header::of(rows.target));
    let is_beside = |weight: &Tensor| Header::of(weight).is_on_device_of(&input) && !weight.requires_grad();
    Ok(matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
        && (target_kind == Kind::Int64 || target_kind == kind)
        && input.is_numbers_of(kind)
        && target.is_numbers_of(target_kind)
        && target.is_on_device_of(&input)
        && input.elements() != 0
        && input.size()[rows.class_dim] < CLASSES
        && !rows.target.requires_grad()
        && rows.weight.is_none_or(is_beside))
}

fn f_loss(mut call: Call, rows: &Rows, composite: Composite) -> Result<Result<Tensor, Composite>, LossError> {
    let needed = autograd::grad_enabled() && rows.input.requires_grad();
    let at_once = call.reduction != RowReduction::None && is_stored(call.kind);
    let layout = Layout::f_new(rows.input, rows.class_dim, rows.target)?;
    let Some(Forward { loss, gradient, counts }) = call.f_forward(rows, &layout, needed && at_once)? else {
        return Ok(Err(composite));
    };
    if !needed {
        return Ok(Ok(loss));
    }
    if !at_once {
        // A backward pass reads the weights again, which others may have changed by then.
        call.weights = call.weights.as_ref().map(f_own).transpose()?;
    }
    let class_dim = rows.class_dim;
    let stored = at_once.then(|| StoredGradients::f_of_own_kind([gradient, None])).transpose()?;
    let fused = move |context: &Context, grad: &Tensor, _: &[bool]| {
        if let Some(stored) = &stored {
            return stored.f_scaled_by(context, grad, &f_scale).map(Some);
        }
        let [input, target] = context.saved() else { return Ok(None) };
        let layout = Layout::f_new(input, class_dim, target)?;
        let gradient = call.f_backward(&layout, grad, counts.as_ref())?;
        Ok(gradient.map(|gradient| vec![Some(gradient), None]))
    };
    f_with_graph(loss, &[rows.input, rows.target], vec![true, false], composite, Box::new(fused)).map(Ok)
}

/// A call with all that a backward pass needs besides input and target.
struct Call {
    kernel: RowKernel,
    kind: Kind,
    device: Device,
    reduction: RowReduction,
    ignored: Option<i64>,
    /// A weight for each class, in the kind that kernels compute in.
    weights: Option<Tensor>,
    /// The sum of the weights in double precision, where smoothing needs it.
    weight_sum: Option<Tensor>,
}

/// What a forward pass has computed.
struct Forward {
    loss: Tensor,
    gradient: Option<Tensor>,
    /// What the mean is over.
    counts: Option<Tensor>,
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
        let of = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), address);
        let Outputs { gradient, losses, sums, counts, factors, each, factor } = self.outputs;
        let inputs = [Some(self.input), Some(self.target), self.weights, self.weight_sum];
        inputs
            .into_iter()
            .chain([gradient, losses, factors, counts, sums])
            .for_each(|tensor| block.pointer(of(tensor)));
        block.long(self.rows as i64);
        block.long(self.inner as i64);
        block.long(self.ignored.unwrap_or(0));
        block.int(self.classes as i32);
        block.int(self.ignored.is_some().into());
        block.int(each.into());
        block.int(parts(counts));
        let options = [factor, 1.0 - self.smoothing, self.smoothing / self.classes as f64];
        // The array of parameters has one place more than there are, since C++ has no empty ones.
        let numbers = options.into_iter().chain(self.parameters.iter().copied()).chain([0.0]);
        numbers.for_each(|number| block.real(self.kind, number));
    }
}

impl Call {
    fn f_new(kernel: RowKernel, rows: &Rows, reduction: RowReduction) -> Result<Self, LossError> {
        let (weights, weight_sum) = f_weights(rows.weight, rows.input, kernel.smoothing)?;
        let (kind, device, ignored) = (rows.input.f_kind()?, rows.input.device(), rows.ignore_index);
        Ok(Self { kernel, kind, device, reduction, ignored, weights, weight_sum })
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

    /// What the sum of the losses is multiplied by, apart from what is counted.
    fn scale(&self, layout: &Layout) -> f64 {
        match self.reduction {
            RowReduction::Mean => 1.0 / self.rows(layout) as f64,
            _ => 1.0,
        }
    }

    /// The loss, and the gradient where it is `wanted`; none where the kernels cannot be had.
    fn f_forward(&self, rows: &Rows, layout: &Layout, wanted: bool) -> Result<Option<Forward>, LossError> {
        let gradient = wanted.then(|| f_like(&layout.input)).transpose()?;
        let Some(kernels) = self.kernels(layout, gradient.as_ref()) else { return Ok(None) };
        if self.reduction == RowReduction::None {
            let mut size = rows.input.size();
            size.remove(rows.class_dim);
            let loss = Tensor::f_empty(&size, (self.kind, self.device))?;
            let outputs = Outputs { losses: Some(&loss), factor: 1.0, ..Outputs::default() };
            let launched = kernels.run(ROWS, kernels.grid(), outputs);
            return Ok(launched.then_some(Forward { loss, gradient, counts: None }));
        }
        let counts = if self.counts() { kernels.f_count()? } else { None };
        if self.counts() && counts.is_none() {
            return Ok(None);
        }
        let scale = self.scale(layout);
        let sums = Tensor::f_empty([i64::from(kernels.grid())], (Kind::Double, self.device))?;
        let (gradient_place, counted) = (gradient.as_ref(), counts.as_ref());
        let outputs = Outputs {
            gradient: gradient_place,
            sums: Some(&sums),
            counts: counted,
            factor: scale,
            ..Outputs::default()
        };
        if !kernels.run(ROWS, kernels.grid(), outputs) {
            return Ok(None);
        }
        let loss = Tensor::f_empty([0_i64; 0], (self.kind, self.device))?;
        let launched = kernels.finish(&sums, scale, counted.filter(|_| self.is_counted_mean()), &loss);
        Ok(launched.then_some(Forward { loss, gradient, counts }))
    }

    /// The gradient, given that of the losses or of the reduced loss; none where the kernels cannot be had.
    fn f_backward(&self, layout: &Layout, grad: &Tensor, counts: Option<&Tensor>) -> Result<Option<Tensor>, LossError> {
        let gradient = f_like(&layout.input)?;
        let Some(kernels) = self.kernels(layout, Some(&gradient)) else { return Ok(None) };
        let outputs = Outputs {
            gradient: Some(&gradient),
            counts,
            factors: Some(&grad.f_contiguous()?),
            each: self.reduction == RowReduction::None,
            factor: self.scale(layout),
            ..Outputs::default()
        };
        Ok(kernels.run(ROWS, kernels.grid(), outputs).then_some(gradient))
    }

    /// The kernels for this layout and the place of a gradient.
    fn kernels<'a>(&'a self, layout: &'a Layout, gradient: Option<&Tensor>) -> Option<Kernels<'a>> {
        // Shares are read in packs, as the input is.
        let target = Some(&layout.target).filter(|target| Header::of(target).is_numbers_of(self.kind));
        let aligned = are_aligned([Some(&layout.input), target, gradient].into_iter().flatten());
        let RowKernel { arrays, held_by_warps, .. } = self.kernel;
        let least = if held_by_warps { WARP } else { 1 };
        let plan = plan([layout.classes, layout.inner], self.kind, aligned, arrays, least);
        if held_by_warps && !plan.held {
            return None;
        }
        let parts = [&self.kernel.text, include_str!("source/row_kernels.cu")];
        let source = rows(&parts, self.kernel.parameters.len(), self.kind, plan);
        let launcher = modules::launcher(self.device, &source, &[ROWS, COUNT, FINISH])?;
        Some(Kernels { call: self, layout, plan, launcher })
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

/// Whether kernels can read these tensors in whole packs, as far as it depends on where they begin.
pub(super) fn are_aligned<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    tensors.into_iter().all(|tensor| (address(tensor) as usize).is_multiple_of(PACK))
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
    call: &'a Call,
    layout: &'a Layout,
    plan: Plan,
    launcher: Box<dyn Launch>,
}

impl Kernels<'_> {
    fn grid(&self) -> u32 {
        grid(self.call.rows(self.layout), self.plan)
    }

    /// What the mean is over, in parts: as many as a block has threads at most, since each block adds them up. None
    /// where that could not be launched.
    fn f_count(&self) -> Result<Option<Tensor>, LossError> {
        let parts = self.call.rows(self.layout).div_ceil(THREADS as usize).clamp(1, THREADS as usize) as u32;
        let counts = Tensor::f_empty([2 * i64::from(parts)], (Kind::Double, self.call.device))?;
        let outputs = Outputs { counts: Some(&counts), ..Outputs::default() };
        Ok(self.run(COUNT, parts, outputs).then_some(counts))
    }

    /// Launches a kernel over all rows. Whether that could be done.
    fn run(&self, kernel: Kernel, grid: u32, outputs: Outputs) -> bool {
        let (call, layout) = (self.call, self.layout);
        let weights = match (kernel.name == COUNT.name, call.reduction) {
            (true, RowReduction::CountedMean) => None,
            _ => call.weights.as_ref(),
        };
        let mut block = Block::default();
        let row_call = RowCall {
            kind: call.kind,
            input: &layout.input,
            target: &layout.target,
            weights,
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
        let mut block = block.finish();
        // SAFETY: the block has the layout of `RowCall`; all tensors are on the device and of the kinds and lengths
        // that it says, and their memory is freed on the same stream, behind the kernel.
        unsafe { self.launcher.launch(kernel, grid, &mut [block.as_mut_ptr().cast()]) }.is_ok()
    }

    /// The sum of the sums of blocks, times the `scale` and over what has been counted, as the loss. Whether that could
    /// be launched.
    fn finish(&self, sums: &Tensor, scale: f64, counts: Option<&Tensor>, loss: &Tensor) -> bool {
        let (mut blocks, mut scale, mut parts) = (self.grid() as i32, scale, parts(counts));
        let (mut sums, mut loss) = (address(sums), loss.data_ptr());
        let mut counts = counts.map_or(std::ptr::null(), address);
        let parameters: &mut [*mut c_void] = &mut [
            (&raw mut sums).cast(),
            (&raw mut blocks).cast(),
            (&raw mut scale).cast(),
            (&raw mut counts).cast(),
            (&raw mut parts).cast(),
            (&raw mut loss).cast(),
        ];
        // SAFETY: the types are those of the kernel; the kernels of a stream run one after the other.
        unsafe { self.launcher.launch(FINISH, 1, parameters) }.is_ok()
    }
}

/// The weights in the kind that kernels of this input compute in, and their sum where smoothing needs it.
pub(super) fn f_weights(
    weight: Option<&Tensor>,
    input: &Tensor,
    smoothing: f64,
) -> Result<(Option<Tensor>, Option<Tensor>), LossError> {
    let wide = wide_kind(input)?;
    let weights = weight.map(|weight| weight.f_to_kind(wide)?.f_contiguous()).transpose()?;
    let summed = weights.as_ref().filter(|_| smoothing != 0.0);
    let weight_sum = summed.map(|weights| weights.f_sum(Kind::Double)).transpose()?;
    Ok((weights, weight_sum))
}

/// How many parts of two numbers each there are.
fn parts(counts: Option<&Tensor>) -> i32 {
    counts.map_or(0, |counts| (counts.numel() / 2) as i32)
}
