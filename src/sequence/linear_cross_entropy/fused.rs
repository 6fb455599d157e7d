//! Linear cross entropy in chunks of rows: the logits of one chunk at a time, with their gradient.

use std::sync::Arc;

use tch::{Kind, Tensor, no_grad};

use super::row_loss::{PerRow, RowLoss, RowTarget, UncheckedTargets};
use super::shard::ClassShard;
use super::{Arguments, LinearCrossEntropy};
use crate::autograd::{
    Context, Function, Gradients, Stored, StoredGradients, autocast_kind, f_gradients_of, needed, spread,
    with_autocast_to, without_autocast,
};
use crate::kernels::{Note, NumberOperations, small_work, waits};
use crate::numeric::{f_filled, f_times, multiplications};
use crate::{LossError, Reduction};

/// How a loss is computed.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) criterion: LinearCrossEntropy,
    /// The number of rows in a chunk.
    pub(super) size: i64,
    /// The kind of the computation.
    pub(super) kind: Kind,
    /// Where other processes have other classes of the layer. Their number of rows is the same.
    pub(super) shard: Option<Arc<dyn ClassShard>>,
    /// Whether class indices are unchecked, and what is to be noted of other ones then.
    pub(super) unchecked: Option<Option<Note>>,
}

/// The loss by this plan, in the kind `result`. Class indices are 64-bit and, but for what the plan says, valid.
///
/// A reduced loss computes its gradient at once. That of an unreduced one depends on the derivative of each row, so the
/// backward pass computes the logits again. It does so in f16, too, in which a gradient that is rounded before it is
/// scaled may underflow. The kinds are those of the plan: autocast chooses none.
pub(super) fn f_loss(plan: Plan, arguments: &Arguments, result: Kind) -> Result<Tensor, LossError> {
    let reduction = plan.criterion.reduction;
    let inputs = arguments.differentiable();
    let needed = needed(&inputs);
    let gradient = needed.contains(&true);
    let at_once = reduction != Reduction::None && plan.kind != Kind::Half;
    let (device, autocast) = (arguments.input.device(), autocast_kind(arguments.input)?);
    let compute = || {
        let chunks = Chunks::f_new(&plan, arguments)?;
        let reducer = chunks.f_reducer(reduction)?;
        let derivatives = if gradient && at_once { Some(reducer.f_derivatives()?) } else { None };
        let (losses, gradients) = chunks.f_run(derivatives.as_ref(), &needed)?;
        // Of a loss of its own no other row is told.
        let valid = chunks.loss.unchecked.filter(|_| reduction != Reduction::None).map(|unchecked| unchecked.valid);
        Ok::<_, LossError>((reducer.f_reduce(&losses, arguments, result)?, gradients, valid))
    };
    let (loss, gradients, valid) = without_autocast(device, || no_grad(compute))?;
    if !gradient {
        return Ok(loss);
    }
    let saved: Vec<&Tensor> = inputs.iter().copied().chain([arguments.target]).collect();
    let stored = at_once.then(|| StoredGradients::new(gradients));
    let mut function = Function::new(&inputs).save(&saved);
    if plan.shard.is_some() {
        // The logits of the classes of other processes are not here.
        function = function.once_differentiable();
    }
    function.f_attach_one(loss, move |context| {
        let Some(grad) = context.grad(0) else { return Ok(spread(vec![], &needed)) };
        let chunked = || {
            let factor = no_grad(|| f_times(&grad, valid.as_ref()))?;
            match &stored {
                Some(stored) => stored.f_scaled(&context, &factor),
                None => without_autocast(device, || no_grad(|| f_recompute(&plan, &context, &factor, &needed))),
            }
        };
        let whole = |saved: &[Tensor]| {
            with_autocast_to(device, autocast, || plan.criterion.f_whole(&Arguments::of(saved), result))
        };
        context.f_gradients(&chunked, &|| f_gradients_of(&whole, &grad, context.saved(), &needed))
    })
}

