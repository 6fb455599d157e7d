//! The engine of losses of all pairs of a batch: contrastive, SupCon, multi-similarity, circle, N-pairs, ArcFace,
//! proxies, and the diagonals of Barlow twins and VICReg.
//!
//! Each element x of a matrix (a similarity or a distance) gives a term t(x), by one formula where its row and its
//! column have the same label and by another where they have not. The kernel `Sum` computes the sums of each row
//! ([`Sums`]). A loss is made of the terms' sums ([`Hard`]), or of the sums and soft maxima log Σ exp(t) of each
//! row ([`Soft`]).
//!
//! The gradient is divided by how many terms or rows count, which is known at the end of that pass. So the backward
//! pass reads the matrix again: the kernel `Slopes` writes (`soft` exp(t − `shift`) + `plain`) t′(x) with the
//! [`Weights`] of the loss.

use std::array::from_fn;

use tch::{Kind, Tensor};

use super::elements::{elements, f_numbers, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::{Output, f_scalar_of};
use super::pair_labels::HostLabels;
use super::simd::{self, Kernel, LANES, fold, lanes_of};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::autograd::{Backward, Gradients, Place, Tape};
use crate::kernels::backend;
use crate::kernels::formulas::{OTHER, PairSlopes, PairSums, PairTerms, SAME, SoftPairs};
use crate::kernels::number::choose;
use crate::kernels::pairs::{Counted, Hard, Soft};
use crate::kernels::tensors::f_plain;

/// The label of a column that forms no pair with the row. Labels are counted from 0.
const NO_PAIR: f64 = -1.0;

/// What kernels need to know of a plan: the terms of the pairs and which sums of them.
pub(crate) trait PairPass: Copy + Send + Sync + 'static {
    /// Whether the loss is made of log Σ exp(t) of the rows, which needs the maxima and the exponentials of the terms.
    const SOFT: bool;
    type Terms: PairTerms;

    fn terms(self) -> Self::Terms;
}

/// A plan for a matrix on the CPU. Every [`OfSums`] is one, and so is [`Each`](crate::kernels::pairs::Each).
pub(crate) trait OnTape: PairPass {
    /// Puts the loss of a matrix on the tape, as a scalar of this `kind`. A second argument has a number for each row.
    /// `None` where the loss is NaN, or the matrix is of neither single nor double precision.
    fn f_on(
        self,
        tape: &mut Tape,
        arguments: &[Place],
        labels: &HostLabels,
        counted: Counted,
        kind: Kind,
    ) -> Result<Option<Place>, LossError>;
}

/// The sums of a row's terms. The arrays have those of pairs with the same label at [`SAME`], the others at [`OTHER`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sums {
    /// The greatest terms, −∞ where there are none.
    pub(super) most: [f64; 2],
    /// Σ exp(t − `most`) over the terms t
    pub(super) exponentials: [f64; 2],
    /// Σ t over the terms t
    pub(super) sums: [f64; 2],
    /// How many they are.
    pub(super) counts: [f64; 2],
    /// A number of the row that is not in the matrix, where the engine is given one.
    pub(super) own: Option<f64>,
}

impl Sums {
    const NOTHING: Self =
        Self { most: [f64::NEG_INFINITY; 2], exponentials: [0.0; 2], sums: [0.0; 2], counts: [0.0; 2], own: None };

    /// As the formula of a row's loss takes them.
    pub(super) fn of_row(&self) -> PairSums<f64> {
        let Self { most, exponentials, sums, counts, own } = *self;
        PairSums { log_sum_exp: from_fn(|k| most[k] + exponentials[k].ln()), sums, counts, own }
    }
}

/// How the sums of the rows become a loss.
pub(crate) trait OfSums: PairPass {
    /// The loss, and what the derivatives of the terms are multiplied by.
    fn reduce(self, rows: &[Sums], counted: Counted) -> Reduced;
}

/// A loss, and the weights of each row, or one weight for all rows.
type Reduced = (f64, Vec<Weights>);

