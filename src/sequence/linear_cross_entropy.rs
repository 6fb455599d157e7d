use std::borrow::Borrow;

use tch::{Kind, Tensor, nn};

use super::Linear;
use crate::check::{self, ClassIndices};
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, Reduction, numeric};

/// How many rows [`LinearCrossEntropy`] takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "LinearCrossEntropyOptions")]
#[doc(alias = "chunking_method")]
pub enum Chunking {
    /// So many rows, ≥ 1.
    #[doc(alias = "batch_chunk_size")]
    Rows(i64),
    /// As many rows as make the logits of a chunk about as large as the input, divided by the factor, ≥ 1:
    /// 2^⌈log₂ ⌈N / ⌈C / D⌉⌉⌉ / factor for N rows of D features and C classes.
    #[doc(alias = "aspect_ratio")]
    AspectRatio(i64),
}

impl Chunking {
    /// The number of rows per chunk, at least 1.
    fn f_rows(self, rows: i64, features: i64, classes: i64) -> Result<i64, LossError> {
        match self {
            Chunking::Rows(size) => {
                check::option("chunking", format!("{self:?}"), size > 0, "a number of rows >= 1")?;
                Ok(size)
            }
            Chunking::AspectRatio(factor) => {
                check::option("chunking", format!("{self:?}"), factor > 0, "a factor >= 1")?;
                let ceil_div = |a: i64, b: i64| (a.max(1) as u64).div_ceil(b.max(1) as u64);
                let target = ceil_div(rows, ceil_div(classes, features) as i64);
                Ok((target.next_power_of_two() as i64 / factor).max(1))
            }
        }
    }
}

impl Default for Chunking {
    /// [`Chunking::AspectRatio`] by 2, PyTorch's choice except for half precision on the CPU.
    fn default() -> Self {
        Chunking::AspectRatio(2)
    }
}

/// Cross entropy of the logits that a linear layer makes of the input: the function, for weights of your own.
///
/// For the last layer of a classifier or language model, above all where its weights are shared with an embedding.
/// [`LinearCrossEntropyLoss`] is the same with weights inside. [`chunking`](Self::chunking) takes the rows in pieces,
/// for vocabularies so large that the logits of a whole batch do not fit into memory.
///
/// # Formula
///
/// loss = [`CrossEntropyLoss`](W x + b, y)
///
/// where x is the input, W and b are the linear weight and bias, and y is the target.
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row
/// * `linear_weight`: `[C, D]`, or `[C, d₁, …, dₖ, D]` for k-dimensional targets, which need `[N, D]`
/// * `linear_bias`: that of `linear_weight` without D
/// * `target`: `[N, d₁, …, dₖ]`, without N for a single row, of any integer kind, for class indices; or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * `weight`: `[C]`
/// * result: scalar, or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// # Memory
///
/// With chunks of n rows, no more than n rows of logits exist at a time. What a backward pass needs is kept, though: the
/// log-probabilities of all chunks, N · C numbers. So without gradients the peak falls from 2 N C numbers to 2 n C, and
/// with gradients from 3 N C, in the backward pass, to N C + 2 n C. PyTorch's chunks save more, because they compute the
/// gradient in the forward pass; these here can be differentiated repeatedly and twice in return.
///
/// Half precision is computed in single precision, chunk by chunk, which is as exact as it gets and takes a copy of the
/// linear weight and twice the memory per number: [`acc_dtype`](Self::acc_dtype) of the input's kind saves that.
///
/// # Reference
///
/// `torch.nn.functional.linear_cross_entropy` of PyTorch 2.13. The chunking is that of
/// `torch.nn.LinearCrossEntropyOptions`, without `acc_policy` and `allow_retain_graph`, which there is no need to choose.
///
/// # Differences from PyTorch
///
/// * Those of [`CrossEntropyLoss`].
/// * With chunks, the mean over ignored targets alone has gradient 0; PyTorch's is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a smoothing outside \[0, 1\], a chunking of
/// less than one row, an `acc_dtype` that does not fit, or an `ignore_index` with class probabilities.
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
#[derive(Debug, Default)]
#[doc(alias = "linear_cross_entropy")]
pub struct LinearCrossEntropy {
    weight: Option<Tensor>,
    ignore_index: Option<i64>,
    label_smoothing: f64,
    invalid_values: InvalidValues,
    chunking: Option<Chunking>,
    acc_dtype: Option<Kind>,
    reduction: Reduction,
}

