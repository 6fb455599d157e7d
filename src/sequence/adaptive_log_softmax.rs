#[cfg(test)]
mod tests;

use std::borrow::Borrow;

use tch::{Tensor, nn};

use super::Linear;
use crate::check::{self, ClassIndices};
use crate::kernels::NumberOperations;
use crate::mean_parts::f_wide;
use crate::numeric::result_kind;
use crate::{InvalidValues, LossError, MeanParts};

crate::options::options! {
/// The options of [`AdaptiveLogSoftmaxWithLoss`].
#[derive(Copy)]
pub struct AdaptiveLogSoftmaxConfig;

/// PyTorch's defaults.
new {
    /// the number that the features are divided by from one cluster to the next.
    div_value: f64 = 4.0,
    /// whether the head has a bias.
    head_bias: bool = false,
}
}

/// What [`AdaptiveLogSoftmaxWithLoss`] computes.
#[derive(Debug)]
#[non_exhaustive]
pub struct AdaptiveLogSoftmaxOutput {
    /// The log-probability of each target, of the target's shape.
    pub output: Tensor,
    /// The loss: the mean of the negative log-probabilities, a scalar.
    pub loss: Tensor,
}

/// Adaptive log-softmax: an output layer and its loss for many classes of which few are frequent. The frequent classes
/// get the full layer, the rare ones are grouped into clusters with smaller and smaller layers.
///
/// For vocabularies of 10⁵ words and more, where a full softmax takes most of the time: a cluster is only computed for
/// the rows whose target is in it. The classes must be sorted by frequency, the most frequent one first. Where the full
/// softmax fits, [`LinearCrossEntropyLoss`](crate::LinearCrossEntropyLoss) is the exact loss.
///
/// # Formula
///
/// log p(c) = log h\[c\] for c < c₁, and log h\[c₁ + i\] + log tᵢ\[c − cᵢ₊₁\] for cᵢ₊₁ ≤ c < cᵢ₊₂, i = 0, 1, …
///
/// h = softmax(W x + b), tᵢ = softmax(Vᵢ Uᵢ x), loss = −(1/N) Σₙ log p(yₙ)
///
/// where c₁ < c₂ < … are the cutoffs, ended by the number of classes, W and b are the head and Uᵢ and Vᵢ the tail i,
/// with ⌊D / divⁱ⁺¹⌋ features between them.
///
#[doc = include_str!("../../docs/book/src/gallery/adaptive_log_softmax.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row
/// * `target`: `[N]`, or scalar, of any integer kind
/// * result: `[N]`, or scalar for a single row, for `output`; scalar for `loss`
///
/// The variables on the path are `head.weight`, `head.bias` and, for each tail, `tail.{i}.0.weight` and
/// `tail.{i}.1.weight`: the names of PyTorch's state dict. Their initial values are those of `torch.nn.Linear`.
///
/// # Reference
///
/// `torch.nn.AdaptiveLogSoftmaxWithLoss` of PyTorch 2.13; Grave et al., *Efficient softmax approximation for GPUs*,
/// 2017.
///
/// # Differences from PyTorch
///
/// * Targets may be of any integer kind; PyTorch takes `int64` and `int32`.
/// * `predict` takes inputs `[N, D]` alone; for an input with three dimensions PyTorch's takes the maximum over a
///   dimension other than the classes.
///
/// # Errors
///
/// [`LossError::Option`] for cutoffs that do not increase within \[1, n_classes − 1\] or a division that leaves no
/// number of features, [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not
/// fit, [`LossError::Value`] for a class out of range.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let config = AdaptiveLogSoftmaxConfig::new().div_value(2.0);
/// let criterion = AdaptiveLogSoftmaxWithLoss::f_new(vs.root(), 16, 1000, &[10, 100], config)?;
///
/// let input = Tensor::randn([4, 16], (Kind::Float, Device::Cpu));
/// let target = Tensor::from_slice(&[3_i64, 50, 999, 0]);
/// let result = criterion.f_forward(&input, &target)?;
/// result.loss.f_backward()?;
/// assert_eq!(result.output.size(), [4]);
///
/// let log_prob = criterion.f_log_prob(&input)?;
/// let picked = log_prob.gather(1, &target.unsqueeze(1), false).squeeze_dim(1);
/// assert!(picked.allclose(&result.output, 1e-5, 1e-5, false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Example: weights from PyTorch
///
/// ```
/// use tch::{Device, nn};
/// use tch_losses::{AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss};
///
/// // In Python: safetensors.torch.save_file(criterion.state_dict(), "softmax.safetensors")
/// let mut vs = nn::VarStore::new(Device::Cpu);
/// let criterion = AdaptiveLogSoftmaxWithLoss::new(vs.root(), 16, 1000, &[10, 100], AdaptiveLogSoftmaxConfig::new());
/// # let path = std::env::temp_dir().join(format!("adaptive-doc-{}.safetensors", std::process::id()));
/// # vs.save(&path)?;
/// # let file = path.clone();
/// # #[cfg(any())]
/// let file = "softmax.safetensors";
/// vs.load(file)?;
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[doc(alias = "nn.AdaptiveLogSoftmaxWithLoss")]
#[doc(alias = "adaptive_log_softmax_with_loss")]
#[must_use]
pub struct AdaptiveLogSoftmaxWithLoss {
    in_features: i64,
    /// The given cutoffs, followed by the number of classes.
    cutoffs: Vec<i64>,
    head: Linear,
    tail: Vec<[Linear; 2]>,
}