/// What the derivative of a term t is multiplied by: `soft` exp(t − `shift`) + `plain`. The arrays have the pairs with
/// the same label at `SAME`, the others at `OTHER`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Weights {
    pub(super) soft: [f64; 2],
    pub(super) shift: [f64; 2],
    pub(super) plain: [f64; 2],
    /// The derivative of the loss with respect to the row's number beside the matrix.
    pub(super) own: f64,
}

impl Weights {
    pub(super) const NOTHING: Self = Self { soft: [0.0; 2], shift: [0.0; 2], plain: [0.0; 2], own: 0.0 };
}

impl<F: SoftPairs> PairPass for Soft<F> {
    const SOFT: bool = true;
    type Terms = F;

    fn terms(self) -> F {
        self.0
    }
}

impl<F: SoftPairs> OfSums for Soft<F> {
    fn reduce(self, rows: &[Sums], counted: Counted) -> Reduced {
        let of_row = |sums: &Sums| {
            let sums = sums.of_row();
            let (loss, slopes) = self.0.loss(&sums);
            (loss, slopes, self.0.exists(&sums) && counted.counts(loss))
        };
        let losses: Vec<(f64, PairSlopes<f64>, bool)> = rows.iter().map(of_row).collect();
        let those = || losses.iter().filter(|(_, _, counts)| *counts).map(|(loss, ..)| loss);
        let lacks_negatives = F::NEEDS_NEGATIVES && rows.iter().all(|sums| sums.counts[OTHER] == 0.0);
        let scale = if lacks_negatives { 0.0 } else { counted.scale(those().count() as f64) };
        let weights = rows.iter().zip(&losses).map(|(sums, (_, slopes, counts))| {
            let factor = if *counts { scale } else { 0.0 };
            Weights {
                soft: from_fn(|k| factor * slopes.log_sum_exp[k] / sums.exponentials[k]),
                shift: sums.most,
                plain: slopes.sums.map(|slope| factor * slope),
                own: factor * slopes.own,
            }
        });
        (those().sum::<f64>() * scale, weights.collect())
    }
}

impl<F: PairTerms> PairPass for Hard<F> {
    const SOFT: bool = false;
    type Terms = F;

    fn terms(self) -> F {
        self.0
    }
}

impl<F: PairTerms> OfSums for Hard<F> {
    fn reduce(self, rows: &[Sums], counted: Counted) -> Reduced {
        let total = |part: fn(&Sums) -> [f64; 2], k| rows.iter().map(|sums| part(sums)[k]).sum::<f64>();
        let plain = from_fn(|k| counted.scale(total(|sums| sums.counts, k)));
        let loss = plain[SAME] * total(|sums| sums.sums, SAME) + plain[OTHER] * total(|sums| sums.sums, OTHER);
        (loss, vec![Weights { plain, ..Weights::NOTHING }])
    }
}

pub(in crate::kernels) fn takes(tape: &Tape, arguments: &[Place], labels: &HostLabels) -> Result<bool, LossError> {
    let matrix = tape.value(arguments[0]);
    let (own, size) = (matrix.f_kind()?, matrix.size());
    let fits =
        |argument: &Place, size: &[i64]| tape.value(*argument).size() == size && is_plain(tape.value(*argument), own);
    let fit = fits(&arguments[0], &labels.size()) && arguments[1..].iter().all(|beside| fits(beside, &size[..1]));
    Ok(backend::fused() && fit && matrix.numel() != 0)
}

impl<P: OfSums> OnTape for P {
    fn f_on(
        self,
        tape: &mut Tape,
        arguments: &[Place],
        labels: &HostLabels,
        counted: Counted,
        kind: Kind,
    ) -> Result<Option<Place>, LossError> {
        let reduce = &|sums: &[Sums]| self.reduce(sums, counted);
        match tape.value(arguments[0]).f_kind()? {
            Kind::Float => f_run(Job::<f32>::new(Box::new(self), labels, counted), reduce, tape, arguments, kind),
            Kind::Double => f_run(Job::<f64>::new(Box::new(self), labels, counted), reduce, tape, arguments, kind),
            _ => Ok(None),
        }
    }
}