impl LinearCrossEntropy {
    /// Linear cross entropy with PyTorch's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a weight for each class. None by default.
    pub fn weight(mut self, weight: Tensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets the class index whose targets count nothing. None by default, which is −100 for class indices; with class
    /// probabilities it must be none.
    pub fn ignore_index(mut self, ignore_index: Option<i64>) -> Self {
        self.ignore_index = ignore_index;
        self
    }

    /// Sets the share of the target, in \[0, 1\], that is spread over all classes. 0 by default.
    pub fn label_smoothing(mut self, label_smoothing: f64) -> Self {
        self.label_smoothing = label_smoothing;
        self
    }

    /// Sets what a class out of range does. [`InvalidValues::Error`] by default.
    pub fn invalid_values(mut self, invalid_values: InvalidValues) -> Self {
        self.invalid_values = invalid_values;
        self
    }

    /// Sets that the rows are taken in chunks. All at once by default.
    ///
    /// As in PyTorch it is not done, with a warning in the log, for class probabilities, a label smoothing, or a linear
    /// weight of more than two dimensions.
    #[doc(alias = "options")]
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = Some(chunking);
        self
    }

    /// Sets the kind in which chunks are computed and added up: that of the input, or `Float` for one of half precision.
    /// The wider one by default. Without chunking nothing but the kind of the input is used.
    pub fn acc_dtype(mut self, acc_dtype: Kind) -> Self {
        self.acc_dtype = Some(acc_dtype);
        self
    }

