mod chunks;

use tch::Tensor;

use super::purpose::Fingerprint;
use super::{Group, Reduce};
use crate::autograd::needed;
use crate::kernels::NumberOperations;
use crate::numeric::{f_linear, result_kind, wide_kind};
use crate::{Chunking, LinearCrossEntropy, LossError, Reduction, check};

/// Cross entropy whose classes are spread over ranks, for vocabularies that are too large for one device.
///
/// Each rank has the logits of its own classes: those of rank 0 come first, then those of rank 1, and so on, of any
/// number on each. No logits are sent: ranks exchange the maximum, Σ exp and the target's logit of each row. The loss is
/// [replicated](super#two-conventions-of-gradients): every rank has the whole one, and the gradient of its own logits.
///
/// # Formula
///
/// That of [`CrossEntropyLoss`](crate::CrossEntropyLoss) of class indices over all classes, and the z-loss and soft cap
/// of [`LinearCrossEntropy`], λ (log Σ exp x)² and s · tanh(x / s).
///
/// # Memory
///
/// The logits of a linear layer, n · Cᵣ numbers and as many for their gradient, are the most of it. With
/// [`chunking`](Self::chunking) only those of a chunk of rows exist at a time: see [`LinearCrossEntropy`]. A reduced loss
/// computes its gradients in the forward pass then, and sends the sum of that of the input there.
///
/// # Shapes
///
/// * `input`: `[N, Cᵣ]`, the logits of the Cᵣ classes of this rank
/// * `target`: `[N]`, indices among the classes of all ranks, the same on all ranks
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `vocab_parallel_cross_entropy` of Megatron-LM, Shoeybi et al., <https://arxiv.org/abs/1909.08053>; the numbers are
/// those of `torch.nn.functional.cross_entropy` on the logits of all ranks.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a smoothing outside \[0, 1\] or a z-loss
/// below 0, a soft cap that is not above 0 or a chunking of less than one row, [`LossError::Ranks`] for other targets on another rank, and those of [`Group::f_all_reduce`].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::distributed::{Group, VocabParallelCrossEntropy};
///
/// # let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
/// # let group = Group::new(&format!("127.0.0.1:{free}"), 0, 1, std::time::Duration::from_secs(30))?;
/// // All classes are those of this rank.
/// let logits = Tensor::from_slice(&[0.0, 3_f64.ln()]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64]);
/// let loss = VocabParallelCrossEntropy::new().f_forward(&logits, &target, &group)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? + 0.75_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias = "vocab_parallel_cross_entropy")]
#[doc(alias = "tensor parallel")]
pub struct VocabParallelCrossEntropy {
    weight: Option<Tensor>,
    ignore_index: i64,
    label_smoothing: f64,
    z_loss: f64,
    soft_cap: Option<f64>,
    chunking: Option<Chunking>,
    reduction: Reduction,
}

impl Default for VocabParallelCrossEntropy {
    fn default() -> Self {
        Self::new()
    }
}

/// The classes of this rank among those of all ranks.
#[derive(Debug, Clone, Copy)]
struct Classes {
    first: i64,
    own: i64,
    all: i64,
}

impl VocabParallelCrossEntropy {
    /// Cross entropy with PyTorch's defaults.
    pub fn new() -> Self {
        Self {
            weight: None,
            ignore_index: -100,
            label_smoothing: 0.0,
            z_loss: 0.0,
            soft_cap: None,
            chunking: None,
            reduction: Reduction::Mean,
        }
    }

    /// Sets a weight for each of the classes of all ranks. It is on the device of the input, in any floating kind.
    /// Default: none.
    pub fn weight(mut self, weight: Tensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets the class index whose targets are ignored. Default: −100.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = ignore_index;
        self
    }

    /// Sets the share of the target, in \[0, 1\], that is spread over all classes. Default: 0.
    pub fn label_smoothing(mut self, label_smoothing: f64) -> Self {
        self.label_smoothing = label_smoothing;
        self
    }

    /// Sets the factor λ of the z-loss, which keeps the logits small. Default: 0.
    pub fn z_loss(mut self, z_loss: f64) -> Self {
        self.z_loss = z_loss;
        self
    }

