use tch::{Kind, Tensor, no_grad};

use crate::autograd::{Function, f_with_zero_gradients, grad_enabled};
use crate::check::{self, Validity};
use crate::kernels::{Note, NumberOperations, f_label_margin, f_own, waits};
use crate::numeric::{f_widely, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The multi-label margin loss, a hinge loss: each class among the labels should score higher than each other class, by
/// a margin of 1.
///
/// Choose it to rank the labels of a sample above the rest, with the labels given as a list. For one label per sample
/// choose [`MultiMarginLoss`](crate::MultiMarginLoss), for a yes or no per class
/// [`MultiLabelSoftMarginLoss`](crate::MultiLabelSoftMarginLoss).
///
/// # Formula
///
/// ℓₙ = 1/C · Σ_{j ∈ Yₙ} Σ_{c ∉ Yₙ} max(0, 1 − x\[n, j\] + x\[n, c\])
///
/// where x is the input, C the number of classes and Yₙ the entries of row n of the target before its first −1; a label
/// listed twice counts twice. The mean divides by the number of rows. As in PyTorch a term in which a score is NaN is
/// 0, with gradient 0, so that NaN scores make no NaN loss.
///
#[doc = include_str!("../../docs/book/src/gallery/multi_label_margin.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]`, `[C]`, or `[]` for a single class
/// * `target`: `[N, C]`, `[C]`, or `[]` or `[1]` for a single class, of any integer kind that holds −1, with entries in
///   \[−1, C)
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.MultiLabelMarginLoss` and `torch.nn.functional.multilabel_margin_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * The mean over an empty batch is NaN and the sum 0; PyTorch returns uninitialised memory.
/// * Class indices may be of any integer kind; PyTorch takes `int64`.
/// * A class out of range is an error, on CUDA a [later one](crate::InvalidValues::f_check)
///   and NaN until then, where PyTorch reads memory beyond the scores.
/// * On CUDA the gradient is right where PyTorch's is at times not, because two threads of its kernel write one number
///   (<https://github.com/pytorch/pytorch/issues/84202>).
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for an entry outside \[−1, C), also after the first −1.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MultiLabelMarginLoss};
///
/// let scores = Tensor::from_slice(&[0.0, 0.25, 0.5, 1.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[3_i64, 0, -1, 1]); // Labels 3 and 0; what follows the -1 is not read.
///
/// let loss = MultiLabelMarginLoss::new().f_forward(&scores, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (0.25 + 0.5 + 1.25 + 1.5) / 4.0);
/// assert_eq!(Vec::<f64>::try_from(scores.grad())?, [-0.5, 0.5, 0.5, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy)]
#[doc(alias = "nn.MultiLabelMarginLoss")]
#[doc(alias = "multilabel_margin_loss")]
pub struct MultiLabelMarginLoss: "multi_label_margin";

/// The multi-label hinge loss with PyTorch's defaults.
new {
    /// what an entry of the target outside \[−1, C) does.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl MultiLabelMarginLoss {
    fn f_aten(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let target = f_kept(input, target)?;
        f_widely([input], |[input]| Ok(input.f_multilabel_margin_loss(&target, self.reduction.into())?))
    }

    /// The same with a gradient that is made by counting, for each score, the hinges that are above 0: the open ones.
    /// Nobody else writes to the target.
    fn f_counted(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (value, reduction) = (no_grad(|| self.f_aten(input, target))?, self.reduction);
        Function::new(&[input]).save(&[input, target]).f_attach_one(value, move |context| {
            let ([input, target], Some(grad)) = (context.saved(), context.grad(0)) else { return Ok(vec![None]) };
            let open = no_grad(|| f_open_hinges(input, target))?;
            let [rows, classes] = [0, 1].map(|dim| open.size()[dim]);
            let terms = if reduction == Reduction::Mean { rows * classes } else { classes };
            // The gradient of the result is one number per row, or one for all.
            let gradient = open.f_div_number(terms)?.f_mul(&grad.f_to_kind(open.f_kind()?)?.f_reshape([-1, 1])?)?;
            let gradient = gradient.f_to_kind(input.f_kind()?)?.f_reshape(input.size())?;
            // The derivative of a hinge does not depend on the scores, so that second derivatives are 0.
            let gradient = if context.create_graph() { f_with_zero_gradients(gradient, &[input])? } else { gradient };
            Ok(vec![Some(gradient)])
        })
    }

    fn f_validity(&self, target: &Tensor, classes: i64) -> Result<Validity, LossError> {
        check::f_between(("target", target), [-1, classes - 1], || expected(classes), self.invalid_values)
    }

    /// The loss by tensor operations, which never see an entry that is no class.
    fn f_checked(&self, input: &Tensor, target: &Tensor, classes: i64) -> Result<Tensor, LossError> {
        let mut entries = self.f_validity(target, classes)?;
        let nearest = entries.take_nearest();
        let target = nearest.as_ref().unwrap_or(target);
        let loss = if waits(input) { self.f_counted(input, target)? } else { self.f_aten(input, target)? };
        let unreduced = self.reduction == Reduction::None;
        let entries = if unreduced { entries.f_rows()? } else { entries };
        entries.f_poison_own(loss, unreduced)
    }
}

