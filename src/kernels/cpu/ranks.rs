//! The engine of losses that weigh the errors of a row by their order: the Lovász losses.
//!
//! The errors of each class are sorted in descending order, which is most of the work, and the formula gives each its
//! weight. The gradient is the weight times the derivative of the error, and is computed with the loss.

use tch::{Kind, Tensor};

use super::elements::{elements, f_numbers, integers, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::parallel;
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::engine::{Engine, Factor, Reduce, RowFactors, composite_of, f_dispatch, first, row_length};
use crate::kernels::formulas::Ranked;

/// The arguments of a loss that is the weighted mean over classes of sums of weighted errors.
pub(crate) struct Ranks<'a> {
    /// Numbers `[R, C, P]`: for each row the elements P as each class C sees them.
    pub(crate) numbers: &'a Tensor,
    /// The label of each element, 64-bit integers `[R, P]`. One with a negative label is ignored: it has no error and
    /// comes last.
    pub(crate) labels: &'a Tensor,
    /// The label of each class, 64-bit integers `[C]`.
    pub(crate) classes: &'a Tensor,
    /// A weight for each class, `[C]`. The mean divides by the number of classes, not by the sum of the weights.
    pub(crate) weight: Option<&'a Tensor>,
    /// Whether classes without an element are left out of the mean.
    pub(crate) present: bool,
}

