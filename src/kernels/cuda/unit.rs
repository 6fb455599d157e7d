//! The engine of rows that are scaled to length 1; see [`unit`](crate::kernels::cpu::unit) for what it computes.

use tch::{Kind, Tensor};

use super::engine;
use super::launch::{Block, Kernel, OF_WARP, THREADS, WARP};
use super::modules;
use super::source::Recipe;
use crate::LossError;
use crate::autograd::{Backward, Header, Place, Tape};
use crate::kernels::tensors::{f_contiguous, f_plain};
use crate::numeric::is_floating;

const UNITS: Kernel = Kernel { name: c"units", types: &["Call"] };
const GRADIENT: Kernel = Kernel { name: c"units_gradient", types: &["Call"] };

/// The `rows` `[N, D]` of a tape, each divided by its length, or by `least` if it is shorter. The result is of this
/// `kind`, single or double precision, and has no fewer digits than the rows. `None` where the kernels do not take the
/// call or cannot be had.
pub(in crate::kernels) fn f_on(
    tape: &mut Tape,
    rows: Place,
    kind: Kind,
    least: f64,
) -> Result<Option<Place>, LossError> {
    let input = tape.value(rows);
    let (header, own) = (Header::of(input), input.f_kind()?);
    let fits = kind == Kind::Double || kind == Kind::Float && own != Kind::Double;
    if !is_floating(own) || !fits || header.size().len() != 2 || !header.is_numbers_of(own) {
        return Ok(None);
    }
    let input = input.f_contiguous()?;
    let units = Tensor::f_empty(input.size(), (kind, input.device()))?;
    let divisors = Tensor::f_empty([input.size()[0], 2], (kind, input.device()))?;
    let call = Units { kind, own, least };
    if !call.launch(UNITS, &input, &units, &divisors, None) {
        return Ok(None);
    }
    let pull = move |Backward { arguments, grad, .. }: Backward| {
        let (rows, grad) = (f_contiguous(arguments[0])?, f_contiguous(&f_plain(grad)?)?);
        let gradient = rows.f_empty_like()?;
        let launched = call.launch(GRADIENT, &rows, &grad, &divisors, Some(&gradient));
        Ok(launched.then_some(vec![Some(gradient)]))
    };
    Ok(Some(tape.add_fused(units, &[rows], pull)))
}

fn write(recipe: &Recipe) -> String {
    recipe.head() + include_str!("source/unit.cu")
}

/// Rows of the kind `own` and unit vectors of this `kind`.
#[derive(Clone, Copy)]
struct Units {
    kind: Kind,
    own: Kind,
    least: f64,
}

impl Units {
    /// Computes the unit vectors and the divisors, or where there is a place for it the gradient, given these and that
    /// of the unit vectors. Whether that could be launched. All tensors are contiguous.
    fn launch(
        self,
        kernel: Kernel,
        rows: &Tensor,
        units: &Tensor,
        divisors: &Tensor,
        gradient: Option<&Tensor>,
    ) -> bool {
        let [count, columns] = [0, 1].map(|dimension| rows.size()[dimension] as usize);
        let group = if columns > OF_WARP { THREADS as usize } else { WARP };
        // That a processor may have one block alone keeps the compiler from a stack.
        let definitions = format!(
            "#define WIDE_RESULT {}\n#define GROUP {group}\n#define BOUNDS __launch_bounds__(THREADS, 1)\n",
            usize::from(self.kind == Kind::Double)
        );
        let recipe = Recipe { definitions, ..Recipe::plain(self.own, write) };
        let Some(launcher) = modules::launcher_of(rows.device(), recipe, &[UNITS, GRADIENT]) else { return false };
        let block = self.block([rows, units, divisors], gradient, [count, columns]);
        let grid = count.div_ceil(THREADS as usize / group).clamp(1, engine::BLOCKS) as u32;
        // SAFETY: the block has the layout of `Call` in unit.cu; all tensors are contiguous, on the device and as large
        // as it says, and their memory is freed on the same stream, behind the kernels.
        unsafe { block.launch(&*launcher, kernel, grid) }
    }

    fn block(
        self,
        [rows, units, divisors]: [&Tensor; 3],
        gradient: Option<&Tensor>,
        [count, columns]: [usize; 2],
    ) -> Block {
        let mut block = Block::default();
        // The place of the unit vectors or of their gradient, of which a kernel uses one.
        block.tensors([Some(rows), Some(units), Some(divisors), Some(units), gradient]);
        block.longs([count, columns].map(|number| number as i64));
        block.reals(Kind::Double, [self.least]);
        let whole = columns.is_multiple_of(engine::PACK / self.own.elt_size_in_bytes());
        let aligned = whole && engine::are_aligned([rows, units].into_iter().chain(gradient));
        block.flags([aligned, false]);
        block
    }
}
