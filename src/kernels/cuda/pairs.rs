//! The engine of losses of all pairs of a batch, and of each pair with the same label; see
//! [`pairs`](crate::kernels::cpu::pairs) and [`positives`](crate::kernels::cpu::positives) for what they compute.
//!
//! A kernel computes the sums of each row, its loss, and the weights of its derivatives; a second one adds up the losses
//! and counts them; in the backward pass a third one reads the matrix again and writes the gradient.

use std::ffi::c_void;
use std::fmt::Write;

use tch::{Kind, Tensor};

use super::engine;
use super::launch::{Block, Kernel, Launch, OF_BLOCK, OF_WARP, THREADS, WARP};
use super::pair_labels::DeviceLabels;
use super::source::{Recipe, function, numbered};
use super::{is_asked, modules};
use crate::LossError;
use crate::autograd::{Backward, Header, Place, Tape};
use crate::kernels::formulas::{PairSums, PairTerms, SoftPairs};
use crate::kernels::graph::{Recording, Symbol, record, record_two};
use crate::kernels::number::{Real, choose};
use crate::kernels::pairs::{Counted, Hard, Soft};
use crate::kernels::tensors::{f_all_contiguous, f_plain};
#[cfg(feature = "metric")]
use crate::kernels::{formulas::Positives, pairs::Each};

const FINISH: Kernel = Kernel { name: c"pairs_finish", types: &["Call", "int"] };
const ROWS: Kernel = Kernel { name: c"pairs_rows", types: &["Call"] };
const WHOLE: Kernel = Kernel { name: c"pairs_whole", types: &["Call"] };
const LOSSES: Kernel = Kernel { name: c"pairs_losses", types: &["Call"] };
const GRADIENT: Kernel = Kernel { name: c"pairs_gradient", types: &["Call"] };
const POSITIVES: Kernel = Kernel { name: c"positives_of_rows", types: &["Call"] };
const WHOLE_POSITIVES: Kernel = Kernel { name: c"positives_whole", types: &["Call"] };

/// How many columns of a row a block has in the gradient, and in the sums of a row of more than [`OF_BLOCK`].
const PART: usize = 4096;
/// How many numbers a block adds up.
const TOTALS: usize = 4;
/// How many sums a row has: `ROW_SUMS` in pair_terms.cu.
const SUMS: usize = 8;

/// The formulas of a plan, as graphs of operations.
pub(crate) struct Formulas {
    /// The terms of pairs with the same label and of others, and their derivatives.
    terms: [Recording; 2],
    loss: OfSums,
}

/// What becomes of the terms.
enum OfSums {
    /// Their sums are the loss.
    Hard,
    /// A loss of each row.
    Soft { loss: Recording, needs_negatives: bool },
    /// A loss of each positive, given the negatives of its row, or of its column as well.
    #[cfg(feature = "metric")]
    Each { loss: Recording, both: bool, needs_negatives: bool },
}

/// A plan whose formulas can be recorded.
pub(crate) trait Recorded {
    /// Those for a matrix alone, or with a number `beside` each row.
    fn formulas(&self, beside: bool) -> Formulas;
}

fn terms<F: PairTerms>(terms: F) -> [Recording; 2] {
    let both = |(term, slope): (Symbol, Symbol)| vec![term, slope];
    [record::<1>(|[x]| both(terms.same(x))), record::<1>(|[x]| both(terms.other(x)))]
}

impl<F: PairTerms> Recorded for Hard<F> {
    fn formulas(&self, _: bool) -> Formulas {
        Formulas { terms: terms(self.0), loss: OfSums::Hard }
    }
}