    /// Sets the soft cap s: logits become s · tanh(logit / s), between −s and s. Default: none.
    pub fn soft_cap(mut self, soft_cap: f64) -> Self {
        self.soft_cap = Some(soft_cap);
        self
    }

    /// Sets the number of rows of which [`f_forward_linear`](Self::f_forward_linear) has the logits at a time, the same
    /// on all ranks. [`Chunking::AspectRatio`] counts the classes of all ranks. Without it all rows are computed at once,
    /// which is the default.
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = Some(chunking);
        self
    }

    /// Sets the reduction. Default: the mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Computes the loss, with a graph where the input requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault, or what became of the group.
    pub fn f_forward(&self, input: &Tensor, target: &Tensor, group: &Group) -> Result<Tensor, LossError> {
        let group = &self.group(group);
        let target = group.f_or_refuse(self.f_check(input, target))?;
        let (classes, _) = f_classes(input.size()[1], &target, false, group)?;
        self.f_of_classes(input, &target, classes, group)
    }

    /// The loss of checked logits.
    fn f_of_classes(
        &self,
        input: &Tensor,
        target: &Tensor,
        classes: Classes,
        group: &Group,
    ) -> Result<Tensor, LossError> {
        // From here on every rank has the same error.
        let ignored = target.f_eq_number(self.ignore_index)?;
        f_check_range(target, &ignored, classes.all)?;
        check::class_weight(self.weight.as_ref(), input, classes.all)?;
        let kind = wide_kind(input)?;
        let weight = self.weight.as_ref().map(|weight| weight.f_detach()?.f_to_kind(kind)).transpose()?;
        let logits = self.f_cap(input.f_to_kind(kind)?)?;
        let rows = f_rows(&logits, target, &ignored, weight.as_ref(), classes, group)?;
        let loss =
            self.f_reduce(&rows, &target.f_masked_fill_number(&ignored, 0)?, &ignored, weight.as_ref(), classes)?;
        Ok(loss.f_to_kind(result_kind(input)?)?)
    }

    /// Computes the loss of the logits of a linear layer whose rows are spread over ranks: `input` `[N, D]` is the same
    /// on all ranks, `linear_weight` `[Cᵣ, D]` and `linear_bias` `[Cᵣ]` are those of the classes of this rank. The
    /// gradient of the input is that of the whole layer, on every rank.
    ///
    /// With [`chunking`](Self::chunking) the gradient cannot be differentiated itself.
    ///
    /// # Errors
    /// As [`f_forward`](Self::f_forward).
    pub fn f_forward_linear(
        &self,
        input: &Tensor,
        linear_weight: &Tensor,
        target: &Tensor,
        linear_bias: Option<&Tensor>,
        group: &Group,
    ) -> Result<Tensor, LossError> {
        let group = &self.group(group);
        group.f_or_refuse(f_check_layer(input, linear_weight, linear_bias))?;
        let target = group.f_or_refuse(self.f_check(input, target))?;
        if let Some(chunking) = self.chunking {
            // All ranks have as many rows, or else other targets.
            return self.f_in_chunks([input, linear_weight, &target], linear_bias, chunking, group);
        }
        // A rank whose input needs no gradient would not sum it up.
        let (classes, call) = f_classes(linear_weight.size()[0], &target, needed(&[input])[0], group)?;
        let logits = f_linear(&group.f_copy_of(input, call)?, linear_weight, linear_bias);
        self.f_of_classes(&group.f_or_refuse(logits)?, &target, classes, group)
    }

    /// The group for this loss.
    fn group(&self, group: &Group) -> Group {
        group.of_loss(Some(format!("{self:?}")), |replace| drop(self.weight.as_ref().map(replace)))
    }

    /// The logits with their soft cap.
    fn f_cap(&self, logits: Tensor) -> Result<Tensor, LossError> {
        match self.soft_cap {
            Some(cap) => Ok(logits.f_div_number(cap)?.f_tanh()?.f_mul_number(cap)?),
            None => Ok(logits),
        }
    }

    /// The same loss of one process.
    fn whole(&self) -> LinearCrossEntropy {
        let whole = LinearCrossEntropy::new()
            .ignore_index(Some(self.ignore_index))
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .reduction(self.reduction);
        let whole = match self.soft_cap {
            Some(cap) => whole.soft_cap(cap),
            None => whole,
        };
        match &self.weight {
            Some(weight) => whole.weight(weight.shallow_clone()),
            None => whole,
        }
    }

    /// The checks of this rank. Returns the target as 64-bit integers.
    fn f_check(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::shape(("input", input), input.dim() == 2, "[N, C], the logits of the classes of this rank")?;
        let rows = input.size()[0];
        check::shape(("target", target), target.size() == [rows], format_args!("[{rows}], one class for each row"))?;
        self.whole().f_check_options()?;
        check::integers(("target", target))
    }

    /// The loss of `rows`; `target` is a class where it is `ignored`, too.
    fn f_reduce(
        &self,
        rows: &Rows,
        target: &Tensor,
        ignored: &Tensor,
        weight: Option<&Tensor>,
        classes: Classes,
    ) -> Result<Tensor, LossError> {
        let counted = ignored.f_logical_not()?.f_to_kind(rows.log_sum.f_kind()?)?;
        let weights = match weight {
            Some(weight) => weight.f_index_select(0, target)?.f_mul(&counted)?,
            None => counted.shallow_clone(),
        };
        let entropy = rows.log_sum.f_sub(&rows.of_target)?.f_masked_fill_number(ignored, 0)?;
        let mut losses = entropy.f_mul(&weights)?;
        if self.label_smoothing > 0.0 {
            let smooth = rows.log_sum.f_mul(&rows.weights)?.f_sub(&rows.of_all)?.f_masked_fill_number(ignored, 0)?;
            let share = self.label_smoothing;
            losses = losses.f_mul_number(1.0 - share)?.f_add(&smooth.f_mul_number(share / classes.all as f64)?)?;
        }
        let z = match self.z_loss {
            0.0 => None,
            factor => {
                let log_sum = rows.log_sum.f_add(&rows.maximum)?;
                Some(log_sum.f_square()?.f_masked_fill_number(ignored, 0)?.f_mul_number(factor)?)
            }
        };
        let add = |loss: Tensor, z: Option<Tensor>| match z {
            Some(z) => loss.f_add(&z),
            None => Ok(loss),
        };
        let sum = |losses: &Tensor| losses.f_sum(None);
        Ok(match self.reduction {
            Reduction::None => add(losses, z)?,
            Reduction::Sum => add(sum(&losses)?, z.as_ref().map(sum).transpose()?)?,
            Reduction::Mean => {
                let z = z.map(|z| sum(&z)?.f_div(&sum(&counted)?)).transpose()?;
                add(sum(&losses)?.f_div(&sum(&weights)?)?, z)?
            }
        })
    }
}

