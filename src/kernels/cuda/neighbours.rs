//! The engine of erosion and dilation; see [`f_neighbours`](crate::kernels::f_neighbours).

use tch::Tensor;

use super::engine;
use super::launch::{Block, Kernel};
use super::modules;
use super::source::Recipe;
use crate::LossError;
use crate::kernels::neighbours::Neighbours;

const EXTREMES: Kernel = Kernel { name: c"extremes", types: &["Call"] };
const SLOPES: Kernel = Kernel { name: c"slopes", types: &["Call"] };

/// The extremes of contiguous regions of single or double precision; none where the kernel cannot be had.
pub(in crate::kernels) fn f_extremes(neighbours: Neighbours, input: &Tensor) -> Result<Option<Tensor>, LossError> {
    f_run(neighbours, EXTREMES, input, None)
}

/// The gradient of the regions, given these, their extremes and the gradient of the extremes.
pub(in crate::kernels) fn f_slopes(
    neighbours: Neighbours,
    [input, extremes, grad]: [&Tensor; 3],
) -> Result<Option<Tensor>, LossError> {
    f_run(neighbours, SLOPES, input, Some([extremes, grad]))
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/neighbours.cu")
}

fn f_run(
    neighbours: Neighbours,
    kernel: Kernel,
    input: &Tensor,
    of_result: Option<[&Tensor; 2]>,
) -> Result<Option<Tensor>, LossError> {
    let (size, kind) = (input.size(), input.f_kind()?);
    let first_axis = 5 - size.len();
    let erode = usize::from(neighbours == Neighbours::Erode);
    // A thread's number goes beyond that of the last element.
    let index = if input.numel() < 1 << 30 { "int" } else { "long long" };
    let definitions = format!("#define ERODE {erode}\n#define FIRST_AXIS {first_axis}\n#define INDEX {index}\n");
    let recipe = Recipe { definitions, ..Recipe::plain(kind, write) };
    let Some(launcher) = modules::launcher_of(input.device(), recipe, &[EXTREMES, SLOPES]) else { return Ok(None) };
    let output = Tensor::f_empty(&size, (kind, input.device()))?;
    let mut block = Block::default();
    let [extremes, grad] = of_result.map_or([None; 2], |tensors| tensors.map(Some));
    block.tensors([Some(input), extremes, grad, Some(&output)]);
    let layers = if first_axis == 0 { size[2] } else { 1 };
    block.longs([input.numel() as i64, layers, size[size.len() - 2], size[size.len() - 1]]);
    // SAFETY: the block has the layout of `Call`; all tensors are contiguous, of one size and on the device, and their
    // memory is freed on the same stream, behind the kernel.
    let launched = unsafe { block.launch(&*launcher, kernel, engine::grid(input)) };
    Ok(launched.then_some(output))
}