impl<F: SoftPairs> Recorded for Soft<F> {
    fn formulas(&self, beside: bool) -> Formulas {
        let loss = record::<7>(|[a, b, c, d, e, f, own]| {
            let own = beside.then_some(own);
            let sums = PairSums { log_sum_exp: [a, b], sums: [c, d], counts: [e, f], own };
            let exists = choose(self.0.exists(&sums), Symbol::of(1.0), Symbol::of(0.0));
            let (loss, slopes) = self.0.loss(&sums);
            [loss, exists].into_iter().chain(slopes.log_sum_exp).chain(slopes.sums).chain([slopes.own]).collect()
        });
        Formulas { terms: terms(self.0), loss: OfSums::Soft { loss, needs_negatives: F::NEEDS_NEGATIVES } }
    }
}

#[cfg(feature = "metric")]
impl<F: Positives> Recorded for Each<F> {
    fn formulas(&self, _: bool) -> Formulas {
        let loss = record_two::<1, 2>(|[x], negatives| {
            let (loss, slopes) = self.0.loss(x, negatives);
            std::iter::once(loss).chain(slopes).collect()
        });
        let loss = OfSums::Each { loss, both: F::BOTH, needs_negatives: F::NEEDS_NEGATIVES };
        Formulas { terms: terms(*self), loss }
    }
}

/// The kernels of the losses.
#[derive(Clone, Copy)]
struct Losses {
    of_rows: Kernel,
    /// What ends those of long rows. With it a group has the losses of a row, else a thread.
    whole: Option<Kernel>,
}

impl OfSums {
    /// The formula of the loss, where there is one.
    fn recording(&self) -> Option<&Recording> {
        match self {
            Self::Hard => None,
            Self::Soft { loss, .. } => Some(loss),
            #[cfg(feature = "metric")]
            Self::Each { loss, .. } => Some(loss),
        }
    }

    /// The kernels of the losses.
    fn kernels(&self) -> Losses {
        match self {
            #[cfg(feature = "metric")]
            Self::Each { .. } => Losses { of_rows: POSITIVES, whole: Some(WHOLE_POSITIVES) },
            _ => Losses { of_rows: LOSSES, whole: None },
        }
    }

    /// Whether the columns of a matrix have to be its rows.
    fn is_of_square(&self) -> bool {
        #[cfg(feature = "metric")]
        if let Self::Each { both, .. } = self {
            return *both;
        }
        false
    }

    /// How many weights a row has: `WEIGHTS` in pairs.cu and positives.cu.
    fn weights(&self) -> usize {
        match self {
            Self::Hard => 0,
            Self::Soft { .. } => 7,
            #[cfg(feature = "metric")]
            Self::Each { .. } => 3,
        }
    }
}

/// Puts the loss of a matrix on the tape, as a scalar of this `kind`. A second argument has a number for each row.
/// `None` where the kernels do not take the call or cannot be had.
pub(in crate::kernels) fn f_on(
    tape: &mut Tape,
    formulas: &dyn Fn() -> Formulas,
    arguments: &[Place],
    labels: &DeviceLabels,
    counted: Counted,
    kind: Kind,
) -> Result<Option<Place>, LossError> {
    let values: Vec<&Tensor> = arguments.iter().map(|place| tape.value(*place)).collect();
    if !takes(&values, labels)? {
        return Ok(None);
    }
    let formulas = formulas();
    if formulas.loss.is_of_square() && !labels.own() {
        return Ok(None);
    }
    let pairs = Pairs::f_new(&formulas, &values, labels.clone(), counted, kind)?;
    let Some((loss, sums)) = pairs.f_loss(&values)? else { return Ok(None) };
    let pull = move |Backward { arguments, grad, needed, .. }: Backward| {
        pairs.f_gradients(arguments, &sums, &f_plain(grad)?, needed)
    };
    Ok(Some(tape.add_fused(loss, arguments, pull)))
}

fn takes(values: &[&Tensor], labels: &DeviceLabels) -> Result<bool, LossError> {
    let (matrix, kind) = (Header::of(values[0]), values[0].f_kind()?);
    let beside = |numbers: &&Tensor| {
        let header = Header::of(numbers);
        header.is_numbers_of(kind) && header.is_on_device_of(&matrix) && header.size() == &matrix.size()[..1]
    };
    let wide = matches!(kind, Kind::Float | Kind::Double);
    let taken = wide && is_asked(values[0]) && labels.are_of(&matrix) && matrix.is_numbers_of(kind);
    Ok(taken && values[1..].iter().all(beside))
}