/// What ranks know of the rows after they have exchanged it. The maximum has been subtracted from the logits.
struct Rows {
    maximum: Tensor,
    /// log Σ exp
    log_sum: Tensor,
    /// The logit of the target.
    of_target: Tensor,
    /// The sum of the logits, each times the weight of its class.
    of_all: Tensor,
    /// The sum of the weights of all classes.
    weights: Tensor,
}

fn f_rows(
    input: &Tensor,
    target: &Tensor,
    ignored: &Tensor,
    weight: Option<&Tensor>,
    classes: Classes,
    group: &Group,
) -> Result<Rows, LossError> {
    let (rows, options) = (input.size()[0], (input.f_kind()?, input.device()));
    let own_maximum = match classes.own {
        0 => Tensor::f_full_number(&[rows], f64::NEG_INFINITY, options)?,
        _ => input.f_detach()?.f_amax([1_i64].as_slice(), false)?,
    };
    // The loss does not depend on it, so that it needs no gradient.
    let maximum = group.f_all_reduce(&own_maximum, Reduce::Max)?;
    let mut shifted = input.f_sub(&maximum.f_unsqueeze(1)?)?;
    // Where a row does not count its gradient is 0, also if its logits are not finite.
    let _ = shifted.f_masked_fill_number_(&ignored.f_unsqueeze(1)?, 0)?;
    let maximum = maximum.f_masked_fill_number(ignored, 0)?;
    let place = target.f_sub_number(classes.first)?;
    let outside = place.f_lt_number(0)?.f_logical_or(&place.f_ge_number(classes.own)?)?;
    let of_target = match classes.own {
        // So that every rank has a graph.
        0 => shifted.f_sum_dim_intlist(1, false, None)?,
        _ => {
            let place = place.f_masked_fill_number(&outside, 0)?.f_unsqueeze(1)?;
            shifted.f_gather(1, &place, false)?.f_squeeze_dim(1)?.f_masked_fill_number(&outside, 0)?
        }
    };
    let own_weight = weight.map(|weight| weight.f_narrow(0, classes.first, classes.own)).transpose()?;
    let weighted = match &own_weight {
        Some(weight) => shifted.f_mul(weight)?,
        None => shifted.shallow_clone(),
    };
    let row_sum = |numbers: &Tensor| numbers.f_sum_dim_intlist(1, false, None);
    let own = [row_sum(&shifted.f_exp()?)?, of_target, row_sum(&weighted)?];
    let sums = group.f_sum_replicated(&Tensor::f_stack(&own, 0)?)?;
    let weights = match weight {
        Some(weight) => weight.f_sum(None)?,
        None => Tensor::f_full_number(&[], classes.all, options)?,
    };
    let [sum, of_target, of_all] = [0, 1, 2].map(|row| sums.f_select(0, row));
    Ok(Rows { maximum, log_sum: sum?.f_log()?, of_target: of_target?, of_all: of_all?, weights })
}