impl AdaptiveLogSoftmaxWithLoss {
    /// Creates the variables on `path`, for classes that are split at `cutoffs`.
    ///
    /// # Errors
    /// A [`LossError`] that names the option at fault.
    pub fn f_new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        in_features: i64,
        n_classes: i64,
        cutoffs: &[i64],
        config: AdaptiveLogSoftmaxConfig,
    ) -> Result<Self, LossError> {
        check::option("in_features", in_features, in_features >= 0, "a number >= 0")?;
        let mut cutoffs = cutoffs.to_vec();
        let increasing = cutoffs.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = cutoffs.iter().all(|&cutoff| 0 < cutoff && cutoff < n_classes);
        if cutoffs.is_empty() || !increasing || !inside {
            let expected =
                format!("at least one number, increasing, each in [1, n_classes - 1] = [1, {}]", n_classes - 1);
            return Err(LossError::Option { option: "cutoffs", expected, actual: format!("{cutoffs:?}") });
        }
        let path = path.borrow();
        let head_size = cutoffs[0] + cutoffs.len() as i64;
        let head = Linear::f_new(&(path / "head"), in_features, head_size, config.head_bias)?;
        cutoffs.push(n_classes);
        let tail = cutoffs.windows(2).enumerate().map(|(i, cluster)| {
            let path = path / "tail" / i;
            let hidden = hidden_features(in_features, config.div_value, i)?;
            let projection = Linear::f_new(&(&path / 0), in_features, hidden, false)?;
            let classes = Linear::f_new(&(&path / 1), hidden, cluster[1] - cluster[0], false)?;
            Ok([projection, classes])
        });
        let tail = tail.collect::<Result<_, LossError>>()?;
        Ok(Self { in_features, cutoffs, head, tail })
    }

    crate::loss::or_panic! { "Creates the variables on `path`", new['a] as new f_new(
        path: impl Borrow<nn::Path<'a>>, in_features: i64, n_classes: i64, cutoffs: &[i64],
        config: AdaptiveLogSoftmaxConfig
    ) -> Self }

    /// Computes the log-probability of each target, and the loss.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<AdaptiveLogSoftmaxOutput, LossError> {
        let wide = self.f_wide_rows(input, target)?;
        let kind = result_kind(input)?;
        Ok(AdaptiveLogSoftmaxOutput { output: wide.output.f_to_kind(kind)?, loss: wide.loss.f_to_kind(kind)? })
    }

    /// The same in single precision at least.
    fn f_wide_rows(&self, input: &Tensor, target: &Tensor) -> Result<AdaptiveLogSoftmaxOutput, LossError> {
        check::devices(&[("input", input), ("target", target), ("head.weight", &self.head.weight)])?;
        check::same_kind(("input", input), ("head.weight", &self.head.weight))?;
        let (shape, batched) = (input.size(), input.dim() == 2);
        let fits = (1..=2).contains(&shape.len()) && shape[shape.len() - 1] == self.in_features;
        check::shape(("input", input), fits, format_args!("[N, {0}] or [{0}]", self.in_features))?;
        let rows = &shape[..shape.len() - 1];
        check::shape(("target", target), target.size() == rows, format_args!("{rows:?}, one class per row of input"))?;
        // To choose the rows of a cluster waits for the device anyway.
        let target = ClassIndices::f_new(target, self.n_classes(), None, InvalidValues::ErrorAtOnce)?.indices;
        let (wide, input) = (self.f_wide()?, f_wide(input)?);
        if batched {
            return wide.f_batch(&input, &target);
        }
        let AdaptiveLogSoftmaxOutput { output, loss } =
            wide.f_batch(&input.f_unsqueeze(0)?, &target.f_unsqueeze(0)?)?;
        Ok(AdaptiveLogSoftmaxOutput { output: output.f_squeeze_dim(0)?, loss })
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        MeanParts::f_of_losses(&self.f_wide_rows(input, target)?.output.f_neg()?)
    }

    crate::loss::or_panic! { "Computes the log-probability of each target, and the loss,", forward[] as
    f_forward(input: &Tensor, target: &Tensor) -> AdaptiveLogSoftmaxOutput }

    /// Computes the log-probabilities of all classes, `[N, n_classes]`, for inputs `[N, D]`.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_log_prob(&self, input: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_rows(input)?;
        let (wide, rows) = (self.f_wide()?, f_wide(input)?);
        Ok(wide.f_full_log_prob(&rows, &wide.head.f_forward(&rows)?)?.f_to_kind(result_kind(input)?)?)
    }

    crate::loss::or_panic! { "Computes the log-probabilities of all classes", log_prob[] as
    f_log_prob(input: &Tensor) -> Tensor }

    /// Finds the most probable class of each row, `[N]`, for inputs `[N, D]`. Clusters are computed only where the head
    /// alone does not decide.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_predict(&self, input: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_rows(input)?;
        let (wide, input) = (self.f_wide()?, f_wide(input)?);
        let head = wide.head.f_forward(&input)?;
        let mut best = head.f_argmax(1, false)?;
        let undecided = best.f_ge_number(self.cutoffs[0])?;
        if undecided.f_any()?.f_int64_value(&[])? == 0 {
            return Ok(best);
        }
        if undecided.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(wide.f_full_log_prob(&input, &head)?.f_argmax(1, false)?);
        }
        let rows = undecided.f_nonzero()?.f_squeeze_dim(1)?;
        let log_prob = wide.f_full_log_prob(&input.f_index_select(0, &rows)?, &head.f_index_select(0, &rows)?)?;
        Ok(best.f_index_copy_(0, &rows, &log_prob.f_argmax(1, false)?)?)
    }

    crate::loss::or_panic!("Finds the most probable classes", predict[] as f_predict(input: &Tensor) -> Tensor);

    /// The same layers, in single precision at least.
    fn f_wide(&self) -> Result<Self, LossError> {
        let tail = self.tail.iter().map(|[projection, classes]| Ok([projection.f_wide()?, classes.f_wide()?]));
        Ok(Self {
            in_features: self.in_features,
            cutoffs: self.cutoffs.clone(),
            head: self.head.f_wide()?,
            tail: tail.collect::<Result<_, LossError>>()?,
        })
    }

    fn n_classes(&self) -> i64 {
        self.cutoffs[self.cutoffs.len() - 1]
    }

    fn f_batch(&self, input: &Tensor, target: &Tensor) -> Result<AdaptiveLogSoftmaxOutput, LossError> {
        let mut output = input.f_new_zeros(target.size(), (input.f_kind()?, input.device()))?;
        // The head has one entry for each of the frequent classes, followed by one entry for each cluster.
        let mut head_index = target.shallow_clone();
        for (i, [projection, classes]) in self.tail.iter().enumerate() {
            let (low, high) = (self.cutoffs[i], self.cutoffs[i + 1]);
            let inside = target.f_ge_number(low)?.f_logical_and(&target.f_lt_number(high)?)?;
            let rows = inside.f_nonzero()?.f_squeeze_dim(1)?;
            if rows.numel() == 0 {
                continue;
            }
            let relative = target.f_index_select(0, &rows)?.f_sub_number(low)?;
            let logits = classes.f_forward(&projection.f_forward(&input.f_index_select(0, &rows)?)?)?;
            head_index = head_index.f_index_fill_number(0, &rows, self.cutoffs[0] + i as i64)?;
            output = output.f_index_copy_(0, &rows, &f_pick(&logits.f_log_softmax(1, None)?, &relative)?)?;
        }
        let head = self.head.f_forward(input)?.f_log_softmax(1, None)?;
        output = output.f_add_(&f_pick(&head, &head_index)?)?;
        let loss = output.f_neg()?.f_mean(None)?;
        Ok(AdaptiveLogSoftmaxOutput { output, loss })
    }

    /// Checks that `input` has rows with as many features as the head takes.
    fn f_check_rows(&self, input: &Tensor) -> Result<(), LossError> {
        check::devices(&[("input", input), ("head.weight", &self.head.weight)])?;
        check::same_kind(("input", input), ("head.weight", &self.head.weight))?;
        match input.size()[..] {
            [_, features] if features == self.in_features => Ok(()),
            _ => Err(check::shape_error(("input", input), format!("[N, {}]", self.in_features))),
        }
    }

    fn f_full_log_prob(&self, input: &Tensor, head: &Tensor) -> Result<Tensor, LossError> {
        let shortlist = self.cutoffs[0];
        let options = (input.f_kind()?, input.device());
        let full = input.f_new_empty([input.size()[0], self.n_classes()], options)?;
        let head = head.f_log_softmax(1, None)?;
        full.f_narrow(1, 0, shortlist)?.f_copy_(&head.f_narrow(1, 0, shortlist)?)?;
        for (i, [projection, classes]) in self.tail.iter().enumerate() {
            let (low, high) = (self.cutoffs[i], self.cutoffs[i + 1]);
            let cluster = classes.f_forward(&projection.f_forward(input)?)?.f_log_softmax(1, None)?;
            let log_prob = cluster.f_add(&head.f_narrow(1, shortlist + i as i64, 1)?)?;
            full.f_narrow(1, low, high - low)?.f_copy_(&log_prob)?;
        }
        Ok(full)
    }
}

/// For each row the value at its index.
fn f_pick(rows: &Tensor, index: &Tensor) -> Result<Tensor, LossError> {
    Ok(rows.f_gather(1, &index.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?)
}

/// ⌊in_features / div_value^(cluster + 1)⌋, rounded as Python's `//` rounds.
fn hidden_features(in_features: i64, div_value: f64, cluster: usize) -> Result<i64, LossError> {
    let (features, divisor) = (in_features as f64, div_value.powf(cluster as f64 + 1.0));
    let hidden = (features - features % divisor) / divisor;
    let valid = div_value > 0.0 && (0.0..=i64::MAX as f64).contains(&hidden);
    check::option("div_value", div_value, valid, "a number > 0 that leaves a number of features")?;
    Ok(hidden.round() as i64)
}