fn f_run<W: Wide>(
    job: Job<W>,
    reduce: &dyn Fn(&[Sums]) -> Reduced,
    tape: &mut Tape,
    arguments: &[Place],
    kind: Kind,
) -> Result<Option<Place>, LossError> {
    let mut sums = job.f_sums(tape.value(arguments[0]))?;
    if let Some(beside) = arguments.get(1) {
        sums.iter_mut().zip(f_numbers(tape.value(*beside))?).for_each(|(sums, own)| sums.own = Some(own));
    }
    let (loss, weights) = reduce(&sums);
    if loss.is_nan() {
        return Ok(None);
    }
    let pull = move |Backward { arguments, grad, needed, .. }: Backward| -> Gradients {
        let grad = f_plain(grad)?.f_double_value(&[])?;
        let mut gradients = vec![None];
        if needed[0] {
            gradients[0] = Some(job.f_gradient(arguments[0], &weights, grad, &|_| Vec::new())?);
        }
        for needed in &needed[1..] {
            gradients.push(needed.then(|| f_of_rows::<W>(&weights, grad)).transpose()?);
        }
        Ok(gradients)
    };
    Ok(Some(tape.add(f_scalar_of(kind, loss)?, arguments, pull)))
}

/// The gradient of the rows' numbers beside the matrix.
fn f_of_rows<W: Wide>(weights: &[Weights], grad: f64) -> Result<Tensor, LossError> {
    let gradients: Vec<W> = weights.iter().map(|weights| W::from_f64(weights.own * grad)).collect();
    let output = Output::<W>::f_of_size(&[gradients.len() as i64])?;
    // SAFETY: nobody else has a part of it.
    unsafe { output.write(0..gradients.len(), &gradients) };
    Ok(output.into_tensor())
}

/// A pass without the type of its formula. It is called once for each row.
pub(super) trait AnyPass<W>: Send + Sync {
    /// The sums of a row.
    fn sums(&self, task: &Task<W>) -> Sums;

    /// Writes the gradient of the row.
    fn slopes(&self, task: &Task<W>, weights: Weights, output: &Output<W>);
}

impl<W: Wide, P: PairPass> AnyPass<W> for P {
    fn sums(&self, task: &Task<W>) -> Sums {
        simd::run(Sum { pass: *self, task })
    }

    fn slopes(&self, task: &Task<W>, weights: Weights, output: &Output<W>) {
        simd::run(Slopes { pass: *self, task, weights, output });
    }
}

/// A pass with its labels, which all threads share.
pub(super) struct Job<W> {
    pass: Box<dyn AnyPass<W>>,
    counted: Counted,
    /// Labels in the type of the matrix, so that vectors of them are compared beside its elements.
    rows: Vec<W>,
    columns: Vec<W>,
    /// Whether row i and column i are the same sample, so that they form no pair.
    own: bool,
}

impl<W: Wide> Job<W> {
    pub(super) fn new(pass: Box<dyn AnyPass<W>>, labels: &HostLabels, counted: Counted) -> Self {
        let wide = |labels: &[u32]| labels.iter().map(|label| W::from_f64(f64::from(*label))).collect();
        let (rows, columns) = (wide(&labels.rows), wide(&labels.columns));
        Self { pass, counted, rows, columns, own: labels.own }
    }

