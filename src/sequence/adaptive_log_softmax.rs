use std::borrow::Borrow;

use tch::{Tensor, nn};

use super::Linear;
use crate::check::{self, ClassIndices};
use crate::kernels::NumberOperations;
use crate::mean_parts::f_wide;
use crate::{InvalidValues, LossError, MeanParts};

crate::options::options! {
/// The options of [`AdaptiveLogSoftmaxWithLoss`].
#[derive(Copy)]
pub struct AdaptiveLogSoftmaxConfig;

/// PyTorch's defaults.
new {
    /// by what the number of features is divided from one cluster to the next.
    div_value: f64 = 4.0,
    /// whether the head has a bias.
    head_bias: bool = false,
}
}

/// What [`AdaptiveLogSoftmaxWithLoss`] computes.
#[derive(Debug)]
pub struct AdaptiveLogSoftmaxOutput {
    /// The log-probability of each target, of the target's shape.
    pub output: Tensor,
    /// The mean of their negatives, a scalar.
    pub loss: Tensor,
}

/// An output layer and its loss for many classes of which few are frequent: the frequent ones get the full layer, the
/// rare ones clusters of smaller and smaller ones.
///
/// For vocabularies of 10⁵ words and more, where a full softmax takes most of the time: a cluster is only computed for the
/// rows whose target is in it. The classes must be sorted by frequency, the most frequent one first. Where the full
/// softmax fits, [`LinearCrossEntropyLoss`](crate::LinearCrossEntropyLoss) is the exact loss.
///
/// # Formula
///
/// log p(c) = log h\[c\] for c < c₁, and log h\[c₁ + i\] + log tᵢ\[c − cᵢ₊₁\] for cᵢ₊₁ ≤ c < cᵢ₊₂, i = 0, 1, …
///
/// h = softmax(W x + b), tᵢ = softmax(Vᵢ Uᵢ x), loss = −(1/N) Σₙ log p(yₙ)
///
/// where c₁ < c₂ < … are the cutoffs, ended by the number of classes, W and b are the head and Uᵢ and Vᵢ the tail i, with
/// ⌊D / divⁱ⁺¹⌋ features between them.
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row
/// * `target`: `[N]`, or scalar, of any integer kind
/// * result: the target's shape for `output`, scalar for `loss`
///
/// The variables on the path are `head.weight`, `head.bias` and, for each tail, `tail.{i}.0.weight` and
/// `tail.{i}.1.weight`: the names of PyTorch's state dict. Their initial values are those of `torch.nn.Linear`.
///
/// # Reference
///
/// `torch.nn.AdaptiveLogSoftmaxWithLoss` of PyTorch 2.13; Grave et al., *Efficient softmax approximation for GPUs*, 2017.
///
/// # Differences from PyTorch
///
/// * Targets may be of any integer kind; PyTorch takes `int64` and `int32`.
/// * `predict` takes inputs `[N, D]` alone; for one with three dimensions PyTorch's looks for the maximum in a dimension
///   that holds no classes.
///
/// # Errors
///
/// [`LossError::Option`] for cutoffs that do not increase within \[1, n_classes − 1\] or a division that leaves no number
/// of features, [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit,
/// [`LossError::Value`] for a class out of range.
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
    /// The given ones and the number of classes.
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

    /// Creates the variables on `path` as [`f_new`](Self::f_new) does.
    ///
    /// # Panics
    /// Where `f_new` returns an error, with its message.
    #[track_caller]
    pub fn new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        in_features: i64,
        n_classes: i64,
        cutoffs: &[i64],
        config: AdaptiveLogSoftmaxConfig,
    ) -> Self {
        crate::loss::expect(Self::f_new(path, in_features, n_classes, cutoffs, config))
    }

    /// Computes the log-probability of each target, and the loss.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<AdaptiveLogSoftmaxOutput, LossError> {
        let wide = self.f_wide_rows(input, target)?;
        let kind = input.f_kind()?;
        Ok(AdaptiveLogSoftmaxOutput { output: wide.output.f_to_kind(kind)?, loss: wide.loss.f_to_kind(kind)? })
    }

    /// The same in single precision at least.
    fn f_wide_rows(&self, input: &Tensor, target: &Tensor) -> Result<AdaptiveLogSoftmaxOutput, LossError> {
        check::devices(&[("input", input), ("target", target), ("head.weight", &self.head.weight)])?;
        check::same_kind(("input", input), ("head.weight", &self.head.weight))?;
        let (shape, batched) = (input.size(), input.dim() == 2);
        if !(1..=2).contains(&shape.len()) || shape[shape.len() - 1] != self.in_features {
            let expected = format!("[N, {0}] or [{0}]", self.in_features);
            return Err(check::shape_error(("input", input), expected));
        }
        let rows = &shape[..shape.len() - 1];
        if target.size() != rows {
            return Err(check::shape_error(("target", target), format!("{rows:?}, one class per row of input")));
        }
        let target = ClassIndices::f_new(target, self.n_classes(), None, InvalidValues::Error)?.indices;
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

    /// Computes the log-probability of each target, and the loss, as [`f_forward`](Self::f_forward) does.
    ///
    /// # Panics
    /// Where `f_forward` returns an error, with its message.
    #[track_caller]
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> AdaptiveLogSoftmaxOutput {
        crate::loss::expect(self.f_forward(input, target))
    }

    /// Computes the log-probabilities of all classes, `[N, n_classes]`, for inputs `[N, D]`.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_log_prob(&self, input: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_rows(input)?;
        let (wide, rows) = (self.f_wide()?, f_wide(input)?);
        Ok(wide.f_full_log_prob(&rows, &wide.head.f_forward(&rows)?)?.f_to_kind(input.f_kind()?)?)
    }

    /// Computes the log-probabilities of all classes as [`f_log_prob`](Self::f_log_prob) does.
    ///
    /// # Panics
    /// Where `f_log_prob` returns an error, with its message.
    #[track_caller]
    pub fn log_prob(&self, input: &Tensor) -> Tensor {
        crate::loss::expect(self.f_log_prob(input))
    }

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

    /// Finds the most probable classes as [`f_predict`](Self::f_predict) does.
    ///
    /// # Panics
    /// Where `f_predict` returns an error, with its message.
    #[track_caller]
    pub fn predict(&self, input: &Tensor) -> Tensor {
        crate::loss::expect(self.f_predict(input))
    }

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
        // In the head a class of the shortlist stands for itself, and each cluster has one entry behind them.
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

    /// `input` has rows that the head takes.
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

