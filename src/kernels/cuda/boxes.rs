//! The engine of losses of pairs of boxes, four numbers each that lie side by side: GIoU, DIoU and CIoU.

use tch::{Kind, Tensor};

use super::engine::{self, Ends, Engine, Finish, Forward, Sum, address};
use super::launch::{Block, Kernel, Launch};
use super::pointwise::{Recorded, evaluate};
use super::source::Recipe;
use super::{arguments, modules};
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::graph::Recording;
use crate::kernels::tensors::f_all_contiguous;
use crate::numeric::is_floating;

const BOXES: Kernel = Kernel { name: c"boxes", types: &["Call"] };

/// How many numbers a box has.
const CORNERS: usize = 4;

/// The reduced losses of pairs of boxes; see [`f_boxes`](crate::kernels::boxes::f_boxes).
pub(in crate::kernels) fn f_pairs(
    formula: Box<dyn Recorded>,
    boxes: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = boxes[0].f_kind()?;
    let first = Header::of(boxes[0]);
    let alike =
        |header: Header| header.is_numbers_of(kind) && header.is_on_device_of(&first) && header.size() == first.size();
    let taken = || {
        is_floating(kind)
            && boxes.iter().all(|boxes| alike(Header::of(boxes)))
            && first.size().last() == Some(&(CORNERS as i64))
            && first.elements() > 0
    };
    if formula.partial().is_some() || !taken() {
        return composite(boxes);
    }
    let engine = Pairs { recording: formula.record(), kind };
    engine::f_dispatch_to(kind, Box::new(engine), boxes, reduce, composite)
}

/// A formula of the eight numbers of two boxes.
struct Pairs {
    recording: Recording,
    kind: Kind,
}

impl Engine for Pairs {
    fn count(&self, boxes: &[&Tensor]) -> usize {
        Header::of(boxes[0]).elements() / CORNERS
    }

    fn f_forward(&self, boxes: &[&Tensor], wanted: &[bool], sum: Option<Sum>) -> Result<Option<Forward>, LossError> {
        let boxes = f_all_contiguous(boxes)?;
        let Some(call) = self.call(&boxes, None, wanted, sum.is_none()) else { return Ok(None) };
        let gradients = engine::f_gradients(&boxes[0], wanted)?;
        let (size, device) = (boxes[0].size(), boxes[0].device());
        let f_losses = || Ok(Tensor::f_empty(&size[..size.len() - 1], (self.kind, device))?);
        let f_run = |Ends { losses, sums, scale }: Ends| Ok(call.run(&gradients, (scale, None), losses, sums));
        let ended = engine::f_end(device, sum, (call.grid(), Finish::default()), f_losses, f_run)?;
        Ok(ended.map(|(loss, valid)| Forward { loss, gradients, valid }))
    }

    fn f_backward(
        &self,
        boxes: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let boxes = f_all_contiguous(boxes)?;
        let factors = grad.f_contiguous()?;
        let Some(call) = self.call(&boxes, Some(&factors), wanted, false) else { return Ok(None) };
        let gradients = engine::f_gradients(&boxes[0], wanted)?;
        Ok(call.run(&gradients, (scale.unwrap_or(1.0), Some(&factors)), None, None).then_some(gradients))
    }
}

impl Pairs {
    /// The kernels that store the gradients of these boxes times the `factors`, and the losses or not.
    fn call<'a>(
        &'a self,
        boxes: &'a [Tensor],
        factors: Option<&Tensor>,
        wanted: &[bool],
        losses: bool,
    ) -> Option<Call<'a>> {
        let of_numbers: Vec<bool> = wanted.iter().flat_map(|wanted| [*wanted; CORNERS]).collect();
        let formulas = vec![self.recording.with_wanted(&of_numbers)];
        let gradients = wanted.iter().filter(|wanted| **wanted).count();
        let definitions = format!(
            "#define GRADIENTS {gradients}\n#define LOSSES {}\ntypedef {} Factor;\n",
            usize::from(losses),
            arguments::name_of_factors(factors, self.kind),
        );
        let (kind, parameters) = (self.kind, self.recording.parameters.len());
        let recipe = Recipe { kind, parameters, definitions, formulas, write };
        let launcher = modules::launcher_of(boxes[0].device(), recipe, &[BOXES])?;
        Some(Call { kind, boxes, parameters: &self.recording.parameters, launcher })
    }
}

fn write(recipe: &Recipe) -> String {
    [&recipe.head(), &evaluate(&recipe.formulas[0]), include_str!("source/boxes.cu")].concat()
}

/// A call, with its kernels loaded.
struct Call<'a> {
    kind: Kind,
    /// Contiguous.
    boxes: &'a [Tensor],
    parameters: &'a [f64],
    launcher: Box<dyn Launch>,
}

impl Call<'_> {
    fn grid(&self) -> u32 {
        engine::grid(&self.boxes[0])
    }

    /// Runs over all pairs, as `Call` in boxes.cu says. Whether that could be launched. The derivatives are multiplied by
    /// a number, and by a contiguous tensor of one number, or of one for each pair.
    fn run(
        &self,
        gradients: &[Tensor],
        (factor, factors): (f64, Option<&Tensor>),
        losses: Option<&Tensor>,
        sums: Option<&Tensor>,
    ) -> bool {
        let box_bytes = CORNERS * self.kind.elt_size_in_bytes();
        let is_aligned = |tensor: &Tensor| (address(tensor) as usize).is_multiple_of(box_bytes.min(engine::PACK));
        let aligned = self.boxes.iter().chain(gradients).all(is_aligned);
        let mut block = Block::default();
        block.tensors(self.boxes.iter().chain(gradients));
        // The array of gradients has one place more than there are, since C++ has no empty ones.
        block.tensors([None, losses, factors, sums]);
        block.longs([(Header::of(&self.boxes[0]).elements() / CORNERS) as i64]);
        block.flags([factors.is_some_and(|factors| factors.dim() > 0), aligned]);
        block.reals(self.kind, [factor]);
        block.array(self.kind, self.parameters);
        // SAFETY: the block has the layout of `Call`; all tensors are contiguous, on the device and as large as it says,
        // and their memory is freed on the same stream, behind the kernel.
        unsafe { block.launch(&*self.launcher, BOXES, self.grid()) }
    }
}
