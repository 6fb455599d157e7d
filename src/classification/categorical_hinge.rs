use tch::Tensor;

use crate::check::{self, ClassIndices};
use crate::kernels::{Hinges, Margin, Note, NumberOperations, RowReduction, Rows, f_margin};
use crate::loss::composite;
use crate::numeric::{f_reals, f_share_of, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The categorical hinge loss: the highest of the other classes' scores should be lower than the target's, by a margin.
///
/// The loss of a multi-class support vector machine that compares the target with the highest other score alone;
/// [`MultiMarginLoss`](crate::MultiMarginLoss) compares it with all of them. For probabilities choose
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
/// # Formula
///
/// ℓₙ = max(0, m − Σ_c t\[n, c\] x\[n, c\] + max_c (1 − t\[n, c\]) x\[n, c\])
///
/// where x is the input, m the margin and t the target: a vector of 1 for the right class and 0 for the others, or
/// probabilities. The right class takes part in the maximum with a score of 0, so that other scores below 0 count as 0.
///
#[doc = include_str!("../../docs/book/src/gallery/categorical_hinge.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[C]`, `[N, C]` or
///   `[N, C, d₁, …, dₖ]`, of any kind of real numbers
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// The definition of `keras.losses.CategoricalHinge` of Keras 3.
///
/// # Differences from Keras
///
/// The classes are the second dimension, as in PyTorch; in Keras they are the last. Class indices need no one-hot
/// vectors.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a margin that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{CategoricalHingeLoss, Loss};
///
/// let scores = Tensor::from_slice(&[0.5, 1.0, 0.25]).view([1, 3]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64]);
///
/// let loss = CategoricalHingeLoss::new().f_forward(&scores, &target)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, 0.5);
/// assert_eq!(Vec::<f64>::try_from(scores.grad().view(-1))?, [1.0, -1.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "categorical_hinge")]
pub struct CategoricalHingeLoss: "categorical_hinge";

/// The categorical hinge loss with Keras' margin of 1.
new {
    /// the margin between the score of the target and the others.
    margin: f64 = 1.0,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl CategoricalHingeLoss {
    /// The reduced loss of the scores of the target and of the others, these along `dim`.
    fn f_reduced(&self, own: &Tensor, others: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let losses = others.f_amax(dim, false)?.f_sub(own)?.f_add_number(self.margin)?.f_relu()?;
        self.reduction.f_apply(&losses)
    }

    fn f_vectors(&self, input: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let scores = input.f_to_kind(wide_kind(input)?)?;
        let target = f_reals(("target", target), scores.f_kind()?)?;
        let own = f_share_of(&target, &scores)?.f_sum_dim_intlist(dim, false, None)?;
        let loss = self.f_reduced(&own, &f_share_of(&target.f_rsub_number(1)?, &scores)?, dim)?;
        Ok(loss.f_to_kind(result_kind(input)?)?)
    }

    fn f_indices(&self, input: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let classes = input.size()[dim as usize];
        let found = (self.invalid_values, self.reduction == Reduction::None);
        let engine = |target: &Tensor, note: Option<&Note>| self.f_fused(input, target, note);
        let target = match ClassIndices::f_fused(target, classes, None, found, engine)? {
            Ok(loss) => return Ok(loss),
            Err(target) => target,
        };
        let scores = input.f_to_kind(wide_kind(input)?)?;
        let indices = target.indices.f_unsqueeze(dim)?;
        let own = scores.f_gather(dim, &indices, false)?.f_squeeze_dim(dim)?;
        let loss = self.f_reduced(&own, &scores.f_scatter_number(dim, &indices, 0)?, dim)?;
        target.validity.f_poison_own(loss.f_to_kind(result_kind(input)?)?, self.reduction == Reduction::None)
    }

    /// The loss of classes that are the last dimension by the engine, or `None` where the engine does not take the
    /// call.
    fn f_fused(&self, input: &Tensor, target: &Tensor, note: Option<&Note>) -> Result<Option<Tensor>, LossError> {
        if input.dim() > 2 {
            return Ok(None);
        }
        let rows = Rows { input, class_dim: input.dim() - 1, target, ignore_index: None, weight: None, note };
        let formula = Margin { margin: self.margin, hinges: Hinges::Strongest };
        f_margin(formula, &rows, RowReduction::over_all(self.reduction), composite(*self))
    }
}

impl Loss for CategoricalHingeLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("margin", self.margin)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let dim = check::class_dim(input)?;
        check::shape(("input", input), input.size()[dim] != 0, "at least one class")?;
        if target.size() == input.size() {
            return self.f_vectors(input, target, dim as i64);
        }
        let (_, target) = check::class_target(target, input, dim, ", or that of input")?;
        self.f_indices(input, &target, dim as i64)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{Backend, with_backend};

    fn scores() -> Tensor {
        Tensor::from_slice(&[0.5, 1.0, 0.25, -1.0, -2.0, -3.0]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (scores(), Tensor::from_slice(&[1_i64, 2]));
        let message = |criterion: CategoricalHingeLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let new = CategoricalHingeLoss::new;
        let cases = [
            (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input",
            ),
            (message(new(), &input.narrow(1, 0, 0), &target), "input has shape [2, 0], expected at least one class"),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (message(new().margin(f64::NAN), &input, &target), "option margin is NaN, expected a finite number"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn class_indices_are_one_hot_vectors() {
        let indices = Tensor::from_slice(&[1_i64, 2]);
        let one_hot = Tensor::from_slice(&[0_i64, 1, 0, 0, 0, 1]).view([2, 3]);
        let loss = CategoricalHingeLoss::new().reduction(Reduction::None).forward(&scores(), &indices);
        assert_eq!(Vec::<f64>::try_from(&loss).unwrap(), [0.5, 4.0]);
        for kind in [Kind::Bool, Kind::Int64, Kind::Float, Kind::Double] {
            let criterion = CategoricalHingeLoss::new().reduction(Reduction::None);
            assert_eq!(criterion.forward(&scores(), &one_hot.to_kind(kind)), loss);
        }
    }

    #[test]
    fn ties_and_what_is_not_finite_are_those_of_the_tensor_operations() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        // Two and three rivals tie; one ties with the score 0 of the class; then the hinge is satisfied, exactly or
        // well.
        let ordinary =
            [0.5, 2.0, 2.0, 0.25, 1.0, 1.0, 1.0, 0.5, 0.25, 0.0, -1.0, -2.0, 1.0, -1.0, 0.0, -3.0, 9.0, 0.1, 0.2, 0.3];
        let others = [
            nan, 0.5, 1.0, 2.0, 0.5, nan, 1.0, 2.0, nan, nan, nan, nan, 0.0, inf, inf, 1.0, inf, inf, 0.0, 0.0, -inf,
            -inf, -inf, -inf,
        ];
        for numbers in [&ordinary[..], &others[..]] {
            for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
                for class in [0, 3] {
                    let input = Tensor::from_slice(numbers).view([-1, 4]).to_kind(kind).set_requires_grad(true);
                    let target = Tensor::full(&input.size()[..1], class, (Kind::Int64, input.device()));
                    let results = |backend| {
                        let loss = CategoricalHingeLoss::new().margin(0.5).reduction(Reduction::None);
                        let loss = with_backend(backend, || loss.forward(&input, &target));
                        let gradient = Tensor::run_backward(&[loss.sum(None)], &[&input], false, false).remove(0);
                        [loss.detach(), gradient]
                    };
                    for (actual, expected) in results(Backend::Auto).iter().zip(&results(Backend::Composite)) {
                        assert!(actual.allclose(expected, 0.0, 0.0, true), "{kind:?}, {class}: {actual}{expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let soft = Tensor::from_slice(&[0.2, 0.7, 0.1, 0.3, 0.3, 0.4]).view([2, 3]);
        crate::numeric::assert_gradient(&scores(), |input| CategoricalHingeLoss::new().forward(input, &soft));
        crate::numeric::assert_gradient(&soft, |target| CategoricalHingeLoss::new().forward(&scores(), target));
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let criterion = CategoricalHingeLoss::new().invalid_values(InvalidValues::Nan).reduction(Reduction::None);
        let loss = criterion.forward(&scores(), &Tensor::from_slice(&[1_i64, 7]));
        assert!(loss.double_value(&[0]).is_finite() && loss.double_value(&[1]).is_nan());
    }
}
