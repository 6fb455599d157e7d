//! Cross entropy of a linear layer.

mod chunking;
mod fused;
mod module;
mod row_loss;
mod shard;
#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};

pub use chunking::Chunking;
pub use module::{LinearCrossEntropyConfig, LinearCrossEntropyLoss};

use crate::autograd::autocast_kind;
use crate::check::{self, ClassIndices};
use crate::kernels::NumberOperations;
use crate::numeric::f_linear;
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, MeanParts, Reduction, numeric};
use fused::Plan;
use row_loss::RowLoss;
#[cfg(feature = "distributed")]
pub(crate) use shard::ClassShard;

crate::options::options! {
/// Cross entropy of the logits of a linear layer, whose weights are arguments.
///
/// For the last layer of a classifier or language model, above all where its weights are shared with an embedding.
/// [`LinearCrossEntropyLoss`] is the same with weights of its own. With [`chunking`](Self::chunking) the rows are
/// computed in chunks, for vocabularies so large that the logits of a whole batch do not fit into memory.
///
/// # Formula
///
/// loss = [`CrossEntropyLoss`](z, y) + λ · mean over n of (log Σ_c exp z\[n, c\])², z = s · tanh((W x + b) / s)
///
/// where x is the input, W and b are the linear weight and bias, y is the target, λ the z-loss and s the soft cap. By
/// default λ is 0 and z = W x + b. The z-loss has the same reduction, and is 0 for ignored targets; its mean is over
/// the targets that are not ignored, whatever the class weights are.
///
#[doc = include_str!("../../../docs/book/src/gallery/linear_cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row
/// * `linear_weight`: `[C, D]`, or `[C, d₁, …, dₖ, D]` for k-dimensional targets, which need `[N, D]`
/// * `linear_bias`: `[C]`, or `[C, d₁, …, dₖ]`
/// * `target`: `[N, d₁, …, dₖ]`, without N for a single row, of any integer kind, for class indices; or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * `weight`: `[C]`
/// * result: scalar, or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// # Memory
///
/// With chunks of n rows, no more than n rows of logits exist at a time, n · C numbers instead of the 2 or 3 · N · C of
/// a linear layer and a [`CrossEntropyLoss`]. A reduced loss computes its gradients in the forward pass, and keeps only
/// these until the backward pass. An unreduced one computes the logits once more in the backward pass. Second
/// derivatives need the memory of all logits.
///
/// Half precision is computed in single precision, chunk by chunk. That is the most accurate way, and takes a copy of
/// the linear weight and twice the memory per number; with [`acc_dtype`](Self::acc_dtype) of the input's kind it does
/// not. Chunks that are computed in `f16` derive the loss in the backward pass, as an unreduced one, so that a scaled
/// loss has a gradient that is scaled before it is rounded.
///
/// Under autocast the layer is computed in half precision, in chunks and at once, and the loss in single precision.
/// Hidden states and weights may be of different kinds then.
///
/// # Reference
///
/// `torch.nn.functional.linear_cross_entropy` of PyTorch 2.13. The chunking is that of
/// `torch.nn.LinearCrossEntropyOptions`, without `acc_policy` and `allow_retain_graph`, which are not needed here.
/// Z-loss and soft cap are `lse_square_scale` and `softcap` of `LigerFusedLinearCrossEntropyLoss` of liger-kernel
/// 0.8.5.
///
/// # Differences from PyTorch
///
/// * Those of [`CrossEntropyLoss`].
/// * Class probabilities, label smoothing and several dimensions of targets are chunked, too.
/// * With chunks, the gradient is 0 where all targets are ignored; PyTorch's is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a smoothing outside \[0, 1\], a z-loss
/// below 0, a soft cap that is not above 0, a chunking of less than one row, an `acc_dtype` that does not fit, or an
/// `ignore_index` with class probabilities.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Chunking, LinearCrossEntropy};
///
/// let input = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]);
/// let linear_weight = Tensor::from_slice(&[0.0, 0.0, 3_f64.ln(), 0.0]).view([2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 0]);
///
/// // The probabilities are (1/4, 3/4) and (1/2, 1/2).
/// let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1));
/// let loss = criterion.f_forward(&input, &linear_weight, &target, None)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? + (0.75_f64.ln() + 0.5_f64.ln()) / 2.0).abs() < 1e-12);
/// assert_eq!(linear_weight.grad().size(), [2, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "linear_cross_entropy")]
#[doc(alias = "fused_linear_cross_entropy")]
#[doc(alias = "cut_cross_entropy")]
pub struct LinearCrossEntropy;

/// Linear cross entropy with PyTorch's defaults.
new {
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets are ignored. By default it is −100 for class indices; with class probabilities
    /// there must be none.
    ignore_index: Option<i64> = None => whole,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the factor λ of the z-loss, which keeps the logits small.
    #[doc(alias = "lse_square_scale")]
    z_loss: f64 = 0.0,
    /// the soft cap s: logits become s · tanh(logit / s), between −s and s.
    #[doc(alias = "softcap")]
    #[doc(alias = "final_logit_softcapping")]
    soft_cap: Option<f64> = None,
    /// the number of rows in a chunk; without it all rows are computed at once. Where class probabilities or class
    /// weights require a gradient there are no chunks, and a warning in the log says so.
    #[doc(alias = "options")]
    chunking: Option<Chunking> = None,
    /// the kind in which chunks are computed: that of the input, or `Float` for one of half precision. By default it is
    /// the wider one, and under autocast the one of its products. The results of the chunks are summed in `Float` at least. Without chunking it is that of the
    /// input, except that z-loss and soft cap need `Float` at least.
    acc_dtype: Option<Kind> = None,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// A single chunk of at most this number of logits is computed without chunking, which takes fewer operations.
const SMALL: i64 = 1 << 16;

/// As an option of a loss with weights of its own.
#[cfg(feature = "serde")]
impl crate::description::OptionValue for LinearCrossEntropy {
    fn f_read(
        value: &crate::description::Value,
        place: crate::description::Place,
    ) -> Result<Self, crate::description::Mismatch> {
        crate::description::f_read_table(value, place).map_err(crate::description::Mismatch::Inside)
    }

    fn f_write(&self) -> Result<crate::description::Value, crate::description::Problem> {
        crate::description::Table::f_write(self).map(crate::description::Value::Map)
    }
}

impl LinearCrossEntropy {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        input: &Tensor,
        linear_weight: &Tensor,
        target: &Tensor,
        linear_bias: Option<&Tensor>,
    ) -> Result<Tensor, LossError> {
        check::defined(("input", input))?;
        self.f_loss(&Arguments { input, linear_weight, target, linear_bias }, numeric::result_kind(input)?)
    }

    /// The loss, rounded once, to the kind `result`.
    fn f_loss(&self, arguments: &Arguments, result: Kind) -> Result<Tensor, LossError> {
        let Arguments { input, target, .. } = *arguments;
        let sizes = self.f_check(arguments)?;
        let Some(chunking) = self.chunking else { return self.f_whole(arguments, result) };
        let rows = sizes.batch.first().copied().unwrap_or(1);
        let size = chunking.f_rows(rows, sizes.features, sizes.classes)?;
        let kind = self.f_chunk_kind(input)?;
        if sizes.logits().contains(&0) {
            return self.f_whole(arguments, result);
        }
        if target.requires_grad() || self.weight.as_ref().is_some_and(Tensor::requires_grad) {
            log::warn!(
                "linear cross entropy is computed without chunking, which has no gradient of target or class weight"
            );
            return self.f_whole(arguments, result);
        }
        self.f_check_kinds(arguments, kind)?;
        // Chunks save memory, and a small problem needs little.
        let small = sizes.logits().iter().product::<i64>() <= SMALL && self.z_loss == 0.0 && self.soft_cap.is_none();
        if small && size >= rows {
            return self.f_whole(arguments, result);
        }
        self.f_chunks(arguments, size, kind, result)
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward), and [`LossError::NoMean`] for class weights together with a z-loss,
    /// which is the sum of two means.
    pub fn f_parts(
        &self,
        input: &Tensor,
        linear_weight: &Tensor,
        target: &Tensor,
        linear_bias: Option<&Tensor>,
    ) -> Result<MeanParts, LossError> {
        if self.z_loss != 0.0 && self.weight.is_some() && !target.is_floating_point() {
            return Err(LossError::no_mean::<Self>("cross entropy is a mean over class weights, z-loss is not"));
        }
        let arguments = Arguments { input, linear_weight, target, linear_bias };
        let sum = Self { reduction: Reduction::Sum, ..self.clone() };
        check::defined(("input", input))?;
        let loss = sum.f_loss(&arguments, numeric::wide_kind(input)?)?;
        let sizes = Sizes::f_new(input, linear_weight)?;
        if target.size() == sizes.logits() {
            return MeanParts::f_over(loss, target.numel() as i64 / sizes.classes.max(1));
        }
        MeanParts::f_of_counted(loss, target, sizes.classes, Some(self.ignored()), self.weight.as_ref())
    }

    crate::loss::or_panic! {
        forward as f_forward(
            input: &Tensor, linear_weight: &Tensor, target: &Tensor, linear_bias: Option<&Tensor>
        ) -> Tensor
    }

    /// Checks what can be checked without looking at values.
    fn f_check(&self, arguments: &Arguments) -> Result<Sizes, LossError> {
        let Arguments { input, linear_weight, target, linear_bias } = *arguments;
        check::devices(&[("input", input), ("linear_weight", linear_weight), ("target", target)])?;
        for argument in [("input", input), ("linear_weight", linear_weight)] {
            check::floating(argument)?;
        }
        let sizes = Sizes::f_new(input, linear_weight)?;
        if let Some(bias) = linear_bias {
            sizes.check_bias(bias, input)?;
        }
        if self.f_check_target(target, &sizes.logits(), sizes.batch.len())? {
            check::floating(("target", target))?;
        } else {
            let _ = check::integers(("target", target))?;
        }
        check::class_weight(self.weight.as_ref(), input, sizes.classes)?;
        self.f_check_options()?;
        self.f_check_cap(numeric::wide_kind(input)?)?;
        Ok(sizes)
    }

    /// Checks the options that do not depend on the arguments.
    pub(crate) fn f_check_options(&self) -> Result<(), LossError> {
        check::share("label_smoothing", self.label_smoothing)?;
        let z_loss = self.z_loss;
        check::option("z_loss", z_loss, z_loss.is_finite() && z_loss >= 0.0, "a number >= 0")?;
        let cap = self.soft_cap.unwrap_or(1.0);
        check::option("soft_cap", cap, cap.is_finite() && cap > 0.0, "a number > 0")
    }

    /// Checks the soft cap in `kind`, where a small one may be rounded to 0.
    fn f_check_cap(&self, kind: Kind) -> Result<(), LossError> {
        let Some(cap) = self.soft_cap else { return Ok(()) };
        let inverse = if kind == Kind::Double { cap.recip() } else { f64::from((cap as f32).recip()) };
        check::option("soft_cap", cap, inverse.is_finite() && inverse > 0.0, &format!("a number > 0 in {kind:?}"))
    }

    fn ignored(&self) -> i64 {
        self.ignore_index.unwrap_or(-100)
    }

    fn cross_entropy(&self, weight: Option<Tensor>, reduction: Reduction, mode: InvalidValues) -> CrossEntropyLoss {
        let criterion = CrossEntropyLoss::new()
            .ignore_index(self.ignored())
            .label_smoothing(self.label_smoothing)
            .invalid_values(mode)
            .reduction(reduction);
        match weight {
            Some(weight) => criterion.weight(weight),
            None => criterion,
        }
    }

    /// The kind in which chunks are computed.
    fn f_chunk_kind(&self, input: &Tensor) -> Result<Kind, LossError> {
        let own = input.f_kind()?;
        let wide = numeric::wide_kind(input)?;
        let kind = match self.acc_dtype {
            Some(kind) => kind,
            // That of the products of the layer.
            None => return Ok(autocast_kind(input)?.unwrap_or(wide)),
        };
        let expected = format!("{own:?}, the kind of input, or Float for half precision");
        check::option("acc_dtype", format!("{kind:?}"), kind == own || kind == wide, &expected)?;
        Ok(kind)
    }

    /// Checks that the target has one of its two shapes, and returns whether it has class probabilities.
    fn f_check_target(&self, target: &Tensor, logits: &[i64], class_dim: usize) -> Result<bool, LossError> {
        let shape = target.size();
        if shape == logits {
            let actual = self.ignore_index.map(|index| index.to_string()).unwrap_or_default();
            let expected = "none with class probabilities as target";
            check::option("ignore_index", actual, self.ignore_index.is_none(), expected)?;
            return Ok(true);
        }
        if shape[..] != [&logits[..class_dim], &logits[class_dim + 1..]].concat() {
            let mut indices = logits.to_vec();
            indices.remove(class_dim);
            let expected = format!("{indices:?} for class indices, or {logits:?} for class probabilities");
            return Err(check::shape_error(("target", target), expected));
        }
        Ok(false)
    }

    /// The loss by its definition, with all logits at once, computed in single precision at least.
    fn f_whole(&self, arguments: &Arguments, result: Kind) -> Result<Tensor, LossError> {
        let Arguments { input, linear_weight, target, linear_bias } = *arguments;
        let sizes = Sizes::f_new(input, linear_weight)?;
        let kind = numeric::wide_kind(input)?;
        self.f_check_kinds(arguments, kind)?;
        let widen = |tensor: &Tensor| tensor.f_to_kind(kind);
        let bias = linear_bias.map(widen).transpose()?;
        let logits = sizes.f_apply(&widen(input)?, &widen(linear_weight)?, bias.as_ref())?;
        let weight = self.weight.as_ref().map(widen).transpose()?;
        if self.z_loss == 0.0 && self.soft_cap.is_none() {
            let criterion = self.cross_entropy(weight, self.reduction, self.invalid_values);
            return Ok(criterion.f_forward(&logits, target)?.f_to_kind(result)?);
        }
        // Under autocast they are of half precision.
        let logits = self.f_cap(&widen(&logits)?)?;
        let loss = self.cross_entropy(weight, self.reduction, self.invalid_values).f_forward(&logits, target)?;
        if self.z_loss == 0.0 {
            return Ok(loss.f_to_kind(result)?);
        }
        Ok(loss.f_add(&self.f_z_loss(&logits, target, sizes.batch.len())?)?.f_to_kind(result)?)
    }

    fn f_cap(&self, logits: &Tensor) -> Result<Tensor, LossError> {
        match self.soft_cap {
            Some(cap) => Ok(logits.f_div_number(cap)?.f_tanh()?.f_mul_number(cap)?),
            None => Ok(logits.shallow_clone()),
        }
    }

    fn f_z_loss(&self, logits: &Tensor, target: &Tensor, class_dim: usize) -> Result<Tensor, LossError> {
        let of = |logits: &Tensor| {
            let log_sum_exp = logits.f_logsumexp(class_dim as i64, false)?;
            Ok::<_, LossError>(log_sum_exp.f_square()?.f_mul_number(self.z_loss)?)
        };
        if target.size() == logits.size() {
            return self.reduction.f_apply(&of(logits)?);
        }
        let target = ClassIndices::f_new(target, logits.size()[class_dim], Some(self.ignored()), self.invalid_values)?;
        let ignored = target.indices.f_eq_number(self.ignored())?;
        let losses = of(&target.f_mask_ignored(logits, class_dim)?)?.f_masked_fill_number(&ignored, 0)?;
        let counted = ignored.f_logical_not()?.f_to_kind(losses.f_kind()?)?;
        let loss = self.reduction.f_apply_weighted(&losses, &counted)?;
        target.validity.f_poison_own(loss, self.reduction == Reduction::None)
    }

    /// Checks that a layer that is not converted to `kind` is of this kind already.
    fn f_check_kinds(&self, arguments: &Arguments, kind: Kind) -> Result<(), LossError> {
        let Arguments { input, linear_weight, linear_bias, .. } = *arguments;
        if kind != input.f_kind()? || autocast_kind(input)?.is_some() {
            return Ok(());
        }
        check::same_kind(("linear_weight", linear_weight), ("input", input))?;
        linear_bias.map_or(Ok(()), |bias| check::same_kind(("linear_bias", bias), ("input", input)))
    }

    /// The loss `size` rows at a time, computed in `kind`.
    fn f_chunks(&self, arguments: &Arguments, size: i64, kind: Kind, result: Kind) -> Result<Tensor, LossError> {
        let Arguments { linear_weight, target, .. } = *arguments;
        let plan = Plan { criterion: self.clone(), size, kind, shard: None, unchecked: None };
        if target.is_floating_point() {
            return fused::f_loss(plan, arguments, result);
        }
        let classes = linear_weight.size()[0];
        let unchecked = ClassIndices::checked_by_kernels(target, classes, Some(self.ignored()), self.invalid_values);
        if unchecked.is_some() {
            let target = &check::integers(("target", target))?;
            return fused::f_loss(Plan { unchecked, ..plan }, &Arguments { target, ..*arguments }, result);
        }
        let target = ClassIndices::f_new(target, classes, Some(self.ignored()), self.invalid_values)?;
        let indices = Arguments { target: &target.f_kept(arguments.input)?, ..*arguments };
        let loss = fused::f_loss(plan, &indices, result)?;
        target.validity.f_poison(&loss, self.reduction == Reduction::None)
    }

    /// The loss, `size` rows at a time, of a layer of which other processes have other classes. The target is a valid
    /// 64-bit class among those of all processes, `[N]` with N > 0, or ignored.
    #[cfg(feature = "distributed")]
    pub(crate) fn f_of_shard(
        &self,
        [input, linear_weight, target]: [&Tensor; 3],
        linear_bias: Option<&Tensor>,
        size: i64,
        shard: std::sync::Arc<dyn ClassShard>,
    ) -> Result<Tensor, LossError> {
        let plan = Plan {
            criterion: self.clone(),
            size,
            kind: self.f_chunk_kind(input)?,
            shard: Some(shard),
            unchecked: None,
        };
        fused::f_loss(plan, &Arguments { input, linear_weight, target, linear_bias }, numeric::result_kind(input)?)
    }

    fn f_row_loss(&self, kind: Kind) -> Result<RowLoss, LossError> {
        RowLoss::f_new(self.weight.as_ref(), self.label_smoothing, self.z_loss, self.soft_cap, kind)
    }
}

/// The tensors of a call.
#[derive(Clone, Copy)]
struct Arguments<'a> {
    input: &'a Tensor,
    linear_weight: &'a Tensor,
    target: &'a Tensor,
    linear_bias: Option<&'a Tensor>,
}