/// The gradients that a forward pass cannot know, chunk by chunk.
fn f_recompute(plan: &Plan, context: &Context, grad: &Tensor, needed: &[bool]) -> Gradients {
    let chunks = Chunks::f_new(plan, &Arguments::of(context.saved()))?;
    let grad = grad.f_to_kind(chunks.sums)?;
    let derivatives = match plan.criterion.reduction {
        Reduction::None => {
            let derivative = f_filled(&chunks.f_of_rows(&grad)?, chunks.target.ignored(), 0)?;
            PerRow { z: derivative.shallow_clone(), entropy: derivative }
        }
        reduction => chunks.f_reducer(reduction)?.f_derivatives()?.f_map(|of| Ok(of.f_mul(&grad)?))?,
    };
    let gradients = chunks.f_run(Some(&derivatives), needed)?.1.into_iter();
    let convert = |stored: Stored| stored.gradient.f_to_kind(stored.kind);
    gradients.map(|stored| Ok(stored.map(convert).transpose()?)).collect()
}

/// Everything that the chunks share. With k-dimensional targets each row has K = d₁·…·dₖ targets, each with its own
/// classes and weights, called places here; otherwise K = 1.
struct Chunks {
    loss: RowLoss,
    /// `[N, D]`
    input: Tensor,
    /// `[C, K, D]`, in the kind of the computation.
    weight: Tensor,
    /// `[C, K]`, in the kind of the computation.
    bias: Option<Tensor>,
    /// `[N, K]`, or `[N, C, K]` for class probabilities.
    target: RowTarget,
    /// The shapes and kinds of the gradients that are returned.
    forms: Vec<(Vec<i64>, Kind)>,
    size: i64,
    kind: Kind,
    /// The kind of losses and sums, `Float` at least.
    sums: Kind,
}

impl Chunks {
    fn f_new(plan: &Plan, arguments: &Arguments) -> Result<Chunks, LossError> {
        let Plan { criterion, size, kind, shard, unchecked } = plan;
        let (size, kind) = (*size, *kind);
        let (weight, target) = (arguments.linear_weight, arguments.target);
        let (classes, features) = (weight.size()[0], *weight.size().last().unwrap_or(&0));
        // libtorch cannot tell how many rows of no features there are.
        let rows = arguments.input.size().iter().rev().skip(1).product();
        let input = arguments.input.f_detach()?.f_reshape([rows, features])?;
        let places = weight.size()[1..weight.dim() - 1].iter().product::<i64>();
        let target = if target.is_floating_point() {
            RowTarget::Probabilities(target.f_detach()?.f_reshape([rows, classes, places])?)
        } else {
            let indices = target.f_reshape([rows, places])?;
            let ignored = indices.f_eq_number(criterion.ignored())?;
            // On the CPU a test finds out whether any row is ignored, which saves work if none is.
            let none = !waits(&ignored) && ignored.f_any()?.f_int64_value(&[])? == 0;
            let ignored = (!none).then_some(ignored);
            // A kernel tells itself which ones are ignored.
            let filled = ignored.as_ref().filter(|_| unchecked.is_none());
            RowTarget::Indices { classes: f_filled(&indices, filled, 0)?, ignored }
        };
        let sums = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
        let bias = arguments.linear_bias;
        let mut loss = criterion.f_row_loss(sums)?.of_shard(shard.clone());
        if let Some(note) = unchecked {
            let options = (sums, input.device());
            loss.unchecked = Some(UncheckedTargets::f_new(criterion.ignored(), note.as_ref(), options)?);
        }
        let form = |tensor: &Tensor| Ok::<_, LossError>((tensor.size(), tensor.f_kind()?));
        Ok(Chunks {
            loss,
            input,
            weight: weight.f_detach()?.f_to_kind(kind)?.f_reshape([classes, places, features])?,
            bias: bias.map(|bias| bias.f_detach()?.f_to_kind(kind)?.f_reshape([classes, places])).transpose()?,
            target,
            forms: arguments.differentiable().into_iter().map(form).collect::<Result<_, _>>()?,
            size: size.min(rows),
            kind,
            sums,
        })
    }

    /// One number per row and place, `[N, K]`, of a tensor that has one per target.
    fn f_of_rows(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok(tensor.f_reshape([self.input.size()[0], self.weight.size()[1]])?)
    }

