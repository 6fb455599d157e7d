use std::fmt;

use half::f16;
use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::kernels::NumberOperations;
use crate::loss::Part;
use crate::mean_parts::f_wide;
use crate::{Loss, LossError, MeanParts, check};

/// A weighted sum of losses of the same input and target, such as 0.5 · Dice + 0.5 · focal.
///
/// The sum is a [`Loss`] itself, and so can be a term of another one. For logging,
/// [`f_forward_terms`](Self::f_forward_terms) returns the value of each term with the sum; each is computed once.
/// A clone of the sum has clones of its terms, which share their tensors; a loss of your own that has no
/// [`with_tensors`](Loss::with_tensors) is one term of both, which their threads take turns with.
/// Dice with cross entropy or a focal loss is faster as [`DiceCrossEntropyLoss`](crate::DiceCrossEntropyLoss) or
/// [`DiceFocalLoss`](crate::DiceFocalLoss), which share a softmax.
///
/// # Formula
///
/// ℓ = Σᵢ λᵢ ℓᵢ
///
/// where λᵢ is the factor of a term and ℓᵢ its loss, reduced by its own reduction. A factor below 0 is allowed and
/// makes its term large instead of small, such as the entropy of a prediction. A term with factor 0 is watched alone:
/// it is computed for the log without a graph, and not even its NaN comes into the sum.
///
/// # Shapes
///
/// * `input`, `target`: what every term takes
/// * result: the shape of the terms' losses, which is one for all: scalar, or that of unreduced losses
///
/// # Numerator and denominator
///
/// The sum of means over different denominators (class weights, ignored targets) is no mean, so that
/// [`f_parts`](Loss::f_parts) of the sum is a [`LossError::NoMean`]. [`f_term_parts`](Self::f_term_parts) returns
/// those of each term: add them up term by term, and the right sum over several calls is Σᵢ λᵢ · Σ numerators / Σ
/// denominators.
///
/// # Errors
///
/// [`LossError::Term`] with the name of the term and its error: one of its own, [`LossError::Shape`] where its loss has
/// another shape than that of the first, or [`LossError::Option`] for a factor that is infinite or NaN.
/// [`LossError::Option`] for a sum of no terms and for two terms of the same name.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Activation, CrossEntropyLoss, JaccardLoss, Loss, WeightedSum};
///
/// let criterion = WeightedSum::new()
///     .term("jaccard", 0.5, JaccardLoss::new().activation(Activation::Softmax))
///     .term("cross entropy", 0.5, CrossEntropyLoss::new());
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
///
/// let output = criterion.f_forward_terms(&logits, &target)?;
/// output.total.f_backward()?;
/// for term in &output.terms {
///     println!("{} {:.3}", term.name, f64::try_from(&term.loss)?);
/// }
/// assert!((f64::try_from(&output.terms[1].loss)? - 2_f64.ln()).abs() < 1e-12);
///
/// // A wrong call says which term it is wrong for.
/// let error = criterion.f_forward(&logits, &(target + 1)).unwrap_err();
/// assert_eq!(error.to_string(), "term jaccard: target holds 2, expected classes in [0, 2)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default, Clone)]
#[doc(alias = "Weighted")]
#[doc(alias = "Sum")]
#[doc(alias = "combined loss")]
#[must_use]
#[doc(alias = "compound loss")]
#[doc(alias = "combo_loss")]
pub struct WeightedSum {
    terms: Vec<Summand>,
}

#[derive(Clone)]
struct Summand {
    name: String,
    factor: f64,
    loss: Part,
}

/// A weighted sum and its terms.
#[derive(Debug)]
#[non_exhaustive]
pub struct WeightedSumOutput {
    /// The sum, with its graph.
    pub total: Tensor,
    /// The terms, in their order.
    pub terms: Vec<Term>,
}

/// The value of a term of a weighted sum.
#[derive(Debug)]
#[non_exhaustive]
pub struct Term {
    /// Its name.
    pub name: String,
    /// Its factor.
    pub factor: f64,
    /// Its loss, before it is multiplied by the factor, without a graph.
    pub loss: Tensor,
}

/// The numerator and the denominator of a term of a weighted sum.
#[derive(Debug)]
#[non_exhaustive]
pub struct TermParts {
    /// Its name.
    pub name: String,
    /// Its factor.
    pub factor: f64,
    /// Those of its loss, before it is multiplied by the factor; without a graph where the factor is 0.
    pub parts: MeanParts,
}