    /// Sets the reduction. [`Reduction::Mean`] by default.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

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
        check::devices(&[("input", input), ("linear_weight", linear_weight), ("target", target)])?;
        check::floating(("input", input))?;
        let sizes = Sizes::f_new(input, linear_weight)?;
        if let Some(bias) = linear_bias {
            sizes.check_bias(bias, input)?;
        }
        let probabilities = self.f_check_target(target, &sizes.logits(), sizes.batch.len())?;
        if let Some(chunking) = self.chunking {
            let rows = sizes.batch.first().copied().unwrap_or(1);
            let size = chunking.f_rows(rows, sizes.features, sizes.classes)?;
            let kind = self.f_chunk_kind(input)?;
            if probabilities || self.label_smoothing != 0.0 || !sizes.out_features.is_empty() {
                log::warn!(
                    "linear cross entropy is computed without chunking, which needs class indices, no label smoothing \
                     and a linear weight of two dimensions"
                );
            } else if rows > 0 {
                return self.f_chunks(input, linear_weight, target, linear_bias, size, kind);
            }
        }
        let logits = sizes.f_apply(input, linear_weight, linear_bias)?;
        let weight = self.weight.as_ref().map(Tensor::shallow_clone);
        self.cross_entropy(weight, self.reduction, self.invalid_values).f_forward(&logits, target)
    }

    /// Computes the loss as [`f_forward`](Self::f_forward) does.
    ///
    /// # Panics
    /// Where `f_forward` returns an error, with its message.
    #[track_caller]
    pub fn forward(
        &self,
        input: &Tensor,
        linear_weight: &Tensor,
        target: &Tensor,
        linear_bias: Option<&Tensor>,
    ) -> Tensor {
        crate::loss::expect(self.f_forward(input, linear_weight, target, linear_bias))
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
        let kind = self.acc_dtype.unwrap_or(wide);
        let expected = format!("{own:?}, the kind of input, or Float for half precision");
        check::option("acc_dtype", format!("{kind:?}"), kind == own || kind == wide, &expected)?;
        Ok(kind)
    }

    /// Whether the target holds class probabilities, once its shape is one of the two it may have.
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

    /// The loss of class indices, `size` rows at a time, computed in `kind`.
    fn f_chunks(
        &self,
        input: &Tensor,
        linear_weight: &Tensor,
        target: &Tensor,
        linear_bias: Option<&Tensor>,
        size: i64,
        kind: Kind,
    ) -> Result<Tensor, LossError> {
        let classes = linear_weight.size()[0];
        let target = ClassIndices::f_new(target, classes, Some(self.ignored()), self.invalid_values)?;
        let own = input.f_kind()?;
        // As in PyTorch: where half precision is widened, so is the layer, and else it must have the kind of the input.
        let widen = |tensor: &Tensor| if kind == own { Ok(tensor.shallow_clone()) } else { tensor.f_to_kind(kind) };
        let (linear_weight, linear_bias) = (widen(linear_weight)?, linear_bias.map(widen).transpose()?);
        let weight = self.weight.as_ref().map(|weight| weight.f_to_kind(kind)).transpose()?;
        // Checked now: no chunk needs to wait for a CUDA device to say so again.
        let mode = if input.device().is_cuda() { InvalidValues::Nan } else { InvalidValues::Error };
        let criterion = self.cross_entropy(weight, Reduction::None, mode);
        let single = input.dim() == 1;
        let rows = if single { input.f_unsqueeze(0)? } else { input.shallow_clone() };
        let indices = target.indices.f_view([-1])?;
        let count = rows.size()[0];
        let chunk = |start: i64| {
            let length = size.min(count - start);
            let rows = rows.f_narrow(0, start, length)?.f_to_kind(kind)?;
            let logits = rows.f_linear(&linear_weight, linear_bias.as_ref())?;
            criterion.f_forward(&logits, &indices.f_narrow(0, start, length)?)
        };
        let starts = (0..count).step_by(size as usize);
        let losses = Tensor::f_cat(&starts.map(chunk).collect::<Result<Vec<_>, _>>()?, 0)?;
        let losses = if single { losses.f_squeeze_dim(0)? } else { losses };
        let loss = self.f_reduce(&losses, &target.indices)?.f_to_kind(own)?;
        target.validity.f_poison(&loss, self.reduction == Reduction::None)
    }

    /// Reduces the losses of the rows as one chunk of all would.
    fn f_reduce(&self, losses: &Tensor, indices: &Tensor) -> Result<Tensor, LossError> {
        if self.reduction != Reduction::Mean {
            return self.reduction.f_apply(losses);
        }
        let kind = losses.f_kind()?;
        let counted = indices.f_ne(self.ignored())?;
        let total = match &self.weight {
            Some(weight) => weight.f_index_select(0, &indices.f_mul(&counted)?.f_view([-1])?)?.f_mul(&counted)?,
            None => counted,
        };
        Ok(losses.f_sum(None)?.f_div(&total.f_sum(kind)?)?)
    }
}

/// The sizes of a call, once those of its input and its linear weight fit together.
struct Sizes {
    /// `[N]`, or nothing for a single row.
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
            return Ok(input.f_linear(weight, bias)?);
        }
        let bias = bias.map(|bias| bias.f_flatten(0, -1)).transpose()?;
        Ok(input.f_linear(&weight.f_flatten(0, -2)?, bias)?.f_reshape(self.logits())?)
    }
}

/// The options of [`LinearCrossEntropyLoss`].
#[derive(Debug, Default)]
pub struct LinearCrossEntropyConfig {
    out_features: Vec<i64>,
    bias: bool,
    cross_entropy: LinearCrossEntropy,
}

impl LinearCrossEntropyConfig {
    /// PyTorch's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the dimensions d₁, …, dₖ of k-dimensional targets. None by default.
    pub fn out_features(mut self, out_features: &[i64]) -> Self {
        self.out_features = out_features.to_vec();
        self
    }

    /// Sets whether the linear layer has a bias. False by default.
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Sets the options of the cross entropy. Those of [`LinearCrossEntropy::new`] by default.
    pub fn cross_entropy(mut self, cross_entropy: LinearCrossEntropy) -> Self {
        self.cross_entropy = cross_entropy;
        self
    }
}