    /// The sums of each row.
    pub(super) fn f_sums(&self, matrix: &Tensor) -> Result<Vec<Sums>, LossError> {
        const NUMBERS: usize = 8;
        let matrix = matrix.f_detach()?.f_contiguous()?;
        let output = Output::<f64>::f_of_size(&[self.rows.len() as i64, NUMBERS as i64])?;
        self.each_row(&matrix, &|task| {
            let row = task.row;
            let Sums { most, exponentials, sums, counts, .. } = self.pass.sums(&task);
            let numbers: [f64; NUMBERS] = from_fn(|k| [most, exponentials, sums, counts][k / 2][k % 2]);
            // SAFETY: each row is one thread's.
            unsafe { output.write(row * NUMBERS..(row + 1) * NUMBERS, &numbers) };
        });
        let output = output.into_tensor();
        let of_row = |numbers: &[f64]| {
            let pair = |k: usize| [numbers[2 * k], numbers[2 * k + 1]];
            Sums { most: pair(0), exponentials: pair(1), sums: pair(2), counts: pair(3), own: None }
        };
        Ok(elements::<f64>(&output).chunks_exact(NUMBERS).map(of_row).collect())
    }

    /// The gradient of the matrix, given `grad`, that of the loss. `others` returns columns of a row and their
    /// gradients, which are written instead.
    pub(super) fn f_gradient(
        &self,
        matrix: &Tensor,
        weights: &[Weights],
        grad: f64,
        others: &(dyn Fn(usize) -> Vec<(usize, W)> + Sync),
    ) -> Result<Tensor, LossError> {
        let matrix = matrix.f_detach()?.f_contiguous()?;
        let output = Output::<W>::f_of_size(&matrix.size())?;
        let scaled = |numbers: [f64; 2]| numbers.map(|number| number * grad);
        self.each_row(&matrix, &|task| {
            let Weights { soft, shift, plain, own } = weights[if weights.len() == 1 { 0 } else { task.row }];
            let weights = Weights { soft: scaled(soft), shift, plain: scaled(plain), own };
            let (row, start) = (task.row, task.row * self.columns.len());
            self.pass.slopes(&task, weights, &output);
            for (column, gradient) in others(row) {
                // SAFETY: each row is one thread's.
                unsafe { output.write(start + column..start + column + 1, &[gradient]) };
            }
        });
        Ok(output.into_tensor())
    }

    fn each_row(&self, matrix: &Tensor, task: &(dyn Fn(Task<W>) + Sync)) {
        let (x, width) = (elements(matrix), self.columns.len());
        parallel::rows(self.rows.len(), width, |rows| {
            let mut labels = self.columns.clone();
            for row in rows {
                let own = self.own.then(|| std::mem::replace(&mut labels[row], W::from_f64(NO_PAIR)));
                let (x, label) = (&x[row * width..(row + 1) * width], self.rows[row]);
                task(Task { row, x, label, labels: &labels, counted: self.counted });
                if let Some(own) = own {
                    labels[row] = own;
                }
            }
            0.0
        });
    }
}

/// A row of the matrix, as kernels see it.
pub(super) struct Task<'a, W> {
    row: usize,
    x: &'a [W],
    /// The label of the row.
    label: W,
    /// The labels of the columns; [`NO_PAIR`] where column and row are the same sample.
    labels: &'a [W],
    counted: Counted,
}

/// A term and its derivative. `same` and `other`: whether the labels are equal or not; neither for no pair.
struct Term<R> {
    term: R,
    slope: R,
    same: bool,
    other: bool,
}

impl<W: Wide> Task<'_, W> {
    /// The elements and labels of the columns, a block at a time.
    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = (&[W], &[W])> {
        self.x.chunks(BLOCK).zip(self.labels.chunks(BLOCK))
    }

    /// The term of the element `x` in a column of this `label`.
    #[inline(always)]
    fn term<R: LaneOf<W>, P: PairTerms>(&self, terms: P, x: R, label: R) -> Term<R> {
        let same = label == R::new(self.label);
        let ((same_term, same_slope), (other_term, other_slope)) = (terms.same(x), terms.other(x));
        let other = !same & (label >= R::of(0.0));
        Term { term: choose(same, same_term, other_term), slope: choose(same, same_slope, other_slope), same, other }
    }

    #[inline(always)]
    fn counts<R: LaneOf<W>>(&self, term: R) -> bool {
        let Counted { low, high, .. } = self.counted;
        !((term <= R::of(low)) | (term >= R::of(high)))
    }
}