impl WeightedSum {
    /// A sum of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `factor` times a loss, which goes by `name` in the log and in errors.
    ///
    /// The loss may be a `Box<dyn Loss>`, one that was chosen at run time. The sum owns its terms, and may go to
    /// another thread with them.
    pub fn term(self, name: impl Into<String>, factor: f64, loss: impl Loss + 'static) -> Self {
        self.with_part(name.into(), factor, Part::new(Box::new(loss)))
    }

    pub(super) fn with_part(mut self, name: String, factor: f64, loss: Part) -> Self {
        self.terms.push(Summand { name, factor, loss });
        self
    }

    /// The same sum with the tensors among the options of its terms on `device` and in `kind`, such as those of the
    /// input. Boolean tensors and integers keep their kind, parameters stay where they are.
    ///
    /// # Errors
    /// [`LossError::Term`] with the error of [`f_to`](trait.Loss.html#method.f_to) of the term.
    pub fn f_to(&self, device: Device, kind: Kind) -> Result<Self, LossError> {
        let f_moved = |Summand { name, factor, loss }: &Summand| {
            let loss = loss.lock().f_to(device, kind).map_err(|error| error.in_term(name))?;
            Ok(Summand { name: name.clone(), factor: *factor, loss: Part::new(loss) })
        };
        Ok(Self { terms: self.terms.iter().map(f_moved).collect::<Result<_, LossError>>()? })
    }

    /// Computes the sum, with its graph, and what each term was, without one.
    ///
    /// # Errors
    /// A [`LossError`] that names the term at fault.
    pub fn f_forward_terms(&self, input: &Tensor, target: &Tensor) -> Result<WeightedSumOutput, LossError> {
        self.check()?;
        if self.is_beyond_half(input) {
            return f_narrowed(self.f_forward_terms(&f_wide(input)?, &f_wide(target)?)?);
        }
        let mut terms: Vec<Term> = Vec::with_capacity(self.terms.len());
        let mut total = None;
        for Summand { name, factor, loss } in &self.terms {
            let f_term = || {
                let loss = f_watched(*factor, || loss.lock().f_forward(input, target))?;
                if let Some(first) = terms.first() {
                    f_same_shape(&loss, first)?;
                }
                Ok(loss)
            };
            let loss = f_term().map_err(|error: LossError| error.in_term(name))?;
            if *factor != 0.0 {
                let share = loss.f_mul_number(*factor)?;
                total = Some(match total {
                    Some(sum) => share.f_add(&sum)?,
                    None => share,
                });
            }
            terms.push(Term { name: name.clone(), factor: *factor, loss: loss.f_detach()? });
        }
        let total = match (total, terms.first()) {
            (Some(total), _) => total,
            (None, Some(first)) => first.loss.f_zeros_like()?,
            (None, None) => return Err(no_terms()),
        };
        Ok(WeightedSumOutput { total, terms })
    }

    /// Computes the sum and its terms as [`f_forward_terms`](Self::f_forward_terms) does.
    ///
    /// # Panics
    /// Where `f_forward_terms` returns an error, with its message.
    #[track_caller]
    pub fn forward_terms(&self, input: &Tensor, target: &Tensor) -> WeightedSumOutput {
        crate::loss::expect(self.f_forward_terms(input, target))
    }

    /// The numerator and the denominator of each term.
    ///
    /// # Errors
    /// A [`LossError`] that names the term at fault, such as [`LossError::NoMean`] in one that is no mean.
    pub fn f_term_parts(&self, input: &Tensor, target: &Tensor) -> Result<Vec<TermParts>, LossError> {
        self.check()?;
        let f_parts = |Summand { name, factor, loss }: &Summand| {
            let parts =
                f_watched(*factor, || loss.lock().f_parts(input, target)).map_err(|error| error.in_term(name))?;
            Ok(TermParts { name: name.clone(), factor: *factor, parts })
        };
        self.terms.iter().map(f_parts).collect()
    }

    /// Whether the losses of an input of f16 have factors which are none of its numbers: the gradients of the terms are
    /// these.
    fn is_beyond_half(&self, input: &Tensor) -> bool {
        let range = f64::from(f16::MIN_POSITIVE)..=f64::from(f16::MAX);
        let beyond = |factor: f64| factor != 0.0 && !range.contains(&factor.abs());
        self.terms.iter().any(|term| beyond(term.factor)) && matches!(input.f_kind(), Ok(Kind::Half))
    }

    fn check(&self) -> Result<(), LossError> {
        if self.terms.is_empty() {
            return Err(no_terms());
        }
        for (index, Summand { name, factor, .. }) in self.terms.iter().enumerate() {
            let other = self.terms[..index].iter().all(|before| before.name != *name);
            check::option("name", format!("{name} twice"), other, "a name for each term")?;
            let valid = factor.is_finite();
            check::option("factor", factor, valid, "a finite number").map_err(|error| error.in_term(name))?;
        }
        Ok(())
    }
}

