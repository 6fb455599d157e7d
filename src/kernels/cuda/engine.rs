//! What turns kernels into a loss with a graph, for all engines of CUDA: the counterpart of
//! [`engine`](crate::kernels::engine) where sums stay on the device.

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::launch::{Kernel, Launch, THREADS};
use super::source::Recipe;
use super::{is_autocast, modules};
use crate::LossError;
use crate::autograd::{self, Context, Header, StoredGradients};
use crate::kernels::engine::{Composite, Reduce, f_with_graph};
use crate::numeric::is_half;

/// The kernels of common.cu.
const FINISH: Kernel = Kernel {
    name: c"finish",
    types: &["const double*", "int", "double", "const double*", "int", "Element*", "Element*"],
};
const SCALE: Kernel = Kernel { name: c"scale", types: &["Element*", "long long", "const Element*", "const Element*"] };

/// Blocks at most. How many there are depends on the size alone, so that a sum is the same on every GPU.
pub(super) const BLOCKS: usize = 1024;
/// The bytes that a thread reads at a time.
pub(super) const PACK: usize = 16;

/// Kernels with their formula: they compute the losses of some tensors, of which the first one has the kind of the
/// losses and gradients.
pub(super) trait Engine: Send + 'static {
    /// How many losses the arguments have, by which a mean divides.
    fn count(&self, arguments: &[&Tensor]) -> usize;

    /// How many of the arguments can have a gradient. They are the first ones.
    fn differentiable(&self) -> usize {
        usize::MAX
    }

    /// The losses, and the gradients that are `wanted`, times the scale of the sum; none where the kernels cannot be
    /// had.
    fn f_forward(&self, arguments: &[&Tensor], wanted: &[bool], sum: Option<Sum>)
    -> Result<Option<Forward>, LossError>;

    /// The gradients that are `wanted`, given that of the losses, or of their sum times the `scale`. It is of the kind
    /// of the first argument, or where the result has another one, of the kind that the kernels compute in.
    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError>;
}

/// What the sum of the losses is multiplied by, and the kind of the result.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) scale: f64,
    pub(super) kind: Kind,
}

/// What a forward pass has computed.
pub(super) struct Forward {
    pub(super) loss: Tensor,
    pub(super) gradients: Vec<Tensor>,
    /// 1 where all values had a loss, else 0, on the device: what all gradients are multiplied by.
    pub(super) valid: Option<Tensor>,
}

/// The losses of `arguments`, reduced, with a graph: by `engine`, or by the `composite` where the kernels cannot be
/// had. A reduced loss has the floating kind `result`, which is that of the composite's result.
pub(super) fn f_dispatch_to(
    result: Kind,
    engine: Box<dyn Engine>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    f_fused(result, engine, arguments, reduce, composite)?.or_else(|composite| composite(arguments))
}