/// A loss of pairs, and what its kernels are made of.
struct Pairs {
    recipe: Recipe,
    /// The parameters of the terms, and of the loss that is made of them.
    parameters: [Vec<f64>; 2],
    losses: Losses,
    /// How many weights a row has.
    weights: usize,
    labels: DeviceLabels,
    counted: Counted,
    shape: Shape,
    /// That of the matrix.
    kind: Kind,
    /// That of the result.
    result: Kind,
}

/// What the forward pass keeps of the sums, on the device: the weights of each row, and two scales.
struct Kept {
    weights: Tensor,
    scales: Tensor,
}

/// The tensors that a kernel is given besides the labels; none where it does not need them.
#[derive(Default)]
struct Pointers<'a> {
    matrix: Option<&'a Tensor>,
    beside: Option<&'a Tensor>,
    sums: Option<&'a Tensor>,
    room: Option<&'a Tensor>,
    totals: Option<&'a Tensor>,
    kept: Option<&'a Kept>,
    loss: Option<&'a Tensor>,
    grad: Option<&'a Tensor>,
    gradients: [Option<&'a Tensor>; 2],
}

impl Pairs {
    fn f_new(
        formulas: &Formulas,
        values: &[&Tensor],
        labels: DeviceLabels,
        counted: Counted,
        result: Kind,
    ) -> Result<Self, LossError> {
        let (kind, shape) = (values[0].f_kind()?, Shape::new(labels.size()));
        let recipe = recipe(kind, shape.group, formulas);
        let [same, other] = formulas.terms.each_ref().map(|term| &term.parameters[..]);
        let of_loss = formulas.loss.recording().map_or_else(Vec::new, |loss| loss.parameters.clone());
        let parameters = [[same, other].concat(), of_loss];
        let (losses, weights) = (formulas.loss.kernels(), formulas.loss.weights());
        Ok(Self { recipe, parameters, losses, weights, labels, counted, shape, kind, result })
    }

    /// The loss, and what the backward pass needs; `None` where the kernels cannot be had.
    fn f_loss(&self, values: &[&Tensor]) -> Result<Option<(Tensor, Kept)>, LossError> {
        let (device, shape) = (values[0].device(), self.shape);
        let Some(launcher) = self.launcher(values[0]) else { return Ok(None) };
        let f_numbers = |size: &[i64]| Tensor::f_empty(size, (Kind::Double, device));
        let kept = Kept { weights: f_numbers(&[shape.rows as i64, self.weights as i64])?, scales: f_numbers(&[2])? };
        let Losses { of_rows: losses, whole } = self.losses;
        let (shared, of_rows) = (shape.parts_of_sums(), shape.blocks_of(shape.rows));
        let of_losses = if whole.is_some() { shape.blocks(shared) } else { of_rows };
        let sums = f_numbers(&[shape.rows as i64, SUMS as i64])?;
        let is_shared = shared > 1;
        let room = is_shared.then(|| f_numbers(&[(shape.rows * shared) as i64, SUMS as i64])).transpose()?;
        let totals = f_numbers(&[i64::from(of_losses), TOTALS as i64])?;
        let loss = Tensor::f_empty([0_i64; 0], (engine::kind_of_scalar(self.result), device))?;
        let matrix = values[0].f_contiguous()?;
        let beside = values.get(1).map(|beside| beside.f_contiguous()).transpose()?;
        let mut block = self.block(&Pointers {
            matrix: Some(&matrix),
            beside: beside.as_ref(),
            sums: Some(&sums),
            room: room.as_ref(),
            totals: Some(&totals),
            kept: Some(&kept),
            loss: Some(&loss),
            ..Pointers::default()
        });
        let whole = whole.filter(|_| is_shared).map(|kernel| (kernel, of_rows, None));
        let launches = [Some((ROWS, shape.blocks(shared), None)), is_shared.then_some((WHOLE, shape.blocks(1), None))]
            .into_iter()
            .chain([Some((losses, of_losses, None)), whole, Some((FINISH, 1, Some(of_losses)))]);
        let launched =
            launches.flatten().all(|(kernel, grid, second)| launch(&*launcher, kernel, grid, &mut block, second));
        Ok(launched.then_some((loss.f_to_kind(self.result)?, kept)))
    }