/// The places of the classes, where all ranks have the same targets, and the number of the call. `differentiable` tells
/// the other ranks whether a gradient will be summed up.
fn f_classes(own: i64, target: &Tensor, differentiable: bool, group: &Group) -> Result<(Classes, u64), LossError> {
    let mut print = Fingerprint::new();
    check::host_integers(target)?.iter().for_each(|class| print.add(&class.to_le_bytes()));
    let known = Tensor::f_from_slice(&[own, print.value()])?.f_unsqueeze(0)?;
    let gathered = group.f_gathered(&known, differentiable)?;
    let known = check::host_integers(&Tensor::f_cat(&gathered.parts, 0)?)?;
    let (counts, prints): (Vec<i64>, Vec<i64>) = known.chunks_exact(2).map(|rank| (rank[0], rank[1])).unzip();
    if let Some(rank) = prints.iter().position(|print| *print != prints[0]) {
        let asked = format!("rank {rank} has other targets than rank 0");
        return Err(LossError::Ranks { asked });
    }
    let classes = Classes { first: counts[..group.rank()].iter().sum(), own, all: counts.iter().sum() };
    Ok((classes, gathered.call))
}

fn f_check_range(target: &Tensor, ignored: &Tensor, classes: i64) -> Result<(), LossError> {
    let outside = target.f_lt_number(0)?.f_logical_or(&target.f_ge_number(classes)?)?;
    let outside = outside.f_logical_and(&ignored.f_logical_not()?)?.f_nonzero()?;
    if outside.numel() == 0 {
        return Ok(());
    }
    let actual = target.f_int64_value(&[outside.f_int64_value(&[0, 0])?])?.to_string();
    Err(LossError::Value { argument: "target", expected: format!("classes in [0, {classes})"), actual })
}

fn f_check_layer(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(), LossError> {
    check::devices(&[("input", input), ("linear_weight", weight)])?;
    check::floating(("input", input))?;
    check::same_kind(("linear_weight", weight), ("input", input))?;
    check::shape(("input", input), input.dim() == 2, "[N, D]")?;
    let features = input.size()[1];
    let fits = matches!(weight.size()[..], [_, columns] if columns == features);
    check::shape(("linear_weight", weight), fits, format_args!("[C, {features}], the features of input"))?;
    let Some(bias) = bias else { return Ok(()) };
    check::devices(&[("input", input), ("linear_bias", bias)])?;
    check::same_kind(("linear_bias", bias), ("input", input))?;
    let classes = weight.size()[0];
    check::shape(("linear_bias", bias), bias.size() == [classes], format_args!("[{classes}], one for each class"))
}
