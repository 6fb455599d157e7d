//! The engine of sums under a window along one dimension; see [`f_slide`](crate::kernels::f_slide).

use tch::Tensor;

use super::engine;
use super::launch::{Block, Kernel, Launch};
use super::modules;
use super::source::Recipe;
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::window::Slide;

const WINDOW: Kernel = Kernel { name: c"window", types: &["Call"] };

/// How many taps a launch takes at most: `TAPS` in window.cu. A longer window is several launches.
const TAPS: usize = 64;

/// The sums of a contiguous tensor of single or double precision; none where the kernel cannot be had.
pub(in crate::kernels) fn f_sums(input: &Tensor, slide: &Slide) -> Result<Option<Tensor>, LossError> {
    let kind = input.f_kind()?;
    let size = slide.size(input);
    if !Header::of(input).is_numbers_of(kind) || size.contains(&0) {
        return Ok(None);
    }
    let recipe = Recipe::plain(kind, write);
    let Some(launcher) = modules::launcher_of(input.device(), recipe, &[WINDOW]) else { return Ok(None) };
    let output = Tensor::f_empty(&size, (kind, input.device()))?;
    let parts = slide.taps.chunks(TAPS).zip((0..).step_by(TAPS));
    let launched = parts.into_iter().all(|(taps, first)| launch(&*launcher, input, &output, slide, (taps, first)));
    Ok(launched.then_some(output))
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/window.cu")
}

/// Adds the sums of these taps, of which the first one is that of number `first`. Whether that could be launched.
fn launch(launcher: &dyn Launch, input: &Tensor, output: &Tensor, slide: &Slide, (taps, first): (&[f64], i64)) -> bool {
    let kind = input.kind();
    let (step, read, written) = (slide.step(input) as i64, input.size()[slide.dim], slide.places as i64);
    let lines = input.numel() as i64 / (step * read);
    let mut block = Block::default();
    block.tensors([input, output]);
    let (start, count) = (first - slide.lead as i64, taps.len() as i64);
    block.longs([lines, step, read, written, start, count]);
    // A thread's number goes beyond that of the last sum.
    block.flags([first > 0, input.numel().max(output.numel()) < 1 << 30]);
    block.reals(kind, (0..TAPS).map(|tap| taps.get(tap).copied().unwrap_or(0.0)));
    // SAFETY: the block has the layout of `Call`; both tensors are contiguous, on the device and as large as it says, and
    // their memory is freed on the same stream, behind the kernel.
    unsafe { block.launch(launcher, WINDOW, engine::grid(output)) }
}