/// The value of each row at its index.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::{Device, Kind};

    use super::*;
    use crate::random;

    fn criterion(vs: &nn::VarStore, config: AdaptiveLogSoftmaxConfig) -> AdaptiveLogSoftmaxWithLoss {
        AdaptiveLogSoftmaxWithLoss::new(vs.root(), 8, 10, &[3, 6], config)
    }

    fn randn(shape: &[i64]) -> Tensor {
        random::randn(shape).to_kind(Kind::Float)
    }

    #[test]
    fn a_saved_file_has_pytorchs_names_and_loads() {
        let config = AdaptiveLogSoftmaxConfig::new().div_value(2.0).head_bias(true);
        let mut vs = nn::VarStore::new(Device::Cpu);
        let first = criterion(&vs, config);
        let file = std::env::temp_dir().join(format!("adaptive-{}.safetensors", std::process::id()));
        vs.save(&file).unwrap();
        let input = randn(&[4, 8]);
        let before = first.log_prob(&input);
        let saved: BTreeMap<_, _> = Tensor::read_safetensors(&file).unwrap().into_iter().collect();
        let shapes: Vec<_> = saved.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
        let expected = [
            ("head.bias", vec![5]),
            ("head.weight", vec![5, 8]),
            ("tail.0.0.weight", vec![4, 8]),
            ("tail.0.1.weight", vec![3, 4]),
            ("tail.1.0.weight", vec![2, 8]),
            ("tail.1.1.weight", vec![4, 2]),
        ];
        assert_eq!(shapes, expected);
        tch::no_grad(|| vs.trainable_variables().iter_mut().for_each(|variable| _ = variable.zero_()));
        assert_ne!(first.log_prob(&input), before);
        vs.load(&file).unwrap();
        assert_eq!(first.log_prob(&input), before);
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn the_initial_values_are_those_of_a_linear_layer() {
        let vs = nn::VarStore::new(Device::Cpu);
        let config = AdaptiveLogSoftmaxConfig::new().head_bias(true);
        let _loss = AdaptiveLogSoftmaxWithLoss::new(vs.root(), 64, 2000, &[1000], config);
        for (name, bound) in [("head.weight", 0.125), ("head.bias", 0.125), ("tail.0.1.weight", 0.25)] {
            let largest = f64::try_from(vs.variables()[name].abs().max()).unwrap();
            assert!((0.95 * bound..=bound).contains(&largest), "{name}: {largest}");
        }
    }

    #[test]
    fn probabilities_sum_to_one_and_agree_with_the_loss_and_the_prediction() {
        let vs = nn::VarStore::new(Device::Cpu);
        let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
        let input = randn(&[40, 8]) * 20;
        let log_prob = criterion.log_prob(&input);
        let sums = log_prob.exp().sum_dim_intlist(1, false, None);
        assert!(sums.allclose(&sums.ones_like(), 1e-5, 1e-5, false));
        let target = Tensor::arange(40, (Kind::Int64, Device::Cpu)).remainder(10);
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            let AdaptiveLogSoftmaxOutput { output, loss } = criterion.forward(&input, &target.to_kind(kind));
            let picked = log_prob.gather(1, &target.unsqueeze(1), false).squeeze_dim(1);
            assert!(output.allclose(&picked, 1e-5, 1e-5, false));
            assert!(loss.allclose(&-picked.mean(None), 1e-5, 1e-5, false));
        }
        assert_eq!(criterion.predict(&input), log_prob.argmax(1, false));
    }

    #[test]
    fn single_rows_and_empty_batches_work() {
        let vs = nn::VarStore::new(Device::Cpu);
        let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
        let input = randn(&[1, 8]);
        for class in [0_i64, 4, 9] {
            let batch = criterion.forward(&input, &Tensor::from_slice(&[class]));
            let single = criterion.forward(&input.squeeze_dim(0), &Tensor::from(class));
            assert_eq!((batch.output.size(), single.output.size()), (vec![1], vec![]));
            assert_eq!(batch.output.squeeze_dim(0), single.output);
            assert_eq!(batch.loss, single.loss);
        }
        let (input, target) = (randn(&[0, 8]), Tensor::zeros([0], (Kind::Int64, Device::Cpu)));
        let empty = criterion.forward(&input, &target);
        assert_eq!(empty.output.size(), [0]);
        assert!(f64::try_from(empty.loss).unwrap().is_nan());
        assert_eq!(criterion.log_prob(&input).size(), [0, 10]);
        assert_eq!(criterion.predict(&input).size(), [0]);
    }

    #[test]
    fn wrong_calls_are_named() {
        let vs = nn::VarStore::new(Device::Cpu);
        let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
        let class = Tensor::from_slice(&[1_i64, 10]);
        for (input, target, message) in [
            (&[2, 8][..], &class, "target holds 10, expected classes in [0, 10)"),
            (&[2, 7], &class, "input has shape [2, 7], expected [N, 8] or [8]"),
            (&[2, 1, 8], &class, "input has shape [2, 1, 8], expected [N, 8] or [8]"),
            (&[3, 8], &class, "target has shape [2], expected [3], one class per row of input"),
            (&[8], &class, "target has shape [2], expected [], one class per row of input"),
            (&[2, 8], &class.to_kind(Kind::Float), "target has kind Float, expected an integer kind"),
        ] {
            assert_eq!(criterion.f_forward(&randn(input), target).unwrap_err().to_string(), message);
        }
        let error = criterion.f_log_prob(&randn(&[8])).unwrap_err();
        assert_eq!(error.to_string(), "input has shape [8], expected [N, 8]");
        criterion.f_predict(&randn(&[2, 3, 8])).unwrap_err();
    }

    #[test]
    fn wrong_options_are_named() {
        let vs = nn::VarStore::new(Device::Cpu);
        let config = AdaptiveLogSoftmaxConfig::new();
        for cutoffs in [&[][..], &[0], &[10], &[3, 3], &[6, 3]] {
            let error = AdaptiveLogSoftmaxWithLoss::f_new(vs.root(), 8, 10, cutoffs, config).unwrap_err();
            let expected = "expected at least one number, increasing, each in [1, n_classes - 1] = [1, 9]";
            assert_eq!(error.to_string(), format!("option cutoffs is {cutoffs:?}, {expected}"));
        }
        for div_value in [0.0, -2.0, f64::NAN, 1e-300] {
            let config = config.div_value(div_value);
            let error = AdaptiveLogSoftmaxWithLoss::f_new(vs.root(), 8, 10, &[3, 6], config).unwrap_err();
            assert!(error.to_string().starts_with("option div_value is "), "{error}");
        }
        assert_eq!(hidden_features(8, 0.5, 1).unwrap(), 32);
        assert_eq!(hidden_features(8, f64::INFINITY, 0).unwrap(), 0);
        assert_eq!(hidden_features(1000, 4.0, 2).unwrap(), 15);
    }
}