    fn f_reducer(&self, reduction: Reduction) -> Result<Reducer, LossError> {
        let counted = match &self.target {
            RowTarget::Indices { ignored: Some(ignored), .. } => ignored.f_logical_not()?.f_to_kind(self.sums)?,
            _ => self.f_of_rows(&Tensor::f_ones(
                self.input.size()[0] * self.weight.size()[1],
                (self.sums, self.input.device()),
            )?)?,
        };
        let one = Tensor::f_ones([], (self.sums, self.input.device()))?;
        if reduction != Reduction::Mean {
            return Ok(Reducer { reduction, counted, entropy: one.shallow_clone(), z: one });
        }
        let z = counted.f_sum(None)?;
        let entropy = match (&self.target, &self.loss.weight) {
            (RowTarget::Indices { classes, .. }, Some(weight)) => {
                let classes = match self.loss.unchecked {
                    Some(_) => classes.f_clamp_number(0, self.weight.size()[0] - 1)?,
                    None => classes.shallow_clone(),
                };
                weight.f_index_select(0, &classes.f_flatten(0, -1)?)?.f_dot(&counted.f_flatten(0, -1)?)?
            }
            _ => z.shallow_clone(),
        };
        Ok(Reducer { reduction, counted, entropy, z })
    }

    /// The losses of the rows, `[N, K]`; with derivatives the gradients of those arguments that need one, too.
    fn f_run(&self, derivatives: Option<&PerRow>, needed: &[bool]) -> Result<(PerRow, Vec<Option<Stored>>), LossError> {
        let ((classes, places, _), rows) = (self.weight.size3()?, self.input.size()[0]);
        let device = self.input.device();
        let mut sums = Sums::f_new(self, needed)?;
        let buffer = Tensor::f_empty([self.size, classes], (self.kind, device))?;
        let empty = || Tensor::f_empty([rows, places], (self.sums, device));
        let losses = PerRow { entropy: empty()?, z: empty()? };
        for start in (0..rows).step_by(self.size as usize) {
            let length = self.size.min(rows - start);
            let narrow = |tensor: &Tensor| Ok::<_, LossError>(tensor.f_narrow(0, start, length)?);
            let input = narrow(&self.input)?.f_to_kind(self.kind)?;
            let logits = buffer.f_narrow(0, 0, length)?;
            let target = self.target.f_narrow(start, length)?;
            for place in 0..places {
                self.f_logits(&logits, &input, place)?;
                let at = |tensor: &Tensor| Ok(narrow(tensor)?.f_select(1, place)?);
                let target = target.f_map(|tensor| Ok(tensor.f_select(-1, place)?))?;
                let here = derivatives.map(|derivatives| derivatives.f_map(at)).transpose()?;
                let chunk = self.loss.f_chunk_loss_and_gradient(&logits, &target, here.as_ref())?;
                at(&losses.entropy)?.f_copy_(&chunk.entropy)?;
                at(&losses.z)?.f_copy_(&chunk.z)?;
                if here.is_some() {
                    sums.f_add(self, &logits, &input, start, place)?;
                }
            }
        }
        if derivatives.is_none() {
            return Ok((losses, vec![]));
        }
        if let (Some(shard), Some(input)) = (self.loss.shard(), &mut sums.input) {
            // Each process has what follows from its own classes.
            *input = shard.f_sum(input)?;
        }
        Ok((losses, sums.f_finish(self)?))
    }

    /// Overwrites `logits` with those of `input`.
    fn f_logits(&self, logits: &Tensor, input: &Tensor, place: i64) -> Result<(), LossError> {
        let weight = self.weight.f_select(1, place)?.f_transpose(0, 1)?;
        small_work(multiplications(input, &weight), || {
            let _ = match &self.bias {
                Some(bias) => bias.f_select(1, place)?.f_addmm_out(logits, input, &weight)?,
                None => input.f_mm_out(logits, &weight)?,
            };
            Ok(())
        })
    }
}

