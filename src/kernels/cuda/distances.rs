//! The engine of the Euclidean distances of all pairs of rows of two matrices; see
//! [`distances`](crate::kernels::cpu::distances).

use tch::{Kind, Tensor};

use super::launch::{Block, Kernel};
use super::modules;
use super::source::Recipe;
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::tensors::f_contiguous;

const DISTANCES: Kernel = Kernel { name: c"distances", types: &["Call"] };
const SLOPES: Kernel = Kernel { name: c"distance_slopes", types: &["Call"] };

/// How many threads a tile of the result has in each direction: `THREADS_ACROSS` in distances.cu.
const THREADS_ACROSS: usize = 16;
/// How many blocks keep a GPU busy. A result of fewer large tiles is cut into small ones.
const BUSY: usize = 128;

/// ‖aᵢ − bⱼ‖ for all rows i of `a` and j of `b`, as `[N, M]` without a graph. `None` where the kernels do not take the
/// call or cannot be had.
pub(in crate::kernels) fn f_distances(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>, LossError> {
    if !takes([a, b])? {
        return Ok(None);
    }
    let [a, b] = [f_contiguous(a)?, f_contiguous(b)?];
    let result = Tensor::f_empty([a.size()[0], b.size()[0]], (a.f_kind()?, a.device()))?;
    Ok(f_launch(DISTANCES, [&a, &b], None, &result)?.then_some(result))
}

/// The gradient of `a`, given `grad`, that of the distances. `None` as above.
pub(in crate::kernels) fn f_distance_slopes(
    grad: &Tensor,
    a: &Tensor,
    b: &Tensor,
    distances: &Tensor,
) -> Result<Option<Tensor>, LossError> {
    if !takes([a, b, grad, distances])? {
        return Ok(None);
    }
    let [grad, a, b, distances] = [f_contiguous(grad)?, f_contiguous(a)?, f_contiguous(b)?, f_contiguous(distances)?];
    let result = a.f_empty_like()?;
    Ok(f_launch(SLOPES, [&a, &b], Some([&grad, &distances]), &result)?.then_some(result))
}

fn takes<const N: usize>(tensors: [&Tensor; N]) -> Result<bool, LossError> {
    let (kind, first) = (tensors[0].f_kind()?, Header::of(tensors[0]));
    let is_here = |tensor: &&Tensor| {
        let header = Header::of(tensor);
        header.is_numbers_of(kind) && header.is_on_device_of(&first) && header.size().len() == 2
    };
    Ok(matches!(kind, Kind::Float | Kind::Double) && tensors.iter().all(is_here))
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/distances.cu")
}

/// Whether that could be launched. All tensors are contiguous.
fn f_launch(
    kernel: Kernel,
    [a, b]: [&Tensor; 2],
    given: Option<[&Tensor; 2]>,
    result: &Tensor,
) -> Result<bool, LossError> {
    let size = [0, 1].map(|dimension| result.size()[dimension] as usize);
    let tiles = |side: usize| size.map(|length| length.div_ceil(THREADS_ACROSS * side)).iter().product::<usize>();
    let side = [4, 2].into_iter().find(|side| tiles(*side) >= BUSY).unwrap_or(1);
    let recipe = Recipe { definitions: format!("#define SIDE {side}\n"), ..Recipe::plain(a.f_kind()?, write) };
    let Some(launcher) = modules::launcher_of(a.device(), recipe, &[DISTANCES, SLOPES]) else { return Ok(false) };
    let [grad, distances] = given.map_or([None; 2], |given| given.map(Some));
    let mut block = Block::default();
    block.tensors([Some(a), Some(b), grad, distances, Some(result)]);
    block.longs([a.size()[0], b.size()[0], a.size()[1]]);
    let grid = tiles(side).min(i32::MAX as usize) as u32;
    // SAFETY: the block has the layout of `Call` in distances.cu; all tensors are contiguous, on the device and as large
    // as it says, and their memory is freed on the same stream, behind the kernel.
    Ok(unsafe { block.launch(&*launcher, kernel, grid) })
}
