//! The engine of losses of embeddings: a formula of a few sums over the numbers of a row, such as dot products and
//! squared lengths.

use tch::{Kind, Tensor};

use super::engine::{self, Ends, Engine, Finish, Forward, Sum};
use super::launch::{Block, Kernel, Launch, OF_BLOCK, OF_WARP, THREADS, WARP};
use super::source::{Recipe, function, numbered};
use super::{arguments, modules};
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce, row_length};
use crate::kernels::formulas::{Embedding, TypedRows};
use crate::kernels::graph::{Recording, record_two};
use crate::kernels::tensors::f_all_contiguous;
use crate::numeric::is_floating;

const ROWS: Kernel = Kernel { name: c"rows", types: &["Call"] };
const PARTS: Kernel = Kernel { name: c"parts", types: &["Call"] };
const WHOLE: Kernel = Kernel { name: c"whole", types: &["Call"] };
const DERIVATIVES: Kernel = Kernel { name: c"derivatives", types: &["Call"] };

/// How many numbers a part has.
const PART: usize = 1 << 13;

/// A formula without its type, as graphs of operations.
pub(in crate::kernels) trait Recorded: Send + Sync {
    /// The sums after the terms of one place have been added, of the numbers there and the sums before.
    fn add(&self) -> Recording;

    /// The loss and its derivatives with respect to the sums, of the sums and the label.
    fn loss(&self) -> Recording;

    /// The derivatives with respect to the numbers of one place, of these and those with respect to the sums.
    fn derive(&self) -> Recording;
}

impl<E: Embedding<N, S>, const N: usize, const S: usize> Recorded for TypedRows<E, N, S> {
    fn add(&self) -> Recording {
        record_two::<N, S>(|numbers, sums| self.0.add(numbers, sums).to_vec())
    }

    fn loss(&self) -> Recording {
        record_two::<S, 1>(|sums, [label]| {
            let (loss, of_sums) = self.0.loss(sums, label);
            std::iter::once(loss).chain(of_sums).collect()
        })
    }

    fn derive(&self) -> Recording {
        record_two::<N, S>(|numbers, of_sums| self.0.derive(numbers, of_sums).to_vec())
    }
}

/// The reduced losses of embeddings; see [`f_embedding`](crate::kernels::embedding::f_embedding).
pub(in crate::kernels) fn f_embeddings(
    formula: Box<dyn Recorded>,
    embeddings: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    if !takes(kind, embeddings, arguments)? {
        return composite(arguments);
    }
    let (add, loss, derive) = (formula.add(), formula.loss(), formula.derive());
    let engine = Rows { add, loss, derive, embeddings, kind };
    engine::f_dispatch_to(kind, Box::new(engine), arguments, reduce, composite)
}

fn takes(kind: Kind, embeddings: usize, arguments: &[&Tensor]) -> Result<bool, LossError> {
    let first = Header::of(arguments[0]);
    let is_here = |header: &Header, kind: Kind| header.is_numbers_of(kind) && header.is_on_device_of(&first);
    let (embeddings, labels) = arguments.split_at(embeddings);
    let is_embedding = |argument: &&Tensor| {
        let header = Header::of(argument);
        is_here(&header, kind) && header.size() == first.size()
    };
    let Some((columns, rows)) = first.size().split_last() else { return Ok(false) };
    let is_labels = |labels: &&Tensor| {
        let header = Header::of(labels);
        let known = [kind, Kind::Int64, Kind::Int].iter().any(|kind| is_here(&header, *kind));
        known && header.size() == rows
    };
    Ok(is_floating(kind)
        && *columns > 0
        && first.elements() > 0
        && embeddings.iter().all(is_embedding)
        && labels.iter().all(is_labels))
}

/// A formula of so many embeddings, for tensors of a kind.
struct Rows {
    add: Recording,
    loss: Recording,
    derive: Recording,
    embeddings: usize,
    kind: Kind,
}