/// [`f_dispatch_to`], which hands the composite back where the kernels cannot be had.
pub(super) fn f_fused(
    result: Kind,
    engine: Box<dyn Engine>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Result<Tensor, Composite>, LossError> {
    let kind = arguments[0].f_kind()?;
    let (result, composite) = match is_autocast(arguments[0]) {
        // Losses that are not reduced have the kind of the kernels.
        true if reduce == Reduce::No => return Ok(Err(composite)),
        true => (Kind::Float, under_autocast(autograd::autocast_kind(arguments[0])?, composite)),
        false => (result, composite),
    };
    let mut needed = autograd::needed(arguments);
    needed.iter_mut().skip(engine.differentiable()).for_each(|needed| *needed = false);
    let at_once = reduce != Reduce::No && is_stored(kind);
    let wanted: Vec<bool> = needed.iter().map(|needed| *needed && at_once).collect();
    let scale = reduce.scale(|| engine.count(arguments));
    let sum = scale.map(|scale| Sum { scale, kind: result });
    let Some(Forward { loss, gradients, valid }) = engine.f_forward(arguments, &wanted, sum)? else {
        return Ok(Err(composite));
    };
    if !needed.contains(&true) {
        return Ok(Ok(loss));
    }
    let store = || StoredGradients::f_of_own_kind(autograd::spread(gradients, &needed));
    let stored = at_once.then(store).transpose()?;
    let fused = move |context: &Context, grad: &Tensor, needed: &[bool]| {
        if let Some(stored) = &stored {
            // Gradients that are kept for another pass are multiplied by tensor operations, and by one factor alone.
            let valid_in_factor = valid.as_ref().filter(|_| context.keep_graph());
            let scale = |gradient: &mut Tensor, grad: &Tensor| f_scale(gradient, grad, valid.as_ref());
            return stored.f_scaled_by(context, &f_factor(grad, kind, valid_in_factor)?, &scale).map(Some);
        }
        let grad = f_factor(grad, kind, valid.as_ref())?;
        let saved: Vec<&Tensor> = context.saved().iter().collect();
        let gradients = engine.f_backward(&saved, &grad, needed, scale)?;
        Ok(gradients.map(|gradients| autograd::spread(gradients, needed)))
    };
    f_with_graph(loss, arguments, needed, composite, Box::new(fused)).map(Ok)
}

/// The composite as it is under autocast to this kind, for a backward pass, which is not.
fn under_autocast(kind: Option<Kind>, composite: Composite) -> Composite {
    Box::new(move |arguments| autograd::with_autocast_to(arguments[0].device(), kind, || composite(arguments)))
}

/// Whether gradients are computed in the forward pass. Those of half precision would be rounded before they are scaled,
/// and whether they are scaled is known on the device alone.
pub(super) fn is_stored(kind: Kind) -> bool {
    !is_half(kind)
}

/// The gradient of the loss as what the derivatives are multiplied by: of `kind`, or of the one that its kernels compute
/// in.
fn f_factor(grad: &Tensor, kind: Kind, valid: Option<&Tensor>) -> Result<Tensor, LossError> {
    let other = is_half(kind) && grad.f_kind()? != kind;
    let grad = grad.f_to_kind(if other { Kind::Float } else { kind })?;
    Ok(match valid {
        Some(valid) => grad.f_mul(valid)?,
        None => grad,
    })
}

/// Multiplies a gradient by that of the loss, which is of the same kind, and by 0 where not all values had a loss.
pub(super) fn f_scale(gradient: &mut Tensor, grad: &Tensor, valid: Option<&Tensor>) -> Result<(), LossError> {
    let kind = gradient.f_kind()?;
    let valid = valid.map(|valid| valid.f_to_kind(kind)).transpose()?;
    let mut launched = false;
    if let Some(launcher) = common(gradient.device(), kind) {
        let (mut place, mut length, mut factor) = (gradient.data_ptr(), gradient.numel() as i64, address(grad));
        let mut flag = address_of(valid.as_ref());
        let parameters: &mut [*mut c_void] =
            &mut [(&raw mut place).cast(), (&raw mut length).cast(), (&raw mut factor).cast(), (&raw mut flag).cast()];
        // SAFETY: the types are those of the kernel; all tensors are of the kind, on the device, and their memory is
        // freed on the same stream, behind the kernel.
        launched = unsafe { launcher.launch(SCALE, grid(gradient), parameters) }.is_ok();
    }
    if !launched {
        let _ = gradient.f_mul_(grad)?;
        if let Some(valid) = &valid {
            let _ = gradient.f_mul_(valid)?;
        }
    }
    Ok(())
}

/// How many blocks go through the elements of a tensor.
pub(super) fn grid(tensor: &Tensor) -> u32 {
    let of_thread = PACK / tensor.kind().elt_size_in_bytes();
    Header::of(tensor).elements().div_ceil(THREADS as usize * of_thread).clamp(1, BLOCKS) as u32
}

/// Where a forward pass puts the losses, and what their derivatives are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    /// The place of each loss, or none where they are added up.
    pub(super) losses: Option<&'a Tensor>,
    /// The place of the sums of blocks, if they are. Behind those of partial losses is that of the counts of the values
    /// without one.
    pub(super) sums: Option<&'a Tensor>,
    pub(super) scale: f64,
}

