//! The engine of losses that are a function of each element.

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::launch::{Block, Kernel, Launch, THREADS};
use super::source::Source;
use super::{modules, source};
use crate::LossError;
use crate::autograd::{self, Context, Header, StoredGradients};
use crate::kernels::engine::{Composite, Reduce, f_with_graph};
use crate::kernels::formulas::{Pointwise, Typed};
use crate::kernels::graph::{self, Recording};
use crate::kernels::tensors::{f_in_one_layout, f_one_layout};
use crate::numeric::is_half;

const POINTWISE: Kernel = Kernel { name: c"pointwise", types: &["Call"] };
const FINISH: Kernel = Kernel { name: c"finish", types: &["const double*", "int", "double", "Element*"] };
const SCALE: Kernel = Kernel { name: c"scale", types: &["Element*", "long long", "const Element*"] };

/// Blocks at most. How many there are depends on the size alone, so that a sum is the same on every GPU.
pub(super) const BLOCKS: usize = 1024;
/// The bytes that a thread reads at a time.
pub(super) const PACK: usize = 16;

/// A formula without its type, as a graph of operations.
pub(in crate::kernels) trait Recorded: Send + Sync {
    fn is_partial(&self) -> bool;

    /// The loss, and its derivatives.
    fn record(&self) -> Recording;
}

impl<P: Pointwise<N>, const N: usize> Recorded for Typed<P, N> {
    fn is_partial(&self) -> bool {
        P::PARTIAL
    }

    fn record(&self) -> Recording {
        graph::record::<N>(|arguments| {
            let (loss, derivatives) = self.0.evaluate(arguments);
            std::iter::once(loss).chain(derivatives).collect()
        })
    }
}

/// The reduced losses of `arguments`; see [`f_pointwise_to`](crate::kernels::pointwise::f_pointwise_to). The composite
/// takes half precision as it is.
pub(in crate::kernels) fn f_elements(
    result: Kind,
    formula: Box<dyn Recorded>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    // The error of an argument without a loss would be a look at the loss.
    if result != kind || formula.is_partial() || !takes(arguments, kind) {
        return composite(arguments);
    }
    let call = Call { recording: formula.record(), kind, device: arguments[0].device() };
    let needed = autograd::needed(arguments);
    let at_once = reduce != Reduce::No && is_stored(kind);
    let wanted: Vec<bool> = needed.iter().map(|needed| *needed && at_once).collect();
    let scale = reduce.scale(|| Header::of(arguments[0]).elements());
    let Some((loss, gradients)) = call.f_forward(arguments, &wanted, scale)? else { return composite(arguments) };
    if !needed.contains(&true) {
        return Ok(loss);
    }
    let store = || StoredGradients::f_of_own_kind(autograd::spread(gradients, &needed));
    let stored = at_once.then(store).transpose()?;
    let fused = move |context: &Context, grad: &Tensor, needed: &[bool]| {
        if let Some(stored) = &stored {
            return stored.f_scaled_by(context, grad, &f_scale).map(Some);
        }
        let saved: Vec<&Tensor> = context.saved().iter().collect();
        let gradients = call.f_backward(&saved, grad, needed, scale)?;
        Ok(gradients.map(|gradients| autograd::spread(gradients, needed)))
    };
    f_with_graph(loss, arguments, needed, composite, Box::new(fused))
}

/// Whether gradients are computed in the forward pass. Those of half precision would be rounded before they are scaled,
/// and whether they are scaled is known on the device alone.
pub(super) fn is_stored(kind: Kind) -> bool {
    !is_half(kind)
}

fn takes(arguments: &[&Tensor], kind: Kind) -> bool {
    let first = Header::of(arguments[0]);
    let is_alike =
        |header: Header| header.is_numbers_of(kind) && header.is_on_device_of(&first) && header.size() == first.size();
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
        && first.elements() != 0
        && arguments.iter().all(|argument| is_alike(Header::of(argument)))
}

/// A formula, for tensors of a kind on a device.
struct Call {
    recording: Recording,
    kind: Kind,
    device: Device,
}

/// What the derivatives are multiplied by: a number, and a tensor of one number, or of one for `each` loss.
#[derive(Clone, Copy)]
struct Factors<'a> {
    number: f64,
    tensor: Option<&'a Tensor>,
    each: bool,
}

impl Call {
    /// The losses, or their sum times the `scale`, and the gradients that are wanted, times the scale; none where the
    /// kernels cannot be had.
    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<(Tensor, Vec<Tensor>)>, LossError> {
        let Some(kernels) = self.kernels(wanted, scale.is_none()) else { return Ok(None) };
        f_in_one_layout(arguments, |arguments| {
            let gradients = f_gradients(arguments[0], wanted)?;
            let factors = Factors { number: scale.unwrap_or(1.0), tensor: None, each: false };
            let Some(scale) = scale else {
                let losses = arguments[0].f_detach()?.f_empty_like()?;
                let launched = kernels.run(arguments, &gradients, factors, Some(&losses), None);
                return Ok(launched.then_some((losses, gradients)));
            };
            let grid = self.grid(arguments[0]);
            let sums = Tensor::f_empty([i64::from(grid)], (Kind::Double, self.device))?;
            if !kernels.run(arguments, &gradients, factors, None, Some(&sums)) {
                return Ok(None);
            }
            let loss = Tensor::f_empty([0_i64; 0], (self.kind, self.device))?;
            Ok(kernels.finish(&sums, grid, scale, &loss).then_some((loss, gradients)))
        })
    }