    /// The gradients of the arguments that need one, given that of the loss.
    fn f_gradients(
        &self,
        values: &[&Tensor],
        kept: &Kept,
        grad: &Tensor,
        needed: &[bool],
    ) -> Result<Option<Vec<Option<Tensor>>>, LossError> {
        let Some(launcher) = self.launcher(values[0]) else { return Ok(None) };
        let arguments = f_all_contiguous(values)?;
        let mut gradients = vec![];
        for (argument, needed) in arguments.iter().zip(needed) {
            gradients.push(needed.then(|| argument.f_empty_like()).transpose()?);
        }
        let grad = grad.f_to_kind(engine::kind_of_scalar(self.result))?;
        let mut block = self.block(&Pointers {
            matrix: Some(&arguments[0]),
            kept: Some(kept),
            grad: Some(&grad),
            gradients: [gradients[0].as_ref(), gradients.get(1).and_then(Option::as_ref)],
            ..Pointers::default()
        });
        let blocks = self.shape.blocks(self.shape.parts());
        let launched = launch(&*launcher, GRADIENT, blocks, &mut block, None);
        Ok(launched.then_some(gradients))
    }

    fn launcher(&self, matrix: &Tensor) -> Option<Box<dyn Launch>> {
        let Losses { of_rows, whole } = self.losses;
        let kernels: Vec<Kernel> = [ROWS, WHOLE, of_rows, FINISH, GRADIENT].into_iter().chain(whole).collect();
        modules::launcher_of(matrix.device(), self.recipe.clone(), &kernels)
    }

    /// The parameter block: `Call` in pair_terms.cu.
    fn block(&self, pointers: &Pointers) -> Vec<u64> {
        let Pointers { matrix, beside, sums, room, totals, kept, loss, grad, gradients } = *pointers;
        let Self { labels, counted, shape, kind, parameters: [of_terms, of_loss], .. } = self;
        let mut block = Block::default();
        block.tensors([matrix]);
        labels.put_pointers(&mut block);
        let kept = kept.map(|kept| [&kept.weights, &kept.scales]);
        let kept = [0, 1].map(|position| kept.map(|kept| kept[position]));
        block.tensors([beside, sums, room, totals, kept[0], kept[1], loss, grad, gradients[0], gradients[1]]);
        labels.put_numbers(&mut block);
        block.longs([shape.part, shape.parts()].map(|number| number as i64));
        block.reals(Kind::Double, [counted.low, counted.high]);
        block.array(Kind::Double, of_loss);
        let whole = shape.columns.is_multiple_of(engine::PACK / kind.elt_size_in_bytes());
        let are_aligned = engine::are_aligned([matrix, gradients[0]].into_iter().flatten()) && labels.are_aligned();
        let wide = self.result == Kind::Double;
        block.flags([labels.own(), counted.mean, whole && are_aligned, wide]);
        block.array(*kind, of_terms);
        block.finish()
    }
}

/// Launches a kernel that has a `Call`, and a second parameter where there is one. Whether that was possible.
fn launch(launcher: &dyn Launch, kernel: Kernel, grid: u32, block: &mut [u64], mut second: Option<u32>) -> bool {
    let mut parameters: Vec<*mut c_void> = vec![block.as_mut_ptr().cast()];
    parameters.extend(second.as_mut().map(|second| std::ptr::from_mut(second).cast()));
    // SAFETY: the block has the layout of `Call` in pair_terms.cu; all tensors are contiguous, on the device and as large
    // as it says, and their memory is freed on the same stream, behind the kernels.
    unsafe { launcher.launch(kernel, grid, &mut parameters) }.is_ok()
}