fn expected(classes: i64) -> String {
    format!("classes in [0, {classes}), or -1 to end the list")
}

/// The target. Where a backward pass will read it again, without a check, it is a copy that nothing else can write to.
fn f_kept(input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    if input.requires_grad() && grad_enabled() { f_own(target) } else { Ok(target.shallow_clone()) }
}

/// For each score of a class that is no label the number of its open hinges, for each label minus that number:
/// `[N, C]`.
///
/// The hinge of label j and class c is open where x\[c\] > x\[j\] − 1. A binary search in sorted rows counts these.
fn f_open_hinges(input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    const NONE: Option<&Tensor> = None;
    let classes = target.size().last().copied().unwrap_or(1);
    let scores = input.f_to_kind(wide_kind(input)?)?.f_reshape([-1, classes])?;
    let target = target.f_reshape([-1, classes])?;
    // The labels end at the first -1.
    let listed = target.f_ge_number(0)?.f_cumprod(1, Kind::Int64)?;
    let labels = target.f_clamp_min_number(0)?;
    let times = scores.f_zeros_like()?.f_scatter_add(1, &labels, &listed.f_to_kind(scores.f_kind()?)?)?;
    let is_label = times.f_gt_number(0)?;

    // NaN scores, and numbers that are no label, are moved to ±∞, where they open no hinge.
    let (infinity, least) = (f64::INFINITY, f64::NEG_INFINITY);
    let mut bounds = scores.f_gather(1, &labels, false)?.f_sub_number(1)?.f_nan_to_num_(infinity, infinity, least)?;
    let _ = bounds.f_masked_fill_number_(&listed.f_eq_number(0)?, infinity)?;
    let mut others = scores.f_nan_to_num(least, infinity, least)?;
    let _ = others.f_masked_fill_number_(&is_label, least)?;

    // At −∞ no hinge is open, so that this counts none of a label.
    let of_others = others.f_searchsorted(&bounds.f_sort(1, false)?.0, false, false, "left", NONE)?;
    let not_open = bounds.f_searchsorted(&others.f_sort(1, false)?.0, false, true, "right", NONE)?;
    let of_labels = not_open.f_sub_number(classes)?;
    let counts = of_others.f_scatter_add(1, &labels, &of_labels)?;
    Ok(counts.f_to_kind(scores.f_kind()?)?)
}

