//! The engine of the hinges of all triplets of a batch; see [`triplets`](crate::kernels::cpu::triplets).
//!
//! A block has an anchor and goes through its positives, each with all negatives: nothing is sorted, and no triplet is
//! kept. How many hinges above 0 have each distance is the gradient but for the scale, which the end of the pass knows.

use std::ffi::c_void;

use tch::{Kind, Tensor};

use super::engine;
use super::launch::{Block, Kernel};
use super::pair_labels::DeviceLabels;
use super::source::Recipe;
use super::{is_asked, modules};
use crate::LossError;
use crate::autograd::{self, Context, Header, StoredGradients};
use crate::kernels::engine::{Composite, f_with_graph};
use crate::kernels::tensors::f_contiguous;
use crate::kernels::triplets::Triplets;

const TRIPLETS: Kernel = Kernel { name: c"triplets", types: &["Call"] };
const FINISH: Kernel = Kernel { name: c"triplets_finish", types: &["Call", "int"] };

/// How many numbers a block adds up.
const TOTALS: usize = 3;

/// The hinges of the triplets with the distances `far`, reduced, as a scalar of this `kind`; by the `composite` where
/// the kernels do not take the call or cannot be had.
pub(in crate::kernels) fn f_triplets(
    triplets: Triplets,
    far: &Tensor,
    labels: &DeviceLabels,
    kind: Kind,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let own = far.f_kind()?;
    // Hinges from `high` on do not count, and none is below 0.
    let none = triplets.counted.high <= 0.0;
    let header = Header::of(far);
    let taken = matches!(own, Kind::Float | Kind::Double)
        && is_asked(far)
        && header.is_numbers_of(own)
        && labels.are_of(&header)
        && labels.size()[1] <= i32::MAX as usize;
    if none || !taken {
        return composite(&[far]);
    }
    let needed = autograd::needed(&[far]);
    let Some(Hinges { loss, scale, gradient }) = f_hinges(triplets, far, labels, kind, needed[0])? else {
        return composite(&[far]);
    };
    let Some(gradient) = gradient else { return Ok(loss) };
    let stored = StoredGradients::f_of_own_kind([Some(gradient)])?;
    let fused = move |context: &Context, grad: &Tensor, _: &[bool]| {
        let factor = grad.f_to_kind(Kind::Double)?.f_mul(&scale)?.f_to_kind(own)?;
        stored.f_scaled_by(context, &factor, &|gradient, grad| engine::f_scale(gradient, grad, None)).map(Some)
    };
    f_with_graph(loss, &[far], needed, composite, Box::new(fused))
}

/// The loss, and what its gradient is made of: the number of hinges of each distance, and what they are multiplied by.
struct Hinges {
    loss: Tensor,
    scale: Tensor,
    gradient: Option<Tensor>,
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/triplets.cu")
}

/// None where the kernels cannot be had.
fn f_hinges(
    triplets: Triplets,
    far: &Tensor,
    labels: &DeviceLabels,
    result: Kind,
    needed: bool,
) -> Result<Option<Hinges>, LossError> {
    let (kind, device) = (far.f_kind()?, far.device());
    let recipe = Recipe::plain(kind, write);
    let Some(launcher) = modules::launcher_of(device, recipe, &[TRIPLETS, FINISH]) else { return Ok(None) };
    let far = f_contiguous(far)?;
    let mut blocks = labels.size()[0].clamp(1, engine::BLOCKS) as i32;
    let totals = Tensor::f_empty([i64::from(blocks), TOTALS as i64], (Kind::Double, device))?;
    let scale = Tensor::f_empty([0_i64; 0], (Kind::Double, device))?;
    let written = engine::kind_of_scalar(result);
    let loss = Tensor::f_empty([0_i64; 0], (written, device))?;
    let gradient = needed.then(|| far.f_empty_like()).transpose()?;

    let mut block = Block::default();
    block.tensors([&far]);
    labels.put_pointers(&mut block);
    block.tensors([Some(&totals), Some(&scale), Some(&loss), gradient.as_ref()]);
    labels.put_numbers(&mut block);
    let Triplets { margin, beyond, up_to, counted } = triplets;
    let bounds = [margin, beyond.unwrap_or(f64::NAN), up_to.unwrap_or(f64::NAN), counted.low, counted.high];
    block.reals(Kind::Double, bounds);
    block.flags([labels.own(), counted.mean, written == Kind::Double, false]);
    let mut block = block.finish();
    let call: *mut c_void = block.as_mut_ptr().cast();
    let grid = blocks as u32;
    // SAFETY: the block has the layout of `Call` in triplets.cu; all tensors are contiguous, on the device and as large
    // as it says, and their memory is freed on the same stream, behind the kernels.
    let launched = unsafe {
        launcher.launch(TRIPLETS, grid, &mut [call]).is_ok()
            && launcher.launch(FINISH, 1, &mut [call, (&raw mut blocks).cast()]).is_ok()
    };
    Ok(launched.then_some(Hinges { loss: loss.f_to_kind(result)?, scale, gradient }))
}