/// What was computed in single precision, in f16.
fn f_narrowed(WeightedSumOutput { total, terms }: WeightedSumOutput) -> Result<WeightedSumOutput, LossError> {
    let f_term = |term: Term| Ok(Term { loss: term.loss.f_to_kind(Kind::Half)?, ..term });
    let terms = terms.into_iter().map(f_term).collect::<Result<_, LossError>>()?;
    Ok(WeightedSumOutput { total: total.f_to_kind(Kind::Half)?, terms })
}

fn no_terms() -> LossError {
    LossError::Option { option: "terms", expected: "at least one".into(), actual: "empty".into() }
}

/// What is computed for the log alone, where the factor is 0, has no graph.
fn f_watched<T>(factor: f64, f_compute: impl FnOnce() -> Result<T, LossError>) -> Result<T, LossError> {
    let _guard = (factor == 0.0).then(no_grad_guard);
    f_compute()
}

fn f_same_shape(loss: &Tensor, first: &Term) -> Result<(), LossError> {
    if loss.size() == first.loss.size() {
        return Ok(());
    }
    let expected = format!("{:?}, the shape of term {}", first.loss.size(), first.name);
    Err(check::shape_error(("loss", loss), expected))
}

impl fmt::Debug for WeightedSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let factors = self.terms.iter().map(|term| (&term.name, term.factor));
        f.write_str("WeightedSum ")?;
        f.debug_map().entries(factors).finish()
    }
}

