//! From a reference's name and its own keyword arguments to a loss of the crate: one file per Python library.

mod kornia;
mod liger;
mod lightly;
mod monai;
mod open_clip;
mod papers;
mod pml;
mod pml_modules;
mod smp;
mod timm;
mod torch_nn;
mod torchvision;

use tch::Tensor;
use tch_losses::{Backend, Loss};

use crate::arguments::{Arguments, EvalError};

/// What a call gives.
#[derive(Debug)]
pub struct Outputs {
    /// The outputs, in the reference's order.
    pub tensors: Vec<Tensor>,
    /// The parameters of the loss, by state-dict name.
    pub state: Vec<(String, Tensor)>,
}

impl From<Tensor> for Outputs {
    fn from(tensor: Tensor) -> Self {
        Outputs { tensors: vec![tensor], state: Vec::new() }
    }
}

/// How one loss of a Python library is computed by the crate.
pub struct Adapter {
    /// The name of the row in the table.
    pub name: &'static str,
    /// Import paths of the class and the function.
    pub references: &'static [&'static str],
    /// The parameters of the function in their order; those of the class's call are the first of them.
    pub parameters: &'static [&'static str],
    /// Whether its results are met bit by bit on the CPU.
    pub equality: Equality,
    /// Computes the loss.
    pub run: fn(&mut Arguments) -> Result<Outputs, EvalError>,
}

/// How equal the results of a loss are to those of its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Equality {
    /// Bit by bit on the CPU: the crate calls the ATen operations of the reference, one or several in the same order.
    Bitwise,
    /// Bit by bit on the CPU where tensor operations are chosen; within the tolerance of the dtype from a fused engine.
    BitwiseComposite,
    /// Within the tolerance of the dtype.
    Close,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Equality {
    /// Whether bitwise equality is asked for where `backend` computes the loss.
    pub fn is_bitwise(self, backend: Backend) -> bool {
        match self {
            Equality::Bitwise => true,
            Equality::BitwiseComposite => backend == Backend::Composite,
            Equality::Close => false,
        }
    }
}

type Outcome = Result<Outputs, EvalError>;

/// A row of an adapter table.
const fn adapter(
    name: &'static str,
    references: &'static [&'static str],
    parameters: &'static [&'static str],
    equality: Equality,
    run: fn(&mut Arguments) -> Outcome,
) -> Adapter {
    Adapter { name, references, parameters, equality, run }
}

/// Applies `set` to the loss where the option was given.
fn with<L, T>(loss: L, option: Option<T>, set: impl FnOnce(L, T) -> L) -> L {
    match option {
        Some(option) => set(loss, option),
        None => loss,
    }
}

/// Calls a loss of an input and a target.
fn pair(loss: &dyn Loss, arguments: &mut Arguments) -> Outcome {
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    Ok(loss.f_forward(&input, &target)?.into())
}

const LIBRARIES: &[&[Adapter]] = &[
    torch_nn::ADAPTERS,
    torchvision::ADAPTERS,
    kornia::ADAPTERS,
    liger::ADAPTERS,
    lightly::ADAPTERS,
    monai::ADAPTERS,
    open_clip::ADAPTERS,
    smp::ADAPTERS,
    timm::ADAPTERS,
    papers::ADAPTERS,
    pml::ADAPTERS,
    papers::preference::ADAPTERS,
    papers::contrastive::ADAPTERS,
    pml_modules::ADAPTERS,
    papers::robust::ADAPTERS,
];

/// All adapters.
pub fn all() -> impl Iterator<Item = &'static Adapter> {
    LIBRARIES.iter().copied().flatten()
}

/// The adapter of a reference.
pub fn find(reference: &str) -> Option<&'static Adapter> {
    all().find(|adapter| adapter.references.contains(&reference))
}