/// A linear layer and the cross entropy of its logits in one.
///
/// For the last layer of a classifier or language model. Where the layer's weights are shared with another layer choose
/// [`LinearCrossEntropy`]; where there are so many classes that a full softmax is too slow,
/// [`AdaptiveLogSoftmaxWithLoss`](crate::AdaptiveLogSoftmaxWithLoss).
///
/// # Formula
///
/// loss = [`CrossEntropyLoss`](W x + b, y)
///
/// where x is the input, y the target, and W and b are the weight and bias of the layer.
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row without d₁, …, dₖ
/// * `target`: `[N, d₁, …, dₖ]`, without N for a single row, of any integer kind, for class indices; or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * result: scalar, or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The variables on the path are `linear.weight`, `[C·d₁·…·dₖ, D]`, and `linear.bias`, `[C·d₁·…·dₖ]`: the names of
/// PyTorch's state dict. Their initial values are those of `torch.nn.Linear`.
///
/// # Reference
///
/// `torch.nn.LinearCrossEntropyLoss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// Those of [`CrossEntropyLoss`].
///
/// # Errors
///
/// Those of [`LinearCrossEntropy`].
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{LinearCrossEntropy, LinearCrossEntropyConfig, LinearCrossEntropyLoss, Loss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let cross_entropy = LinearCrossEntropy::new().label_smoothing(0.1);
/// let config = LinearCrossEntropyConfig::new().bias(true).cross_entropy(cross_entropy);
/// let criterion = LinearCrossEntropyLoss::f_new(vs.root() / "head", 16, 5, config)?;
/// assert!(vs.variables().contains_key("head.linear.weight"));
///
/// let input = Tensor::randn([3, 16], (Kind::Float, Device::Cpu));
/// let loss = criterion.f_forward(&input, &Tensor::from_slice(&[4_i64, 0, -100]))?;
/// loss.f_backward()?;
///
/// let logits = input.linear(criterion.linear_weight(), criterion.linear_bias());
/// assert_eq!(logits.size(), [3, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias = "nn.LinearCrossEntropyLoss")]
pub struct LinearCrossEntropyLoss {
    linear: Linear,
    /// Without the features.
    bias_shape: Vec<i64>,
    cross_entropy: LinearCrossEntropy,
}

impl LinearCrossEntropyLoss {
    /// Creates the variables on `path`.
    ///
    /// # Errors
    /// A [`LossError`] that names the option at fault.
    pub fn f_new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        in_features: i64,
        num_classes: i64,
        config: LinearCrossEntropyConfig,
    ) -> Result<Self, LossError> {
        let LinearCrossEntropyConfig { out_features, bias, cross_entropy } = config;
        check::option("in_features", in_features, in_features >= 0, "a number >= 0")?;
        check::option("num_classes", num_classes, num_classes >= 0, "a number >= 0")?;
        let smoothing = cross_entropy.label_smoothing;
        check::option("label_smoothing", smoothing, (0.0..=1.0).contains(&smoothing), "a number in [0, 1]")?;
        if let Some(weight) = &cross_entropy.weight {
            check::class_weight(weight, weight, num_classes)?;
        }
        let multiply = |outputs: i64, &size: &i64| outputs.checked_mul(size).filter(|_| size >= 0);
        let Some(outputs) = out_features.iter().try_fold(num_classes, multiply) else {
            let (expected, actual) = ("numbers >= 0".into(), format!("{out_features:?}"));
            return Err(LossError::Option { option: "out_features", expected, actual });
        };
        let linear = Linear::f_new(&(path.borrow() / "linear"), in_features, outputs, bias)?;
        let bias_shape = [&[num_classes], &out_features[..]].concat();
        Ok(Self { linear, bias_shape, cross_entropy })
    }

    /// Creates the variables on `path` as [`f_new`](Self::f_new) does.
    ///
    /// # Panics
    /// Where `f_new` returns an error, with its message.
    #[track_caller]
    pub fn new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        in_features: i64,
        num_classes: i64,
        config: LinearCrossEntropyConfig,
    ) -> Self {
        crate::loss::expect(Self::f_new(path, in_features, num_classes, config))
    }

    /// The weight of the layer, for logits without a loss.
    pub fn linear_weight(&self) -> &Tensor {
        &self.linear.weight
    }

    /// The bias of the layer.
    pub fn linear_bias(&self) -> Option<&Tensor> {
        self.linear.bias.as_ref()
    }
}

