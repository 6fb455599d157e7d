//! The engine of functions of each element with several results, each in a plane of its own. Results and derivatives are
//! the same kernel with another formula.

use tch::{Kind, Tensor};

use super::engine;
use super::launch::{Block, Kernel};
use super::modules;
use super::source::{Recipe, function, numbered};
use crate::LossError;
use crate::autograd::{self, Context, Header};
use crate::kernels::engine::{Composite, f_with_graph};
use crate::kernels::formulas::{Map, TypedMap};
use crate::kernels::graph::{self, Recording};
use crate::kernels::tensors::{f_all_contiguous, f_contiguous};

const MAP: Kernel = Kernel { name: c"map", types: &["Call"] };

/// A formula without its type, as graphs of operations.
pub(in crate::kernels) trait Recorded: Send + Sync {
    /// The results.
    fn record(&self) -> Recording;

    /// The derivatives with respect to the arguments, given those with respect to the results, which are arguments
    /// behind them.
    fn record_derivatives(&self) -> Recording;
}

impl<F: Map<N, M>, const N: usize, const M: usize> Recorded for TypedMap<F, N, M> {
    fn record(&self) -> Recording {
        graph::record::<N>(|arguments| self.0.evaluate(arguments).to_vec())
    }

    fn record_derivatives(&self) -> Recording {
        graph::record_two::<N, M>(|arguments, of_numbers| self.0.derive(arguments, of_numbers).to_vec())
    }
}

/// The results of a formula, as planes of the kind of the arguments; see [`f_map`](crate::kernels::f_map).
pub(in crate::kernels) fn f_planes(
    formula: Box<dyn Recorded>,
    planes: usize,
    arguments: &[&Tensor],
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    let first = Header::of(arguments[0]);
    let alike =
        |header: Header| header.is_numbers_of(kind) && header.is_on_device_of(&first) && header.size() == first.size();
    let wide = matches!(kind, Kind::Float | Kind::Double);
    if !wide || first.elements() == 0 || !arguments.iter().all(|argument| alike(Header::of(argument))) {
        return composite(arguments);
    }
    let size = [&[planes as i64], first.size()].concat();
    let results = Tensor::f_empty(&size, (kind, arguments[0].device()))?;
    if !run(formula.record(), &f_all_contiguous(arguments)?, &f_split(&results)?) {
        return composite(arguments);
    }
    let needed = autograd::needed(arguments);
    let fused = move |context: &Context, grad: &Tensor, needed: &[bool]| {
        let gradients = f_derivatives(&*formula, context.saved(), grad, needed)?;
        Ok(gradients.map(|gradients| autograd::spread(gradients, needed)))
    };
    f_with_graph(results, arguments, needed, composite, Box::new(fused))
}

/// The gradients that are needed; none where the kernel cannot be had.
fn f_derivatives(
    formula: &dyn Recorded,
    arguments: &[Tensor],
    grad: &Tensor,
    needed: &[bool],
) -> Result<Option<Vec<Tensor>>, LossError> {
    let derivatives = formula.record_derivatives().wanted(needed);
    let mut from = f_all_contiguous(&arguments.iter().collect::<Vec<_>>())?;
    let gradients = engine::f_gradients(&from[0], needed)?;
    from.extend(f_split(&f_contiguous(grad)?)?);
    Ok(run(derivatives, &from, &gradients).then_some(gradients))
}

/// The planes of a tensor.
pub(super) fn f_split(planes: &Tensor) -> Result<Vec<Tensor>, LossError> {
    (0..planes.size()[0]).map(|plane| Ok(planes.f_select(0, plane)?)).collect()
}

fn write(recipe: &Recipe) -> String {
    let formula = &recipe.formulas[0];
    [
        &recipe.head(),
        "DEVICE void results(const Real* a, const Real* p, Real* r) {\n",
        &function(formula, &numbered("a", formula.arguments()), "r"),
        "}\n",
        include_str!("source/map.cu"),
    ]
    .concat()
}

/// Computes a formula for each element. Whether that could be launched.
fn run(formula: Recording, from: &[Tensor], to: &[Tensor]) -> bool {
    let (kind, parameters) = (from[0].kind(), formula.parameters.clone());
    let definitions = format!("#define INPUTS {}\n#define OUTPUTS {}\n", from.len(), to.len());
    let recipe = Recipe { kind, parameters: parameters.len(), definitions, formulas: vec![formula], write };
    let Some(launcher) = modules::launcher_of(from[0].device(), recipe, &[MAP]) else { return false };
    let all = || from.iter().chain(to);
    let mut block = Block::default();
    block.tensors(all());
    block.longs([from[0].numel() as i64]);
    block.flags([engine::are_aligned(all()), false]);
    block.array(kind, &parameters);
    // SAFETY: the block has the layout of `Call`; all tensors are contiguous, of one size and on the device, and their
    // memory is freed on the same stream, behind the kernel.
    unsafe { block.launch(&*launcher, MAP, engine::grid(&from[0])) }
}