/// The gradients, summed over the chunks so far.
struct Sums {
    input: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Sums {
    fn f_new(chunks: &Chunks, needed: &[bool]) -> Result<Sums, LossError> {
        // Uninitialised, because the first product overwrites it.
        let like = |tensor: &Tensor, kind| Tensor::f_empty(tensor.size(), (kind, tensor.device()));
        // The gradient of the input is a sum over the places and over processes. Where nothing is added the kind of the
        // computation will do.
        let alone = chunks.weight.size()[1] == 1 && chunks.loss.shard().is_none();
        let of_input = if alone { chunks.kind } else { chunks.sums };
        let bias = chunks.bias.as_ref().filter(|_| needed.get(2) == Some(&true));
        Ok(Sums {
            input: needed[0].then(|| like(&chunks.input, of_input)).transpose()?,
            weight: needed[1].then(|| like(&chunks.weight, chunks.sums)).transpose()?,
            bias: bias.map(|bias| Tensor::f_zeros(bias.size(), (chunks.sums, bias.device()))).transpose()?,
        })
    }

    /// Adds the gradients that follow from the gradient of a chunk's logits.
    fn f_add(
        &mut self,
        chunks: &Chunks,
        logits: &Tensor,
        input: &Tensor,
        start: i64,
        place: i64,
    ) -> Result<(), LossError> {
        if let Some(sum) = &self.input {
            let mut rows = sum.f_narrow(0, start, input.size()[0])?;
            let weight = chunks.weight.f_select(1, place)?;
            f_add_product(&mut rows, logits, &weight, place == 0)?;
        }
        if let Some(sum) = &self.weight {
            f_add_product(&mut sum.f_select(1, place)?, &logits.f_transpose(0, 1)?, input, start == 0)?;
        }
        if let Some(sum) = &self.bias {
            let _ = sum.f_select(1, place)?.f_add_(&logits.f_sum_dim_intlist(0, false, chunks.sums)?)?;
        }
        Ok(())
    }

    /// The gradients in the shapes of the arguments, which become of their kinds.
    fn f_finish(self, chunks: &Chunks) -> Result<Vec<Option<Stored>>, LossError> {
        let finish = |(sum, (shape, kind)): (Option<Tensor>, &(Vec<i64>, Kind))| {
            // What has to be scaled in single precision is not rounded to half precision again.
            let widened = |sum: Tensor| if *kind == Kind::Float { sum.f_to_kind(*kind) } else { Ok(sum) };
            let store = |sum| Ok(Stored { gradient: widened(sum)?.f_reshape(shape)?, kind: *kind });
            sum.map(store).transpose()
        };
        [self.input, self.weight, self.bias].into_iter().zip(&chunks.forms).map(finish).collect()
    }
}

/// Adds a product of matrices to `sum`, which it overwrites where it is the `first`.
fn f_add_product(sum: &mut Tensor, left: &Tensor, right: &Tensor, first: bool) -> Result<(), LossError> {
    let alike = sum.f_kind()? == left.f_kind()?;
    small_work(multiplications(left, right), || {
        match (first, alike) {
            (true, true) => drop(left.f_mm_out(sum, right)?),
            (true, false) => sum.f_copy_(&left.f_mm(right)?)?,
            (false, true) => drop(sum.f_addmm_(left, right)?),
            (false, false) => drop(sum.f_add_(&left.f_mm(right)?)?),
        }
        Ok(())
    })
}

/// How the losses of the rows become the result.
struct Reducer {
    reduction: Reduction,
    /// 1 for each target that is not ignored, 0 for the others, `[N, K]`.
    counted: Tensor,
    /// What the sum of the cross entropies is divided by.
    entropy: Tensor,
    /// What the sum of the z-losses is divided by.
    z: Tensor,
}

impl Reducer {
    /// The derivatives of the result with respect to the losses of the rows.
    fn f_derivatives(&self) -> Result<PerRow, LossError> {
        // Without a target that counts there is no gradient; where all their class weights are 0 it is NaN, as the loss.
        let ignored = self.counted.f_eq_number(0)?;
        let of = |divisor: &Tensor| self.counted.f_div(divisor)?.f_zeros_where(&ignored);
        Ok(PerRow { entropy: of(&self.entropy)?, z: of(&self.z)? })
    }

    fn f_reduce(&self, losses: &PerRow, arguments: &Arguments, result: Kind) -> Result<Tensor, LossError> {
        if self.reduction == Reduction::None {
            let losses = losses.entropy.f_add(&losses.z)?;
            return Ok(losses.f_reshape(arguments.unreduced())?.f_to_kind(result)?);
        }
        // Where all class weights of the targets are 0 the divisor is 0 and the mean NaN. A smoothed target would make
        // it ∞, because it has a part in the other classes.
        let weightless = self.entropy.f_eq_number(0)?;
        let entropy = losses.entropy.f_sum(None)?.f_div(&self.entropy)?.f_masked_fill_number(&weightless, f64::NAN)?;
        Ok(entropy.f_add(&losses.z.f_sum(None)?.f_div(&self.z)?)?.f_to_kind(result)?)
    }
}