impl<'a> Arguments<'a> {
    /// The tensors of [`differentiable`](Self::differentiable), followed by the target.
    fn of(saved: &'a [Tensor]) -> Self {
        let (input, linear_weight, target) = (&saved[0], &saved[1], &saved[saved.len() - 1]);
        Arguments { input, linear_weight, target, linear_bias: (saved.len() == 4).then(|| &saved[2]) }
    }

    fn differentiable(&self) -> Vec<&'a Tensor> {
        [self.input, self.linear_weight].into_iter().chain(self.linear_bias).collect()
    }

    /// The shape of an unreduced loss: that of class indices.
    fn unreduced(&self) -> Vec<i64> {
        let (batch, weight) = (self.input.size(), self.linear_weight.size());
        [&batch[..batch.len() - 1], &weight[1..weight.len() - 1]].concat()
    }
}

/// The sizes of a call, whose input and linear weight fit together.
struct Sizes {
    /// `[N]`, or `[]` for a single row.
    batch: Vec<i64>,
    classes: i64,
    out_features: Vec<i64>,
    features: i64,
}

impl Sizes {
    fn f_new(input: &Tensor, linear_weight: &Tensor) -> Result<Sizes, LossError> {
        let [classes, ref out_features @ .., features] = linear_weight.size()[..] else {
            let expected = "[C, D] or [C, d1, ..., dk, D]";
            return Err(check::shape_error(("linear_weight", linear_weight), expected));
        };
        let batch = match input.size()[..] {
            [d] if d == features && out_features.is_empty() => vec![],
            [n, d] if d == features => vec![n],
            _ => {
                let single = if out_features.is_empty() { format!(" or [{features}]") } else { String::new() };
                let expected = format!("[N, {features}]{single}, for the {features} features of linear_weight");
                return Err(check::shape_error(("input", input), expected));
            }
        };
        Ok(Sizes { batch, classes, out_features: out_features.to_vec(), features })
    }

    fn logits(&self) -> Vec<i64> {
        [&self.batch[..], &[self.classes], &self.out_features].concat()
    }

    fn check_bias(&self, bias: &Tensor, input: &Tensor) -> Result<(), LossError> {
        check::devices(&[("input", input), ("linear_bias", bias)])?;
        let expected = [&[self.classes], &self.out_features[..]].concat();
        if bias.size() == expected {
            return Ok(());
        }
        let expected = format!("{expected:?}, that of linear_weight without its features");
        Err(check::shape_error(("linear_bias", bias), expected))
    }

    /// The logits of all rows.
    fn f_apply(&self, input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, LossError> {
        if self.out_features.is_empty() {
            return f_linear(input, weight, bias);
        }
        let bias = bias.map(|bias| bias.f_flatten(0, -1)).transpose()?;
        Ok(f_linear(input, &weight.f_flatten(0, -2)?, bias.as_ref())?.f_reshape(self.logits())?)
    }
}
