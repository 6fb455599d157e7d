//! SigLIP with the texts of one other rank at a time.

use tch::{Kind, Tensor, no_grad};

use super::over_ranks::Rows;
use super::{SigLipLoss, f_losses};
use crate::LossError;
use crate::autograd::{Context, Function, Gradients, f_gradients_of, needed};
use crate::distributed::{Group, f_reduce_own};
use crate::numeric::{f_matrix_product, result_kind};
use crate::self_supervised::logits::LogitParameter;

/// What a rank has when all texts have come by.
struct Passed {
    /// The losses of the own images.
    losses: Tensor,
    /// How many images all ranks have.
    total: i64,
    /// The number of the first call, if there was one.
    call: Option<u64>,
}

impl SigLipLoss {
    /// Computes the loss as [`f_forward_over_ranks`](Self::f_forward_over_ranks) does, with the same numbers, but the
    /// texts go around: each rank hands those it has to the next one, W − 1 times for W ranks.
    ///
    /// So a rank holds the texts of one other rank and the logits of a block of n² pairs at a time, of N texts and n·N
    /// logits. Nothing of that is kept for the backward pass, in which the texts go around once more, with their
    /// gradients: it computes the logits again. Choose it where the batch of all ranks is large. open_clip has it as
    /// `dist_impl="shift"` (and as `"bidir"`, its default, and `"reduce"`, with the same numbers); its graph keeps all
    /// blocks.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward), and those of
    /// [`Group::f_shift_data_parallel`](Group::f_shift_data_parallel).
    #[doc(alias = "dist_impl")]
    pub fn f_forward_over_neighbours<'a, 'b>(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: impl Into<LogitParameter<'a>>,
        logit_bias: impl Into<LogitParameter<'b>>,
        group: &Group,
    ) -> Result<Tensor, LossError> {
        let group = &group.of_options(self, "");
        let checked = self.f_checked_rows(image, text, logit_scale.into(), logit_bias.into());
        let own = group.f_or_refuse(checked)?;
        let inputs = own.tensors();
        let needed = needed(&inputs);
        let Passed { losses, total, call } = no_grad(|| own.f_pass_around(group, needed.contains(&true)))?;
        let of_backward = group.clone();
        let losses = Function::new(&inputs)
            .save(&inputs)
            .f_attach_one(losses, move |context| f_backward(&context, &of_backward, call, &needed))?;
        Ok(f_reduce_own(self.reduction, &losses, group, total)?.f_to_kind(result_kind(image)?)?)
    }
}

/// The gradients of the losses of the own images.
fn f_backward(context: &Context, group: &Group, call: Option<u64>, needed: &[bool]) -> Gradients {
    let Some(grad) = context.grad(0) else { return Ok(needed.iter().map(|_| None).collect()) };
    let saved = context.saved();
    let block_by_block = || {
        let gradients = no_grad(|| Rows::of(saved).f_pass_back(group, call, &grad))?;
        let wanted = gradients.into_iter().zip(needed).map(|(gradient, needed)| needed.then_some(gradient));
        Ok(wanted.collect())
    };
    let gathered = |inputs: &[Tensor]| Ok(Rows::of(inputs).f_gathered_losses(group)?.0);
    context.f_gradients(&block_by_block, &|| f_gradients_of(&gathered, &grad, saved, needed))
}

impl Rows {
    fn tensors(&self) -> [&Tensor; 4] {
        [&self.images, &self.texts, &self.logit_scale, &self.logit_bias]
    }

    fn of(tensors: &[Tensor]) -> Self {
        let [images, texts, logit_scale, logit_bias] = [0, 1, 2, 3].map(|place| tensors[place].shallow_clone());
        Self { images, texts, logit_scale, logit_bias }
    }

    /// The losses of the own images with some texts, which are their `own` ones or those of another rank.
    fn f_block(&self, texts: &Tensor, own: bool) -> Result<Tensor, LossError> {
        let together = match own {
            true => Some(Tensor::f_eye(self.images.size()[0], (Kind::Bool, self.images.device()))?),
            false => None,
        };
        let similarities = f_matrix_product(&self.images, &texts.f_transpose(0, 1)?)?;
        f_losses(&similarities, &self.logit_scale, &self.logit_bias, together.as_ref())
    }

    /// `differentiable` tells the other ranks whether a backward pass follows.
    fn f_pass_around(&self, group: &Group, differentiable: bool) -> Result<Passed, LossError> {
        let mut passed = Passed { losses: self.f_block(&self.texts, true)?, total: self.texts.size()[0], call: None };
        let mut texts = self.texts.shallow_clone();
        for _ in 1..group.world_size() {
            let from_before = group.f_shifted(&texts, 1, differentiable, None)?;
            texts = from_before.tensor;
            passed.call.get_or_insert(from_before.call);
            passed.total += texts.size()[0];
            let _ = passed.losses.f_add_(&self.f_block(&texts, false)?)?;
        }
        Ok(passed)
    }

    /// The gradients of images, texts, scale and bias. Texts go around with what their gradient is so far, and so come
    /// home with that of all ranks.
    fn f_pass_back(&self, group: &Group, call: Option<u64>, grad: &Tensor) -> Result<[Tensor; 4], LossError> {
        let [mut images, mut of_texts, mut scale, mut bias] = self.f_block_gradients(&self.texts, true, grad)?;
        let features = self.texts.size()[1];
        let mut texts = self.texts.shallow_clone();
        for _ in 1..group.world_size() {
            let both = group.f_shifted(&Tensor::f_cat(&[&texts, &of_texts], 1)?, 1, false, call)?.tensor;
            texts = both.f_narrow(1, 0, features)?;
            let block = self.f_block_gradients(&texts, false, grad)?;
            let _ = (images.f_add_(&block[0])?, scale.f_add_(&block[2])?, bias.f_add_(&block[3])?);
            of_texts = both.f_narrow(1, features, features)?.f_add(&block[1])?;
        }
        if group.world_size() > 1 {
            of_texts = group.f_shifted(&of_texts, 1, false, call)?.tensor;
        }
        Ok([images, of_texts, scale, bias])
    }

    /// The gradients of images, texts, scale and bias that come of one block.
    fn f_block_gradients(&self, texts: &Tensor, own: bool, grad: &Tensor) -> Result<[Tensor; 4], LossError> {
        let leaf = |tensor: &Tensor| Ok::<_, LossError>(tensor.f_detach()?.f_set_requires_grad(true)?);
        let [images, logit_scale, logit_bias] = [&self.images, &self.logit_scale, &self.logit_bias].map(leaf);
        let block = Rows { images: images?, texts: leaf(texts)?, logit_scale: logit_scale?, logit_bias: logit_bias? };
        let value = tch::with_grad(|| Ok::<_, LossError>(block.f_block(&block.texts, own)?.f_mul(grad)?.f_sum(None)?))?;
        let gradients = Tensor::f_run_backward(&[value], &block.tensors(), false, false)?;
        gradients.try_into().map_err(|_| LossError::custom("libtorch returned another number of gradients"))
    }
}