impl Loss for WeightedSum {
    /// Those of the terms, too.
    fn f_check_options(&self) -> Result<(), LossError> {
        self.check()?;
        let mut terms = self.terms.iter();
        terms.try_for_each(|term| term.loss.lock().f_check_options().map_err(|error| error.in_term(&term.name)))
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_forward_terms(input, target)?.total)
    }

    fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
        let terms = self.terms.iter().map(|Summand { name, factor, loss }| {
            let loss = Part::new(loss.lock().with_tensors(replace)?);
            Some(Summand { name: name.clone(), factor: *factor, loss })
        });
        Some(Box::new(Self { terms: terms.collect::<Option<_>>()? }))
    }

    fn f_parts(&self, _: &Tensor, _: &Tensor) -> Result<MeanParts, LossError> {
        Err(LossError::no_mean::<Self>("a sum of means is none; f_term_parts has those of each term"))
    }

    /// The terms with their factors. A loss of your own may not describe itself.
    #[cfg(feature = "distributed")]
    fn described(&self) -> Option<String> {
        let term = |Summand { name, factor, loss }: &Summand| {
            format!("{name}: {factor:?} of {}", loss.lock().described().unwrap_or_default())
        };
        let terms: Vec<String> = self.terms.iter().map(term).collect();
        Some(format!("WeightedSum {{ {} }}", terms.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};
    use crate::{CrossEntropyLoss, DiceLoss, L1Loss, MseLoss, Reduction};

    fn pair() -> (Tensor, Tensor) {
        (Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true), Tensor::from_slice(&[0.0, 4.0]))
    }

    #[test]
    fn value_gradient_and_terms_are_those_of_the_losses() {
        let (input, target) = pair();
        let inner = WeightedSum::new().term("l1", -2.0, L1Loss::new());
        let boxed: Box<dyn Loss> = Box::new(MseLoss::new());
        let sum = WeightedSum::new().term("mse", 0.5, boxed).term("inner", 1.0, inner);
        let output = sum.forward_terms(&input, &target);
        output.total.backward();
        // (1 + 4) / 2 and (1 + 2) / 2.
        assert_eq!(output.total.double_value(&[]), 0.5 * 2.5 - 2.0 * 1.5);
        let terms: Vec<_> = output.terms.iter().map(|term| (&*term.name, term.loss.double_value(&[]))).collect();
        assert_eq!(terms, [("mse", 2.5), ("inner", -3.0)]);
        assert!(output.terms.iter().all(|term| !term.loss.requires_grad()));
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.5 - 1.0, -1.0 + 1.0]);
        let borrowed: &dyn Loss = &sum;
        assert_eq!(borrowed.forward(&input, &target), output.total);
    }

    #[test]
    fn a_term_with_factor_0_is_watched_alone() {
        let input = Tensor::from_slice(&[f64::INFINITY, 2.0]).set_requires_grad(true);
        let target = Tensor::from_slice(&[0.0, 2.0]);
        let finite = |input: &Tensor| input.nan_to_num(0.0, 1.0, -1.0);
        struct Clipped(fn(&Tensor) -> Tensor);
        impl Loss for Clipped {
            fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
                MseLoss::new().f_forward(&(self.0)(input), target)
            }
        }
        let sum = WeightedSum::new().term("mse", 0.0, MseLoss::new()).term("clipped", 2.0, Clipped(finite));
        let output = sum.forward_terms(&input, &target);
        output.total.backward();
        assert_eq!(output.total.double_value(&[]), 1.0);
        assert!(output.terms[0].loss.double_value(&[]).is_infinite());
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.0, 0.0]);

        let nothing = WeightedSum::new().term("mse", 0.0, MseLoss::new()).forward(&input, &target);
        assert_eq!((nothing.double_value(&[]), nothing.requires_grad()), (0.0, false));
    }

    #[test]
    fn unreduced_losses_of_one_shape_add_up() {
        let (input, target) = pair();
        let sum = WeightedSum::new().term("mse", 1.0, MseLoss::new().reduction(Reduction::None)).term(
            "l1",
            1.0,
            L1Loss::new().reduction(Reduction::None),
        );
        assert_eq!(Vec::<f64>::try_from(sum.forward(&input, &target)).unwrap(), [2.0, 6.0]);
    }

    #[test]
    fn wrong_calls_name_the_term() {
        let (input, target) = pair();
        let message = |sum: WeightedSum| sum.f_forward(&input, &target).unwrap_err().to_string();
        let mse = || WeightedSum::new().term("mse", 1.0, MseLoss::new());
        let cases = [
            (message(WeightedSum::new()), "option terms is empty, expected at least one"),
            (message(mse().term("mse", 1.0, L1Loss::new())), "option name is mse twice, expected a name for each term"),
            (
                message(mse().term("l1", f64::NAN, L1Loss::new())),
                "term l1: option factor is NaN, expected a finite number",
            ),
            (
                message(mse().term("l1", 1.0, L1Loss::new().reduction(Reduction::None))),
                "term l1: loss has shape [2], expected [], the shape of term mse",
            ),
            (
                message(mse().term(
                    "outer",
                    1.0,
                    WeightedSum::new().term("ce", 1.0, CrossEntropyLoss::new().weight(Tensor::new())),
                )),
                "term outer: term ce: weight is an undefined tensor",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn parts_are_those_of_each_term() {
        let (input, target) = pair();
        let sum = WeightedSum::new().term("mse", 0.5, MseLoss::new()).term("l1", 0.0, L1Loss::new());
        let parts = sum.f_term_parts(&input, &target).unwrap();
        let values: Vec<_> = parts.iter().map(|term| term.parts.numerator().double_value(&[])).collect();
        assert_eq!(values, [5.0, 3.0]);
        assert!(parts[0].parts.numerator().requires_grad() && !parts[1].parts.numerator().requires_grad());
        let error = sum.f_parts(&input, &target).unwrap_err().to_string();
        let expected =
            "WeightedSum has no numerator and denominator: a sum of means is none; f_term_parts has those of each term";
        assert_eq!(error, expected);
        let dice = WeightedSum::new().term("dice", 1.0, DiceLoss::new());
        let error = dice.f_term_parts(&input, &target).unwrap_err().to_string();
        let expected = "term dice: DiceLoss has no numerator and denominator: it is no mean over samples or elements";
        assert_eq!(error, expected);
    }

    #[test]
    fn factors_beyond_half_precision_are_taken() {
        for backend in [Backend::Auto, Backend::Composite] {
            // 2⁻²⁵ is half of the least number of f16, 1e5 is beyond the greatest.
            for (factor, scale) in [(1e5, 2_f64.powi(-10)), (2_f64.powi(-25), 4096.0)] {
                let input = Tensor::from_slice(&[0.0, 0.5]).to_kind(Kind::Half).set_requires_grad(true);
                let target = Tensor::from_slice(&[0.0, 0.0]).to_kind(Kind::Half);
                let sum = WeightedSum::new().term("l1", factor, L1Loss::new().reduction(Reduction::Sum));
                let output = with_backend(backend, || sum.forward_terms(&input, &target));
                (&output.total * scale).backward();
                let slopes = Vec::<f64>::try_from(input.grad().to_kind(Kind::Double)).unwrap();
                assert_eq!(output.total.kind(), Kind::Half);
                assert_eq!((output.terms[0].loss.kind(), output.terms[0].loss.double_value(&[])), (Kind::Half, 0.5));
                assert_eq!(slopes[0], 0.0, "{backend:?}, {factor}");
                let expected = scale * factor;
                assert!((slopes[1] / expected - 1.0).abs() < 1e-3, "{backend:?}, {factor}: {slopes:?}, not {expected}");
            }
        }
    }
}