/// The losses `[R]`, reduced; by the `composite` where the engine does not take the call. The composite's arguments are
/// the numbers, the labels, the classes and the weight, in whose place there is any tensor if there is none.
pub(crate) fn f_ranks<F, C>(
    formula: F,
    ranks: &Ranks,
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    F: Ranked,
    C: Fn([&Tensor; 4]) -> Result<Tensor, LossError> + Send + 'static,
{
    let &Ranks { numbers, labels, classes, weight, present } = ranks;
    let arguments = [numbers, labels, classes, weight.unwrap_or(classes)];
    let kind = numbers.f_kind()?;
    let taken = backend::fused()
        && matches!(kind, Kind::Float | Kind::Double)
        && is_plain(numbers, kind)
        && [labels, classes].iter().all(|integers| is_plain(integers, Kind::Int64))
        && weight.is_none_or(|weight| !weight.requires_grad())
        && numbers.numel() != 0
        && row_length(numbers) <= u32::MAX as usize;
    if !taken {
        return composite(arguments);
    }
    let engine = RanksEngine { formula, present, weighted: weight.is_some() };
    f_dispatch(Box::new(engine), &arguments, reduce.into(), composite_of(composite))
}

/// The engine, with its formula.
struct RanksEngine<F> {
    formula: F,
    present: bool,
    weighted: bool,
}

impl<F: Ranked> Engine for RanksEngine<F> {
    fn differentiable(&self) -> usize {
        1
    }

    fn count(&self, arguments: &[&Tensor]) -> usize {
        arguments[0].size()[0] as usize
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        let none = RowFactors::Number(0.0);
        let losses = match arguments[0].f_kind()? {
            Kind::Double => self.f_run::<f64>(arguments, &none, None)?,
            _ => self.f_run::<f32>(arguments, &none, None)?,
        };
        let tensor = Tensor::f_from_slice(&losses)?.f_to_kind(arguments[0].f_kind()?)?;
        Ok((losses.iter().sum(), tensor))
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        match arguments[0].f_kind()? {
            Kind::Double => self.f_sum_of::<f64>(arguments, factor, wanted[0]),
            _ => self.f_sum_of::<f32>(arguments, factor, wanted[0]),
        }
    }
}

/// By how much sorting an element costs more than a formula of it, for the choice of the number of threads.
const SORTING: usize = 8;

impl<F: Ranked> RanksEngine<F> {
    fn f_sum_of<W: Wide>(
        &self,
        arguments: &[&Tensor],
        factor: Factor,
        wanted: bool,
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let gradient = wanted.then(|| Output::<W>::f_of_size(&arguments[0].size())).transpose()?;
        let losses = self.f_run(arguments, &RowFactors::f_new(factor)?, gradient.as_ref())?;
        Ok((losses.iter().sum(), gradient.into_iter().map(Output::into_tensor).collect()))
    }

    /// Computes all rows: writes the gradient where there is an output for it, returns the losses.
    fn f_run<W: Wide>(
        &self,
        arguments: &[&Tensor],
        factors: &RowFactors,
        gradient: Option<&Output<W>>,
    ) -> Result<Vec<f64>, LossError> {
        let [numbers, labels, classes, weight] = first(arguments);
        let length = row_length(numbers);
        let weights = if self.weighted { f_numbers(weight)? } else { vec![1.0; classes.numel()] };
        let [numbers, labels, classes] =
            [numbers.f_detach()?.f_contiguous()?, labels.f_contiguous()?, classes.f_contiguous()?];
        let (numbers, labels, classes) = (elements::<W>(&numbers), integers(&labels), integers(&classes));
        let rows = labels.len() / length;
        let labels_of = |row: usize| &labels[row * length..(row + 1) * length];
        let place = |task: usize| (task / classes.len(), task % classes.len());

        let counts = parallel::results(rows * classes.len(), numbers.len(), |task| {
            let (row, class) = place(task);
            labels_of(row).iter().filter(|label| **label == classes[class]).count() as f64
        });
        let shares: Vec<f64> = counts.chunks(classes.len()).flat_map(|counts| self.shares(counts, &weights)).collect();

        let parts = parallel::results(counts.len(), SORTING * numbers.len(), |task| {
            let (row, class) = place(task);
            let range = task * length..(task + 1) * length;
            let of_class = OfClass {
                formula: self.formula,
                numbers: &numbers[range.clone()],
                labels: labels_of(row),
                class: classes[class],
                total: counts[task] as usize,
            };
            // SAFETY: tasks have ranges of their own.
            let mut gradient = gradient.map(|gradient| unsafe { gradient.part::<W>(range) });
            of_class.loss(shares[task], |place, slope| {
                if let Some(gradient) = &mut gradient {
                    gradient[place].write(W::from_f64(slope * factors.of_row(row)));
                }
            })
        });
        Ok(parts.chunks(classes.len()).map(|parts| parts.iter().sum()).collect())
    }

    /// What the loss of each class is multiplied by in the mean, given how many elements each has.
    fn shares<'a>(&'a self, counts: &'a [f64], weights: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        let counted = move |count: f64| f64::from(u8::from(count > 0.0 || !self.present));
        let total = counts.iter().map(|count| counted(*count)).sum::<f64>().max(1.0);
        counts.iter().zip(weights).map(move |(count, weight)| counted(*count) * weight / total)
    }
}

/// The elements of a row as one class sees them.
struct OfClass<'a, F, W> {
    formula: F,
    numbers: &'a [W],
    labels: &'a [i64],
    class: i64,
    /// How many elements are of the class.
    total: usize,
}

impl<F: Ranked, W: Wide> OfClass<'_, F, W> {
    /// Whether an element is of the class, and its numbers of [`Ranked::error`].
    fn element(&self, place: usize) -> (bool, [W; 3]) {
        let label = self.labels[place];
        if label < 0 {
            // Ignored: sorted after all others, with error 0.
            return (false, [f64::NEG_INFINITY, 0.0, 0.0].map(W::from_f64));
        }
        let number = W::Lane::new(self.numbers[place]);
        (label == self.class, self.formula.error(number, label == self.class).map(LaneOf::get))
    }

    /// The loss times `share`. Its derivatives are handed to `store`, in any order.
    fn loss(&self, share: f64, mut store: impl FnMut(usize, f64)) -> f64 {
        let places = 0..self.numbers.len();
        if share == 0.0 {
            // The order does not matter then. The errors are added up all the same, since a NaN makes the loss NaN.
            places.clone().for_each(|place| store(place, 0.0));
            return share * places.map(|place| self.element(place).1[1].into()).sum::<f64>();
        }
        let mut order: Vec<_> = places.map(|place| (descending(self.element(place).1[0]), place as u32)).collect();
        W::sort(&mut order);
        let mut weights = self.formula.weights(self.total);
        let mut sum = 0.0;
        for (_, place) in order {
            let (own, [_, term, slope]) = self.element(place as usize);
            let weight = share * weights(own);
            sum += weight * term.into();
            store(place as usize, weight * slope.into());
        }
        sum
    }
}