impl Engine for Rows {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        Header::of(arguments[0]).elements() / row_length(arguments[0])
    }

    fn differentiable(&self) -> usize {
        self.embeddings
    }

    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let arguments = f_all_contiguous(arguments)?;
        let Some(call) = self.call(&arguments, None, wanted, sum.is_none())? else { return Ok(None) };
        let gradients = engine::f_gradients(&arguments[0], wanted)?;
        let (size, device) = (arguments[0].size(), arguments[0].device());
        let f_losses = || Ok(Tensor::f_empty(&size[..size.len() - 1], (self.kind, device))?);
        let f_run = |Ends { losses, sums, scale }: Ends| call.f_run(&gradients, (scale, None), losses, sums);
        let ended = engine::f_end(device, sum, (call.shape.grid(), Finish::default()), f_losses, f_run)?;
        Ok(ended.map(|(loss, valid)| Forward { loss, gradients, valid }))
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let arguments = f_all_contiguous(arguments)?;
        let factors = grad.f_contiguous()?;
        let Some(call) = self.call(&arguments, Some(&factors), wanted, false)? else { return Ok(None) };
        let gradients = engine::f_gradients(&arguments[0], wanted)?;
        let launched = call.f_run(&gradients, (scale.unwrap_or(1.0), Some(&factors)), None, None)?;
        Ok(launched.then_some(gradients))
    }
}

impl Rows {
    /// The kernels that store these gradients times the `factors`, and the losses or not.
    fn call<'a>(
        &'a self,
        arguments: &'a [Tensor],
        factors: Option<&Tensor>,
        wanted: &[bool],
        losses: bool,
    ) -> Result<Option<Call<'a>>, LossError> {
        let columns = row_length(&arguments[0]);
        let shape = Shape::new(Header::of(&arguments[0]).elements() / columns, columns);
        let formulas = vec![self.add.clone(), self.derive.wanted(wanted), self.loss.clone()];
        let of_numbers = [&self.add.parameters[..], &self.derive.parameters].concat();
        let labels = match arguments.get(self.embeddings) {
            Some(labels) => arguments::name_of(labels.f_kind()?, self.kind),
            None => "Element",
        };
        let definitions = format!(
            "#define EMBEDDINGS {}\n#define SUMS {}\n#define GROUP {}\n#define GRADIENTS {}\n#define LOSSES {}\n\
             #define ADD_PARAMETERS {}\n#define LOSS_PARAMETERS {}\ntypedef {labels} Label;\ntypedef {} Factor;\n",
            self.embeddings,
            self.sums(),
            if columns > OF_WARP { THREADS as usize } else { WARP },
            formulas[1].outputs.len(),
            usize::from(losses),
            self.add.parameters.len(),
            self.loss.parameters.len(),
            arguments::name_of_factors(factors, self.kind),
        );
        let recipe = Recipe { kind: self.kind, parameters: of_numbers.len(), definitions, formulas, write };
        let kernels: &[Kernel] = &[ROWS, PARTS, WHOLE, DERIVATIVES];
        let launcher = modules::launcher_of(arguments[0].device(), recipe, kernels);
        Ok(launcher.map(|launcher| Call { engine: self, arguments, shape, parameters: of_numbers, launcher }))
    }

    /// How many sums the formula is of.
    fn sums(&self) -> usize {
        self.add.outputs.len()
    }
}

/// The text of the kernels of three formulas: what a place adds to the sums, the derivatives by the numbers there, and
/// the loss of the sums.
fn write(recipe: &Recipe) -> String {
    let [add, derive, loss] = &recipe.formulas[..] else { unreachable!("the recipe has three formulas") };
    let sums = add.outputs.len();
    let numbers = [numbered("a", add.arguments() - sums), numbered("s", sums)].concat();
    let of_loss = [numbered("s", sums), vec!["label".to_owned()]].concat();
    [
        &recipe.head(),
        "DEVICE void add(const Real* a, const Real* s, const Real* p, Real* q) {\n",
        &function(add, &numbers, "q"),
        "}\nDEVICE void derive(const Real* a, const Real* s, const Real* p, Real* g) {\n",
        &function(derive, &numbers, "g"),
        // There the numbers of the formula are those of double precision.
        "}\nnamespace in_double {\ntypedef double Real;\n\
         DEVICE void loss(const Real* s, Real label, const Real* p, Real* q) {\n",
        &function(loss, &of_loss, "q"),
        "}\n}\n",
        include_str!("source/embedding.cu"),
    ]
    .concat()
}