    /// The gradients that are wanted, given that of the losses, or of the loss that is their sum times the `scale`.
    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let Some(kernels) = self.kernels(wanted, false) else { return Ok(None) };
        f_in_one_layout(arguments, |arguments| {
            let gradients = f_gradients(arguments[0], wanted)?;
            let grad = match scale {
                Some(_) => grad.shallow_clone(),
                None => f_one_layout(&[arguments[0], grad])?.remove(1),
            };
            let factors = Factors { number: scale.unwrap_or(1.0), tensor: Some(&grad), each: scale.is_none() };
            Ok(kernels.run(arguments, &gradients, factors, None, None).then_some(gradients))
        })
    }

    fn grid(&self, first: &Tensor) -> u32 {
        grid(Header::of(first).elements(), self.kind)
    }

    /// The kernels that store these gradients, and the losses or not.
    fn kernels(&self, wanted: &[bool], losses: bool) -> Option<Kernels<'_>> {
        let source = source::pointwise(&self.recording, self.kind, wanted, losses);
        let launcher = modules::launcher(self.device, &source.text, &[POINTWISE, FINISH])?;
        Some(Kernels { call: self, source, launcher })
    }
}

/// How many blocks go through so many elements.
fn grid(elements: usize, kind: Kind) -> u32 {
    let of_thread = PACK / kind.elt_size_in_bytes();
    elements.div_ceil(THREADS as usize * of_thread).clamp(1, BLOCKS) as u32
}

/// Multiplies a gradient by that of the loss.
pub(super) fn f_scale(gradient: &mut Tensor, grad: &Tensor) -> Result<(), LossError> {
    let kind = gradient.f_kind()?;
    let source = source::scale(kind);
    let Some(launcher) = modules::launcher(gradient.device(), &source.text, &[SCALE]) else {
        let _ = gradient.f_mul_(grad)?;
        return Ok(());
    };
    let (mut place, mut length, mut factor) = (gradient.data_ptr(), gradient.numel() as i64, address(grad));
    let parameters: &mut [*mut c_void] =
        &mut [(&raw mut place).cast(), (&raw mut length).cast(), (&raw mut factor).cast()];
    // SAFETY: the types are those of the kernel; both tensors are of the kind, on the device, and their memory is freed
    // on the same stream, behind the kernel.
    if unsafe { launcher.launch(SCALE, grid(gradient.numel(), kind), parameters) }.is_err() {
        let _ = gradient.f_mul_(grad)?;
    }
    Ok(())
}

/// New tensors for the gradients that are wanted, in the layout of this one.
fn f_gradients(like: &Tensor, wanted: &[bool]) -> Result<Vec<Tensor>, LossError> {
    let like = like.f_detach()?;
    wanted.iter().filter(|wanted| **wanted).map(|_| Ok(like.f_empty_like()?)).collect()
}

/// The kernels of a call, loaded.
struct Kernels<'a> {
    call: &'a Call,
    source: Source,
    launcher: Box<dyn Launch>,
}

impl Kernels<'_> {
    /// Runs over all elements of arguments in one layout, as `Call` in pointwise.cu says. Whether that could be
    /// launched.
    fn run(
        &self,
        arguments: &[&Tensor],
        gradients: &[Tensor],
        factors: Factors,
        losses: Option<&Tensor>,
        sums: Option<&Tensor>,
    ) -> bool {
        let kind = self.call.kind;
        let length = Header::of(arguments[0]).elements();
        let address_of = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), address);
        let (of_losses, of_factors) = (address_of(losses), address_of(factors.tensor));
        let mut addresses: Vec<*const c_void> = arguments.iter().map(|argument| address(argument)).collect();
        addresses.extend(gradients.iter().map(address));
        let aligned =
            addresses.iter().chain([&of_losses, &of_factors]).all(|address| (*address as usize).is_multiple_of(PACK));
        // The array of gradients has one place more than there are, since C++ has no empty ones.
        addresses.extend([std::ptr::null(), of_losses, of_factors, address_of(sums)]);
        let mut block = Block::default();
        addresses.into_iter().for_each(|address| block.pointer(address));
        block.long(length as i64);
        block.int(factors.each.into());
        block.int(aligned.into());
        block.real(kind, factors.number);
        self.source.parameters.iter().for_each(|parameter| block.real(kind, *parameter));
        block.real(kind, 0.0);
        let mut call = block.finish();
        let grid = self.call.grid(arguments[0]);
        // SAFETY: the block has the layout of `Call`; all tensors are of the kind, on the device and of the length, and
        // their memory is freed on the same stream, behind the kernel.
        unsafe { self.launcher.launch(POINTWISE, grid, &mut [call.as_mut_ptr().cast()]) }.is_ok()
    }

    /// The sum of the sums of so many blocks, times a number, as the loss. Whether that could be launched.
    fn finish(&self, sums: &Tensor, grid: u32, scale: f64, loss: &Tensor) -> bool {
        let (mut sums, mut count, mut scale, mut loss) = (address(sums), grid as i32, scale, loss.data_ptr());
        let parameters: &mut [*mut c_void] =
            &mut [(&raw mut sums).cast(), (&raw mut count).cast(), (&raw mut scale).cast(), (&raw mut loss).cast()];
        // SAFETY: the types are those of the kernel; the kernels of a stream run one after the other.
        unsafe { self.launcher.launch(FINISH, 1, parameters) }.is_ok()
    }
}

pub(super) fn address(tensor: &Tensor) -> *const c_void {
    tensor.data_ptr().cast_const()
}