impl Loss for MultiLabelMarginLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let (rows, classes) = check::rows_and_classes(input)?;
        if !(input.dim() <= 1 && target.dim() <= 1 && classes == 1 && target.numel() == 1) {
            check::same_shape(("target", target), ("input", input))?;
        }
        let target = check::integers(("target", target))?;
        if rows == 0 {
            // libtorch leaves the mean and the sum of no rows uninitialised.
            return self.reduction.f_apply(&input.f_sum_dim_intlist(1, false, None)?);
        }
        if self.invalid_values.is_error_of_host(input) {
            // Here the operation itself checks the values. They are checked again only to name the wrong one in the
            // error.
            let loss = *self;
            let composite = move |[input, target]: [&Tensor; 2]| {
                loss.f_aten(input, target).or_else(|error| {
                    loss.f_validity(target, classes)?;
                    Err(error)
                })
            };
            return f_label_margin([input, &target], self.reduction, None, composite);
        }
        let loss = *self;
        let composite = move |[input, target]: [&Tensor; 2]| loss.f_checked(input, target, classes);
        if !waits(input) {
            return composite([input, &target]);
        }
        if self.invalid_values == InvalidValues::ErrorAtOnce {
            self.f_validity(&target, classes)?;
        }
        // The kernels of the engine check the entries themselves.
        let is_noted = self.invalid_values == InvalidValues::Error;
        let note = is_noted.then(|| Note { argument: "target", expected: expected(classes) });
        f_label_margin([input, &target], self.reduction, note.as_ref(), composite)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::random::randn;
    use crate::{Backend, with_backend};

    fn scores() -> Tensor {
        Tensor::from_slice(&[0.0, 0.25, 0.5, 1.0])
    }

    fn message(input: &Tensor, target: &Tensor) -> String {
        MultiLabelMarginLoss::new().f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (scores(), Tensor::from_slice(&[3_i64, 0, -1, 1]));
        let cases = [
            (message(&input, &(&target + 1)), "target holds 4, expected classes in [0, 4), or -1 to end the list"),
            (
                message(&input, &Tensor::from_slice(&[0_i64, -1, -2, 0])),
                "target holds -2, expected classes in [0, 4), or -1 to end the list",
            ),
            (message(&input, &target.narrow(0, 0, 2)), "target has shape [2], expected [4], the shape of input"),
            (message(&input.view([1, 4]), &target), "target has shape [4], expected [1, 4], the shape of input"),
            (
                message(&input.view([1, 2, 2]), &target),
                "input has shape [1, 2, 2], expected [C] or [N, C], with at least one class",
            ),
            (message(&input, &input), "target has kind Double, expected an integer kind"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn a_label_out_of_range_is_named_beside_a_gradient() {
        let (input, target) = (scores().set_requires_grad(true), Tensor::from_slice(&[4_i64, 0, -1, 1]));
        let error = with_backend(Backend::Auto, || MultiLabelMarginLoss::new().f_forward(&input, &target)).unwrap_err();
        assert_eq!(error.to_string(), "target holds 4, expected classes in [0, 4), or -1 to end the list");
    }

    #[test]
    fn every_integer_kind_that_holds_the_end_is_a_class_index() {
        let target = Tensor::from_slice(&[3_i64, 0, -1, 1]);
        for kind in [Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            let loss = MultiLabelMarginLoss::new().f_forward(&scores(), &target.to_kind(kind)).unwrap();
            assert_eq!(loss.double_value(&[]), 0.875, "{kind:?}");
        }
    }

    #[test]
    fn the_gradient_by_counting_is_that_of_libtorch() {
        let labels = |row: &[i64]| Tensor::from_slice(row).view([1, -1]);
        let rows = [[3, 0, -1, 1, 4], [2, 2, 1, -1, 0], [-1, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, -1, -1, -1, -1]];
        let target = Tensor::cat(&rows.map(|row| labels(&row)), 0);
        // Steps of 1/2, so that some hinges are exactly closed.
        let scores = (randn([5, 5]) * 2.0).round() / 2.0;
        for (row, column, score) in
            [(0, 0, f64::NAN), (0, 1, f64::NAN), (1, 2, f64::INFINITY), (1, 0, f64::NEG_INFINITY)]
        {
            let _ = scores.get(row).get(column).fill_(score);
        }
        let single = scores.get(3);
        let cases =
            [(scores, target.shallow_clone()), (single, target.get(3)), (Tensor::from(0.5), Tensor::from(0_i64))];
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let loss = MultiLabelMarginLoss::new().reduction(reduction);
            for (scores, target) in &cases {
                let input = scores.copy().set_requires_grad(true);
                let gradient = |value: Tensor| {
                    let weights = Tensor::linspace(1.0, 3.0, value.numel() as i64, (Kind::Double, Device::Cpu));
                    Tensor::run_backward(&[(&value * weights.view_as(&value)).sum(None)], &[&input], false, false)
                        .remove(0)
                };
                let counted = gradient(loss.f_counted(&input, target).unwrap());
                let expected = gradient(loss.f_aten(&input, target).unwrap());
                assert!(
                    counted.allclose(&expected, 1e-14, 1e-15, false),
                    "{reduction:?}: {counted} and not {expected}"
                );
            }
        }
    }

    #[test]
    fn an_empty_batch_is_defined() {
        let input = scores().view([1, 4]).narrow(0, 0, 0);
        let target = Tensor::zeros([0, 4], (Kind::Int64, Device::Cpu));
        let with = |reduction| MultiLabelMarginLoss::new().reduction(reduction).forward(&input, &target);
        assert!(with(Reduction::Mean).double_value(&[]).is_nan());
        assert_eq!(with(Reduction::Sum).double_value(&[]), 0.0);
        assert_eq!(with(Reduction::None).size(), [0]);
    }

    #[test]
    fn a_score_that_is_nan_adds_nothing() {
        let input = Tensor::from_slice(&[0.0, f64::NAN, 0.5, 1.0]).set_requires_grad(true);
        let loss = MultiLabelMarginLoss::new().forward(&input, &Tensor::from_slice(&[3_i64, 0, -1, 1]));
        loss.backward();
        // Of the terms of labels 3 and 0 against classes 1 and 2, those against class 2 are left.
        assert_eq!(loss.double_value(&[]), (0.5 + 1.5) / 4.0);
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [-0.25, 0.0, 0.5, -0.25]);
    }

    #[test]
    fn a_single_class_has_nothing_to_outscore() {
        for (input, target) in [(&[][..], &[][..]), (&[], &[1]), (&[1], &[]), (&[1], &[1])] {
            let (input, target) = (Tensor::from(0.5).view(input), Tensor::from(0_i64).view(target));
            assert_eq!(MultiLabelMarginLoss::new().forward(&input, &target).double_value(&[]), 0.0);
        }
    }

    #[test]
    fn entries_out_of_range_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[0_i64, -1, 2, -1]).view([2, 2]);
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let input = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([2, 2]).set_requires_grad(true);
            let criterion = MultiLabelMarginLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            let loss = criterion.f_forward(&input, &target).unwrap();
            loss.sum(None).backward();
            assert!(loss.view(-1).double_value(&[-1]).is_nan());
            let used = if reduction == Reduction::None { 0.5 } else { 0.0 };
            assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [-used, used, 0.0, 0.0]);
        }
    }
}