/// The end of a forward pass, given what launches its kernels over so many blocks: the losses, or their sum, and what
/// [`Forward::valid`] is. None where that could not be launched.
pub(super) fn f_end(
    device: Device,
    sum: Option<Sum>,
    (grid, finish): (u32, Finish),
    f_losses: impl FnOnce() -> Result<Tensor, LossError>,
    f_run: impl FnOnce(Ends) -> Result<bool, LossError>,
) -> Result<Option<(Tensor, Option<Tensor>)>, LossError> {
    let Some(sum) = sum else {
        let losses = f_losses()?;
        let launched = f_run(Ends { losses: Some(&losses), sums: None, scale: 1.0 })?;
        return Ok(launched.then_some((losses, None)));
    };
    let length = i64::from(grid) * if finish.partial { 2 } else { 1 };
    let sums = Tensor::f_empty([length], (Kind::Double, device))?;
    if !f_run(Ends { losses: None, sums: Some(&sums), scale: sum.scale })? {
        return Ok(None);
    }
    f_finish_with(&sums, grid, sum, finish)
}

/// The sum of the first `count` of the numbers `sums`, as the loss; none where that could not be launched.
pub(super) fn f_finish(sums: &Tensor, count: u32, sum: Sum) -> Result<Option<Tensor>, LossError> {
    Ok(f_finish_with(sums, count, sum, Finish::default())?.map(|(loss, _)| loss))
}

/// What the end of a sum needs besides the sums of blocks.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish<'a> {
    /// What a mean is over, in parts of two numbers each.
    pub(super) counts: Option<&'a Tensor>,
    /// Whether behind the sums there are the counts of the values without a loss, so that it is told whether all had one.
    pub(super) partial: bool,
}

/// [`f_finish`] with more than sums, and what [`Forward::valid`] is where they tell it.
pub(super) fn f_finish_with(
    sums: &Tensor,
    count: u32,
    sum: Sum,
    Finish { counts, partial }: Finish,
) -> Result<Option<(Tensor, Option<Tensor>)>, LossError> {
    let Some(launcher) = common(sums.device(), sum.kind) else { return Ok(None) };
    let f_number = || Tensor::f_empty([0_i64; 0], (sum.kind, sums.device()));
    let (loss, valid) = (f_number()?, partial.then(f_number).transpose()?);
    let (mut from, mut count, mut scale, mut place) = (address(sums), count as i32, sum.scale, loss.data_ptr());
    let (mut counted, mut parts) = (address_of(counts), parts(counts));
    let mut flag = address_of(valid.as_ref());
    let parameters: &mut [*mut c_void] = &mut [
        (&raw mut from).cast(),
        (&raw mut count).cast(),
        (&raw mut scale).cast(),
        (&raw mut counted).cast(),
        (&raw mut parts).cast(),
        (&raw mut place).cast(),
        (&raw mut flag).cast(),
    ];
    // SAFETY: the types are those of the kernel; the kernels of a stream run one after the other.
    let launched = unsafe { launcher.launch(FINISH, 1, parameters) }.is_ok();
    Ok(launched.then_some((loss, valid)))
}

/// The kernels at the end of a pass. They have a source of their own, since to compile them takes about as long as to
/// compile a formula.
fn common(device: Device, kind: Kind) -> Option<Box<dyn Launch>> {
    let write = |recipe: &Recipe| recipe.head() + include_str!("source/common.cu");
    modules::launcher_of(device, Recipe::plain(kind, write), &[SCALE, FINISH])
}

/// How many parts of two numbers each there are.
pub(super) fn parts(counts: Option<&Tensor>) -> i32 {
    counts.map_or(0, |counts| (counts.numel() / 2) as i32)
}

/// New tensors for the gradients that are wanted, in the layout of this one.
pub(super) fn f_gradients(like: &Tensor, wanted: &[bool]) -> Result<Vec<Tensor>, LossError> {
    let like = like.f_detach()?;
    wanted.iter().filter(|wanted| **wanted).map(|_| Ok(like.f_empty_like()?)).collect()
}

pub(super) fn address(tensor: &Tensor) -> *const c_void {
    tensor.data_ptr().cast_const()
}

/// The same; null where there is no tensor.
pub(super) fn address_of(tensor: Option<&Tensor>) -> *const c_void {
    tensor.map_or(std::ptr::null(), address)
}

/// Whether kernels can read these tensors in whole packs, as far as it depends on where they begin.
pub(super) fn are_aligned<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    tensors.into_iter().all(|tensor| (address(tensor) as usize).is_multiple_of(PACK))
}

/// The kind in which kernels write a scalar of this kind, and read its gradient.
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(super) fn kind_of_scalar(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}