impl Loss for LinearCrossEntropyLoss {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let Linear { weight, bias } = &self.linear;
        let [_] = self.bias_shape[..] else {
            let weight_shape = [&self.bias_shape[..], &weight.size()[1..]].concat();
            let bias = bias.as_ref().map(|bias| bias.f_reshape(&self.bias_shape)).transpose()?;
            return self.cross_entropy.f_forward(input, &weight.f_reshape(weight_shape)?, target, bias.as_ref());
        };
        self.cross_entropy.f_forward(input, weight, target, bias.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn randn(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Int64, Device::Cpu))
    }

    /// The loss and the gradients of input, weight and bias.
    fn run(criterion: &LinearCrossEntropy, arguments: &[Tensor; 3], target: &Tensor) -> [Tensor; 4] {
        let [input, weight, bias] = arguments.each_ref().map(|x| x.detach().copy().set_requires_grad(true));
        let loss = criterion.forward(&input, &weight, target, Some(&bias));
        (&loss * Tensor::arange(loss.numel() as i64, (Kind::Double, Device::Cpu)).view_as(&loss).cos())
            .sum(None)
            .backward();
        [loss.detach(), input.grad(), weight.grad(), bias.grad()]
    }

    #[test]
    fn chunks_change_neither_value_nor_gradient() {
        let arguments = [randn(&[7, 3]), randn(&[5, 3]), randn(&[5])];
        let target = Tensor::from_slice(&[0_i64, 4, -100, 2, -100, -100, 1]);
        let weight = randn(&[5]).abs();
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            for weighted in [false, true] {
                let criterion = || {
                    let criterion = LinearCrossEntropy::new().reduction(reduction);
                    if weighted { criterion.weight(weight.copy()) } else { criterion }
                };
                let expected = run(&criterion(), &arguments, &target);
                for chunking in [1, 2, 3, 6, 7, 8].map(Chunking::Rows).into_iter().chain([Chunking::default()]) {
                    let actual = run(&criterion().chunking(chunking), &arguments, &target);
                    for (actual, expected) in actual.iter().zip(&expected) {
                        assert!(actual.allclose(expected, 1e-12, 1e-12, false), "{chunking:?} {reduction:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_of_ignored_targets_have_no_gradient() {
        let arguments = [randn(&[4, 3]), randn(&[5, 3]), randn(&[5])];
        let [loss, gradients @ ..] =
            run(&LinearCrossEntropy::new().chunking(Chunking::Rows(2)), &arguments, &(ones(&[4]) * -100));
        assert!(f64::try_from(loss).unwrap().is_nan());
        for gradient in gradients {
            assert_eq!(gradient, gradient.zeros_like());
        }
    }

    #[test]
    fn chunks_of_half_precision_are_computed_in_single_precision() {
        let input = Tensor::full([3000, 2], 10.0, (Kind::Half, Device::Cpu));
        let weight = Tensor::from_slice(&[0.0, 0.0, 3.0, 3.0]).view([2, 2]).to_kind(Kind::Half);
        let target = Tensor::zeros([3000], (Kind::Uint8, Device::Cpu));
        for size in [1000, 3000] {
            let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(size));
            let loss = criterion.forward(&input, &weight, &target, None);
            assert_eq!((loss.kind(), f64::try_from(loss).unwrap()), (Kind::Half, 60.0));
        }
        let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1000)).acc_dtype(Kind::Half);
        let losses = criterion.reduction(Reduction::None).forward(&input, &weight, &target, None);
        assert_eq!((losses.kind(), losses.size()), (Kind::Half, vec![3000]));
    }

    #[test]
    fn chunks_of_another_kind_than_the_layer_are_rejected() {
        let (input, weight) = (randn(&[2, 3]).to_kind(Kind::Float), randn(&[5, 3]));
        let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1));
        let error = criterion.f_forward(&input, &weight, &ones(&[2]), None).unwrap_err();
        assert!(error.to_string().contains("same dtype"), "{error}");
    }

    #[test]
    fn a_single_row_is_one_chunk() {
        let (input, weight) = (randn(&[3]).to_kind(Kind::BFloat16), randn(&[5, 3]).to_kind(Kind::BFloat16));
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let criterion = LinearCrossEntropy::new().weight(randn(&[5]).abs()).reduction(reduction);
            let loss = criterion.chunking(Chunking::default()).forward(&input, &weight, &ones(&[]), None);
            assert_eq!((loss.kind(), loss.dim()), (Kind::BFloat16, 0));
        }
    }

    #[test]
    fn the_aspect_ratio_is_pytorchs() {
        for (factor, rows, features, classes, expected) in
            [(1, 8192, 4096, 128_256, 256), (2, 8192, 4096, 128_256, 128), (1, 1000, 10, 100, 128), (8, 3, 4, 100, 1)]
        {
            assert_eq!(Chunking::AspectRatio(factor).f_rows(rows, features, classes).unwrap(), expected);
        }
        assert_eq!(Chunking::AspectRatio(1).f_rows(0, 0, 0).unwrap(), 1);
    }

    #[test]
    fn what_cannot_be_chunked_is_computed_at_once() {
        let (input, weight) = (randn(&[6, 3]), randn(&[5, 2, 3]));
        let target = ones(&[6, 2]);
        let whole = LinearCrossEntropy::new().forward(&input, &weight, &target, None);
        let chunked = LinearCrossEntropy::new().chunking(Chunking::Rows(2)).forward(&input, &weight, &target, None);
        assert_eq!(whole, chunked);
        let (weight, none) = (weight.select(1, 0), randn(&[0, 3]));
        let empty = LinearCrossEntropy::new().chunking(Chunking::Rows(2)).forward(&none, &weight, &ones(&[0]), None);
        assert!(f64::try_from(empty).unwrap().is_nan());
    }

    #[test]
    fn invalid_classes_are_found_or_poison() {
        let (input, weight, target) = (randn(&[4, 3]).set_requires_grad(true), randn(&[5, 3]), ones(&[4]) * 5);
        let criterion = || LinearCrossEntropy::new().chunking(Chunking::Rows(3)).weight(randn(&[5]).abs());
        let error = criterion().f_forward(&input, &weight, &target, None).unwrap_err();
        assert_eq!(error.to_string(), "target holds 5, expected classes in [0, 5), or ignore_index -100");
        let loss = criterion().invalid_values(InvalidValues::Nan).forward(&input, &weight, &target, None);
        loss.backward();
        assert!(f64::try_from(loss).unwrap().is_nan());
        assert_eq!(input.grad(), input.zeros_like());
    }

    #[test]
    fn wrong_calls_are_named() {
        type Shape = &'static [i64];
        let cases: [(Shape, Shape, Shape, Option<Shape>, &str); 9] = [
            (
                &[],
                &[5, 3],
                &[],
                None,
                "input has shape [], expected [N, 3] or [3], for the 3 features of linear_weight",
            ),
            (
                &[2, 4],
                &[5, 3],
                &[2],
                None,
                "input has shape [2, 4], expected [N, 3] or [3], for the 3 features of linear_weight",
            ),
            (
                &[2, 2, 3],
                &[5, 3],
                &[2],
                None,
                "input has shape [2, 2, 3], expected [N, 3] or [3], for the 3 features of linear_weight",
            ),
            (&[3], &[5, 4, 3], &[4], None, "input has shape [3], expected [N, 3], for the 3 features of linear_weight"),
            (&[2, 3], &[3], &[2], None, "linear_weight has shape [3], expected [C, D] or [C, d1, ..., dk, D]"),
            (
                &[2, 3],
                &[5, 3],
                &[3],
                None,
                "target has shape [3], expected [2] for class indices, or [2, 5] for class probabilities",
            ),
            (
                &[3],
                &[5, 3],
                &[1],
                None,
                "target has shape [1], expected [] for class indices, or [5] for class probabilities",
            ),
            (
                &[2, 3],
                &[5, 3],
                &[2],
                Some(&[4]),
                "linear_bias has shape [4], expected [5], that of linear_weight without its features",
            ),
            (
                &[2, 3],
                &[5, 4, 3],
                &[2, 4],
                Some(&[5]),
                "linear_bias has shape [5], expected [5, 4], that of linear_weight without its features",
            ),
        ];
        for (input, weight, target, bias, message) in cases {
            let bias = bias.map(randn);
            let result =
                LinearCrossEntropy::new().f_forward(&randn(input), &randn(weight), &ones(target), bias.as_ref());
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let (input, weight) = (randn(&[2, 3]), randn(&[5, 3]));
        for (criterion, target, message) in [
            (
                LinearCrossEntropy::new().ignore_index(Some(-1)),
                randn(&[2, 5]),
                "option ignore_index is -1, expected none with class probabilities as target",
            ),
            (
                LinearCrossEntropy::new().chunking(Chunking::Rows(0)),
                ones(&[2]),
                "option chunking is Rows(0), expected a number of rows >= 1",
            ),
            (
                LinearCrossEntropy::new().chunking(Chunking::AspectRatio(-1)),
                ones(&[2]),
                "option chunking is AspectRatio(-1), expected a factor >= 1",
            ),
            (
                LinearCrossEntropy::new().chunking(Chunking::Rows(1)).acc_dtype(Kind::Float),
                ones(&[2]),
                "option acc_dtype is Float, expected Double, the kind of input, or Float for half precision",
            ),
            (
                LinearCrossEntropy::new().label_smoothing(1.5),
                ones(&[2]),
                "option label_smoothing is 1.5, expected a number in [0, 1]",
            ),
        ] {
            assert_eq!(criterion.f_forward(&input, &weight, &target, None).unwrap_err().to_string(), message);
        }
        let vs = nn::VarStore::new(Device::Cpu);
        for config in [
            LinearCrossEntropyConfig::new().out_features(&[4, -3]),
            LinearCrossEntropyConfig::new().out_features(&[i64::MAX, 3]),
            LinearCrossEntropyConfig::new().cross_entropy(LinearCrossEntropy::new().weight(randn(&[4]))),
            LinearCrossEntropyConfig::new().cross_entropy(LinearCrossEntropy::new().label_smoothing(-0.5)),
        ] {
            LinearCrossEntropyLoss::f_new(vs.root(), 3, 5, config).unwrap_err();
        }
        assert!(vs.is_empty());
    }

    #[test]
    fn the_module_is_the_function_on_pytorchs_variables() {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let config = LinearCrossEntropyConfig::new().out_features(&[4, 2]).bias(true);
        let module = LinearCrossEntropyLoss::new(vs.root(), 3, 5, config);
        let file = std::env::temp_dir().join(format!("linear-{}.safetensors", std::process::id()));
        vs.save(&file).unwrap();
        let mut saved = Tensor::read_safetensors(&file).unwrap();
        saved.sort_by(|a, b| a.0.cmp(&b.0));
        vs.load(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        let [(bias_name, bias), (weight_name, weight)] = &saved[..] else { panic!("{saved:?}") };
        assert_eq!((bias_name.as_str(), bias.size()), ("linear.bias", vec![40]));
        assert_eq!((weight_name.as_str(), weight.size()), ("linear.weight", vec![40, 3]));
        let (input, target) = (randn(&[6, 3]).to_kind(Kind::Float), ones(&[6, 4, 2]));
        let (weight, bias) = (weight.view([5, 4, 2, 3]), bias.view([5, 4, 2]));
        let expected = LinearCrossEntropy::new().forward(&input, &weight, &target, Some(&bias));
        assert_eq!(module.forward(&input, &target), expected);
    }
}