/// The kernel of the sums of a row.
struct Sum<'a, W, P> {
    pass: P,
    task: &'a Task<'a, W>,
}

impl<W: Wide, P: PairPass> Kernel<W> for Sum<'_, W, P> {
    type Result = Sums;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> Sums {
        let (task, terms) = (self.task, self.pass.terms());
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let mut sums = Sums::NOTHING;
        let mut most = [R::of(f64::NEG_INFINITY); 2];
        if P::SOFT {
            for (x, labels) in task.blocks() {
                let greatest = fold([x, labels], most, |[x, label], [same, other]| {
                    let Term { term, same: is_same, other: is_other, .. } = task.term(terms, x, label);
                    [choose(is_same, same.max(term), same), choose(is_other, other.max(term), other)]
                });
                for k in 0..2 {
                    most[k] = simd::largest_lane(greatest[k], most[k]);
                }
            }
            sums.most = [most[SAME].get().into(), most[OTHER].get().into()];
        }
        for (x, labels) in task.blocks() {
            let [same, other, same_sum, other_sum, same_count, other_count] =
                fold([x, labels], [zero; 6], |[x, label], [a, b, c, d, e, f]| {
                    let Term { term, same, other, .. } = task.term(terms, x, label);
                    let exponential =
                        if P::SOFT { (term - choose(same, most[SAME], most[OTHER])).exp_of_moderate() } else { zero };
                    let counts = P::SOFT | task.counts(term);
                    let [term, count] = [choose(counts, term, zero), choose(counts, one, zero)];
                    let mine = |number: R, own: bool| choose(own, number, zero);
                    [
                        a + mine(exponential, same),
                        b + mine(exponential, other),
                        c + mine(term, same),
                        d + mine(term, other),
                        e + mine(count, same),
                        f + mine(count, other),
                    ]
                });
            add(&mut sums.exponentials, [same, other]);
            add(&mut sums.sums, [same_sum, other_sum]);
            add(&mut sums.counts, [same_count, other_count]);
        }
        sums
    }
}

/// Adds the sums of the lanes.
#[inline(always)]
fn add<R: LaneOf<W>, W: Wide>(sums: &mut [f64; 2], lanes: [[R; LANES]; 2]) {
    for k in 0..2 {
        sums[k] += simd::total(lanes[k]);
    }
}

/// The kernel of the gradient of a row.
struct Slopes<'a, W, P> {
    pass: P,
    task: &'a Task<'a, W>,
    weights: Weights,
    output: &'a Output<W>,
}

impl<W: Wide, P: PairPass> Kernel<W> for Slopes<'_, W, P> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Self { pass, task, weights, output } = self;
        let terms = pass.terms();
        let Weights { soft, shift, plain, .. } = weights;
        let [soft, shift, plain]: [[R; 2]; 3] = [lanes_of(soft), lanes_of(shift), lanes_of(plain)];
        let width = task.x.len();
        let mut room = [W::default(); BLOCK];
        for start in (0..width).step_by(BLOCK) {
            let block = start..width.min(start + BLOCK);
            let (x, labels) = (&task.x[block.clone()], &task.labels[block.clone()]);
            let gradients = &mut room[..x.len()];
            let labels = &labels[..x.len()];
            for i in 0..x.len() {
                let Term { term, slope, same, other } = task.term(terms, R::new(x[i]), R::new(labels[i]));
                let of = |pair: [R; 2]| choose(same, pair[SAME], pair[OTHER]);
                let weight = match P::SOFT {
                    true => (term - of(shift)).exp_of_moderate().mul_add(of(soft), of(plain)),
                    false => choose(task.counts(term), of(plain), R::of(0.0)),
                };
                gradients[i] = choose(same | other, weight * slope, R::of(0.0)).get();
            }
            let place = task.row * width;
            // SAFETY: each row is one thread's, and its blocks are written one after another.
            unsafe { output.write(place + block.start..place + block.end, gradients) };
        }
    }
}