/// How the rows are shared out, by their sizes alone.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
    /// How many parts a long row has; 0 for rows that are not shared by blocks.
    parts: usize,
}

impl Shape {
    fn new(rows: usize, columns: usize) -> Self {
        let parts = if columns > OF_BLOCK { columns.div_ceil(PART) } else { 0 };
        Self { rows, columns, parts }
    }

    /// The blocks that go through all rows, of which each has a sum of losses.
    fn grid(&self) -> u32 {
        let of_block = if self.columns > OF_WARP { 1 } else { THREADS as usize / WARP };
        self.rows.div_ceil(of_block).clamp(1, engine::BLOCKS) as u32
    }
}

/// A call, with its kernels loaded.
struct Call<'a> {
    engine: &'a Rows,
    /// Contiguous.
    arguments: &'a [Tensor],
    shape: Shape,
    /// Those of all formulas but the loss.
    parameters: Vec<f64>,
    launcher: Box<dyn Launch>,
}

impl Call<'_> {
    /// Computes all rows, as `Call` in embedding.cu says. Whether that could be launched. The derivatives are multiplied
    /// by a number, and by a contiguous tensor of one number, or of one for each row.
    fn f_run(
        &self,
        gradients: &[Tensor],
        factors: (f64, Option<&Tensor>),
        losses: Option<&Tensor>,
        sums: Option<&Tensor>,
    ) -> Result<bool, LossError> {
        let Shape { rows, parts, .. } = self.shape;
        let of_sums = self.engine.sums();
        let room = if parts == 0 { 0 } else { rows * (parts + 1) * of_sums };
        let room = Tensor::f_empty([room as i64], (Kind::Double, self.arguments[0].device()))?;
        let mut block = self.block(gradients, factors, losses, sums, &room);
        let Ok(of_parts) = i32::try_from(rows * parts) else { return Ok(false) };
        let mut launch = |kernel: Kernel, grid: u32| {
            // SAFETY: the block has the layout of `Call`; all tensors are contiguous, on the device and as large as it
            // says, and their memory is freed on the same stream, behind the kernels.
            unsafe { self.launcher.launch(kernel, grid, &mut [block.as_mut_ptr().cast()]) }.is_ok()
        };
        if parts == 0 {
            return Ok(launch(ROWS, self.shape.grid()));
        }
        let summed = launch(PARTS, of_parts as u32) && launch(WHOLE, self.shape.grid());
        Ok(summed && (gradients.is_empty() || launch(DERIVATIVES, of_parts as u32)))
    }

    fn block(
        &self,
        gradients: &[Tensor],
        (factor, factors): (f64, Option<&Tensor>),
        losses: Option<&Tensor>,
        sums: Option<&Tensor>,
        room: &Tensor,
    ) -> Vec<u64> {
        let kind = self.engine.kind;
        let Shape { rows, columns, parts } = self.shape;
        let (embeddings, labels) = self.arguments.split_at(self.engine.embeddings);
        let whole = columns.is_multiple_of(engine::PACK / kind.elt_size_in_bytes());
        let aligned = whole && engine::are_aligned(embeddings.iter().chain(gradients));
        let mut block = Block::default();
        block.tensors(embeddings.iter().chain(gradients));
        // The array of gradients has one place more than there are, since C++ has no empty ones.
        block.tensors([None, labels.first(), losses, factors, sums, Some(room)]);
        block.longs([rows, columns, PART, parts].map(|number| number as i64));
        block.reals(Kind::Double, [factor]);
        block.array(Kind::Double, &self.engine.loss.parameters);
        block.flags([factors.is_some_and(|factors| factors.dim() > 0), aligned]);
        block.array(kind, &self.parameters);
        block.finish()
    }
}