/// A key whose ascending order is the descending order of `number`. Both zeros have the same key, and NaN comes first.
fn descending<W: Wide>(number: W) -> W {
    let number: f64 = number.into();
    W::from_f64(if number.is_nan() { f64::NEG_INFINITY } else { 0.0 - number })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::kernels::number::Real;

    /// A formula whose error is the number itself. The weight is the rank, plus 10 for an element of the class, plus
    /// 100 for each element of the class.
    #[derive(Clone, Copy)]
    struct Places;

    impl Ranked for Places {
        fn error<R: Real>(self, x: R, own: bool) -> [R; 3] {
            [x, R::of(1.0), R::of(if own { -1.0 } else { 1.0 })]
        }

        fn weights(self, total: usize) -> impl FnMut(bool) -> f64 {
            let mut rank = 0;
            move |own: bool| {
                rank += 1;
                f64::from(rank + 10 * i32::from(own)) + 100.0 * total as f64
            }
        }
    }

    #[test]
    fn weights_follow_the_order() {
        let numbers = Tensor::from_slice(&[0.5, f64::NAN, -0.0, 0.0, -2.0, 7.0, 7.0, 1.0]).view([2, 1, 4]);
        let labels = Tensor::from_slice(&[3_i64, 0, 0, 3, 0, 3, 0, -1]).view([2, 4]);
        let classes = Tensor::from_slice(&[3_i64]);
        for kind in [Kind::Float, Kind::Double] {
            let numbers = numbers.to_kind(kind).set_requires_grad(true);
            let ranks = Ranks { numbers: &numbers, labels: &labels, classes: &classes, weight: None, present: true };
            let losses = f_ranks(Places, &ranks, Reduce::No, |_| panic!("the engine takes it")).unwrap();
            losses.sum(None).backward();
            let numbers = |tensor: Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).view(-1)).unwrap();
            assert_eq!(numbers(losses.detach()), [830.0, 316.0], "{kind:?}");
            let expected = [-212.0, 201.0, 203.0, -214.0, 103.0, -111.0, 102.0, 0.0];
            assert_eq!(numbers(ranks.numbers.grad()), expected, "{kind:?}");
        }
    }

    #[test]
    fn absent_classes_count_where_they_are_wanted() {
        let numbers = Tensor::ones([1, 3, 2], (Kind::Double, Device::Cpu));
        let (labels, classes) = (Tensor::from_slice(&[0_i64, 1]).view([1, 2]), Tensor::from_slice(&[0_i64, 1, 2]));
        let weight = Tensor::from_slice(&[1.0, 2.0, 4.0]);
        // A class weighs 111 + 102 for its two elements, the absent one 1 + 2.
        for (present, expected) in [(true, 213.0 * 3.0 / 2.0), (false, (213.0 * 3.0 + 3.0 * 4.0) / 3.0)] {
            let ranks = Ranks { numbers: &numbers, labels: &labels, classes: &classes, weight: Some(&weight), present };
            let loss = f_ranks(Places, &ranks, Reduce::Mean, |_| panic!("the engine takes it")).unwrap();
            // Equal errors keep their order: an element of class 1 comes second there, and weighs 112 after 101.
            assert_eq!(loss.double_value(&[]), expected);
        }
    }
}