/// What the kernels are made of.
fn recipe(kind: Kind, group: usize, formulas: &Formulas) -> Recipe {
    let [same, other] = &formulas.terms;
    let loss = formulas.loss.recording();
    let parameters = |formula: &Recording| formula.parameters.len();
    let flag = usize::from;
    let (each, both, needs_negatives) = match formulas.loss {
        OfSums::Hard => (false, false, false),
        OfSums::Soft { needs_negatives, .. } => (false, false, needs_negatives),
        #[cfg(feature = "metric")]
        OfSums::Each { both, needs_negatives, .. } => (true, both, needs_negatives),
    };
    let definitions = format!(
        "#define GROUP {group}\n#define SAME_PARAMETERS {}\n#define LOSS_PARAMETERS {}\n#define SOFT {}\n\
         #define EACH {}\n#define BOTH {}\n#define NEEDS_NEGATIVES {}\n",
        parameters(same),
        loss.map_or(0, parameters),
        flag(loss.is_some()),
        flag(each),
        flag(both),
        flag(needs_negatives),
    );
    let write = if each { write_positives } else { write_pairs };
    let formulas = [same, other].into_iter().chain(loss).cloned().collect();
    Recipe { kind, parameters: parameters(same) + parameters(other), definitions, formulas, write }
}

fn write_pairs(recipe: &Recipe) -> String {
    write(recipe, "row_loss") + include_str!("source/pairs.cu") + include_str!("source/pair_gradient.cu")
}

fn write_positives(recipe: &Recipe) -> String {
    write(recipe, "positive_loss") + include_str!("source/positives.cu") + include_str!("source/pair_gradient.cu")
}

/// The formulas of the terms, and of the loss under this `name`.
fn write(recipe: &Recipe, name: &str) -> String {
    let mut text = recipe.head();
    for (name, term) in ["same_term", "other_term"].iter().zip(&recipe.formulas) {
        let statements = function(term, &["x".to_owned()], "q");
        _ = write!(text, "DEVICE void {name}(Real x, const Real* p, Real* q) {{\n{statements}}}\n");
    }
    let of_loss = |loss: &Recording| function(loss, &numbered("s", loss.arguments()), "q");
    let statements = recipe.formulas.get(2).map(of_loss).unwrap_or_default();
    // There the numbers of the formula are those of double precision.
    _ = write!(
        text,
        "namespace in_double {{\ntypedef double Real;\n\
         DEVICE void {name}(const Real* s, const Real* p, Real* q) {{\n{statements}}}\n}}\n"
    );
    text + include_str!("source/pair_terms.cu")
}

/// How a matrix is shared out, by its size alone.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
    /// How many threads have a row.
    group: usize,
    /// How many columns of a row they have where it is shared.
    part: usize,
}

impl Shape {
    fn new([rows, columns]: [usize; 2]) -> Self {
        match columns > OF_WARP {
            true => Self { rows, columns, group: THREADS as usize, part: PART },
            false => Self { rows, columns, group: WARP, part: columns.max(1) },
        }
    }

    fn parts(self) -> usize {
        self.columns.div_ceil(self.part)
    }

    /// How many groups share the sums of a row. A few long rows would leave most of a GPU idle.
    fn parts_of_sums(self) -> usize {
        if self.columns > OF_BLOCK { self.parts() } else { 1 }
    }

    /// The blocks that go through all rows, each of which is shared by so many groups.
    fn blocks(self, parts: usize) -> u32 {
        self.blocks_of(self.rows * parts * self.group)
    }

    /// The blocks of so many threads, or fewer that go on.
    fn blocks_of(self, threads: usize) -> u32 {
        threads.div_ceil(THREADS as usize).clamp(1, engine::BLOCKS) as u32
    }
}
