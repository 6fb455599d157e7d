//! The engine of the absolute differences of neighbours in planes; see [`f_variation`](crate::kernels::f_variation).

use std::ffi::c_void;

use tch::{Kind, Tensor};

use super::engine::{self, Engine, Forward, Sum, address};
use super::launch::{Block, Kernel, Launch, THREADS};
use super::modules;
use super::source::Recipe;
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::tensors::f_contiguous;
use crate::kernels::variation::sizes;
use crate::numeric::is_floating;

const VARIATION: Kernel = Kernel { name: c"variation", types: &["Call"] };
const OF_PLANES: Kernel =
    Kernel { name: c"of_planes", types: &["const double*", "long long", "long long", "Element*"] };

/// `CHUNK` in variation.cu.
const CHUNK: usize = THREADS as usize * 8;

/// The reduced losses of planes that are not empty; see [`f_variation`](crate::kernels::f_variation).
pub(in crate::kernels) fn f_reduced(
    factors: [f64; 2],
    planes: &Tensor,
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = planes.f_kind()?;
    if !is_floating(kind) || !Header::of(planes).is_numbers_of(kind) {
        return composite(&[planes]);
    }
    engine::f_dispatch_to(kind, Box::new(Variation { factors, kind }), &[planes], reduce, composite)
}

struct Variation {
    /// Those of vertical and horizontal differences.
    factors: [f64; 2],
    kind: Kind,
}

impl Engine for Variation {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        let [height, width] = sizes(arguments[0]);
        Header::of(arguments[0]).elements() / (height * width)
    }

    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let planes = f_contiguous(arguments[0])?;
        let Some(call) = self.call(&planes, wanted[0]) else { return Ok(None) };
        let gradients = engine::f_gradients(&planes, wanted)?;
        let sums = Tensor::f_empty([call.works() as i64], (Kind::Double, planes.device()))?;
        let scale = sum.map_or(1.0, |sum| sum.scale);
        if !call.run(gradients.first(), (scale, None), Some(&sums)) {
            return Ok(None);
        }
        let loss = match sum {
            Some(sum) => engine::f_finish(&sums, call.works() as u32, sum)?,
            None => call.f_losses(&sums)?,
        };
        Ok(loss.map(|loss| Forward { loss, gradients, valid: None }))
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let planes = f_contiguous(arguments[0])?;
        let Some(call) = self.call(&planes, wanted[0]) else { return Ok(None) };
        let gradients = engine::f_gradients(&planes, wanted)?;
        let factors = grad.f_contiguous()?;
        let launched = call.run(gradients.first(), (scale.unwrap_or(1.0), Some(&factors)), None);
        Ok(launched.then_some(gradients))
    }
}

impl Variation {
    fn call<'a>(&self, planes: &'a Tensor, gradient: bool) -> Option<Call<'a>> {
        let definitions = format!("#define GRADIENT {}\n", usize::from(gradient));
        let recipe = Recipe { definitions, ..Recipe::plain(self.kind, write) };
        let launcher = modules::launcher_of(planes.device(), recipe, &[VARIATION, OF_PLANES])?;
        Some(Call { factors: self.factors, kind: self.kind, planes, launcher })
    }
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/variation.cu")
}

/// A call, with its kernels loaded.
struct Call<'a> {
    factors: [f64; 2],
    kind: Kind,
    /// Contiguous.
    planes: &'a Tensor,
    launcher: Box<dyn Launch>,
}

impl Call<'_> {
    /// How many chunks a plane has.
    fn chunks(&self) -> usize {
        let [height, width] = sizes(self.planes);
        (height * width).div_ceil(CHUNK)
    }

    /// How many planes there are.
    fn count(&self) -> usize {
        let [height, width] = sizes(self.planes);
        self.planes.numel() / (height * width)
    }

    /// How many chunks all planes have.
    fn works(&self) -> usize {
        self.count() * self.chunks()
    }

    /// Runs over all planes, as `Call` in variation.cu says. Whether that could be launched. The derivatives are
    /// multiplied by a number, and by a contiguous tensor of one number, or of one for each plane.
    fn run(&self, gradient: Option<&Tensor>, (factor, factors): (f64, Option<&Tensor>), sums: Option<&Tensor>) -> bool {
        let [height, width] = sizes(self.planes);
        let mut block = Block::default();
        block.tensors([Some(self.planes), gradient, factors, sums]);
        let threads = THREADS as usize;
        let numbers = [height, width, self.chunks(), self.works(), threads / width, threads % width];
        block.longs(numbers.map(|number| number as i64));
        block.flags([factors.is_some_and(|factors| factors.dim() > 0), false]);
        block.reals(self.kind, self.factors.into_iter().chain([factor]));
        let grid = self.works().clamp(1, engine::BLOCKS) as u32;
        // SAFETY: the block has the layout of `Call`; all tensors are contiguous, on the device and as large as it says,
        // and their memory is freed on the same stream, behind the kernel.
        unsafe { block.launch(&*self.launcher, VARIATION, grid) }
    }

    /// The losses of the planes, of which the sums of all chunks are given; none where that could not be launched.
    fn f_losses(&self, sums: &Tensor) -> Result<Option<Tensor>, LossError> {
        let size = self.planes.size();
        let losses = Tensor::f_empty(&size[..size.len() - 2], (self.kind, self.planes.device()))?;
        let (mut from, mut to) = (address(sums), losses.data_ptr());
        let (mut chunks, mut planes) = (self.chunks() as i64, self.count() as i64);
        let parameters: &mut [*mut c_void] =
            &mut [(&raw mut from).cast(), (&raw mut chunks).cast(), (&raw mut planes).cast(), (&raw mut to).cast()];
        let grid = self.count().div_ceil(THREADS as usize).clamp(1, engine::BLOCKS) as u32;
        // SAFETY: the types are those of the kernel; the kernels of a stream run one after the other.
        let launched = unsafe { self.launcher.launch(OF_PLANES, grid, parameters) }.is_ok();
        Ok(launched.then_some(losses))
    }
}
