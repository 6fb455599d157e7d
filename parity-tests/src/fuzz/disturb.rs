//! Arguments that do not fit.

use anyhow::Result;
use tch::{Device, Tensor};

use super::random::Random;
use super::tensors::{self, Special, Values, shape};

/// Makes one or two of the arguments something else.
pub fn disturb(arguments: &mut [(&'static str, Tensor)], random: &mut Random) {
    for _ in 0..=random.below(2) {
        let position = random.below(arguments.len());
        let tensor = &mut arguments[position].1;
        // Not every operation takes every kind; then it stays as it is.
        let other = disturbed(tensor, random).unwrap_or_else(|_| tensor.shallow_clone());
        *tensor = other;
    }
}

fn disturbed(tensor: &Tensor, random: &mut Random) -> Result<Tensor> {
    Ok({
        match random.below(9) {
            0 => tensor.f_to_kind(tensors::any_kind(random))?,
            1 => tensor.f_unsqueeze(random.between(-1, 0))?,
            2 if tensor.dim() > 0 && tensor.size()[0] > 0 => tensor.f_select(0, 0)?,
            3 if tensor.dim() > 0 => {
                let dim = random.between(0, tensor.dim() as i64 - 1);
                tensor.f_narrow(dim, 0, random.between(0, tensor.size()[dim as usize]))?
            }
            4 if tensor.dim() > 1 => tensor.f_transpose(0, -1)?,
            5 => tensors::tensor(&shape(0, 5, random), tensors::any_kind(random), Values::Real, Special::Any, random)?,
            6 if random.chance(0.1) => odd_layout(tensor, random),
            7 => tensors::tensor(&tensor.size(), tensors::any_kind(random), Values::Real, Special::Any, random)?,
            _ => tensor.shallow_clone(),
        }
    })
}

/// A tensor that is not plain: none at all, sparse, or of another layout.
fn odd_layout(tensor: &Tensor, random: &mut Random) -> Tensor {
    if !tensor.defined() {
        return tensor.shallow_clone();
    }
    let sparse = |tensor: &Tensor| tensor.f_to_sparse(None::<tch::Layout>, None::<i64>, None::<i64>);
    let odd = match random.below(6) {
        0 => Ok(Tensor::new()),
        1 => sparse(tensor),
        2 => tensor.f_to_sparse_csr(None),
        3 => tensor.f_to_mkldnn(None),
        4 => Tensor::f_internal_efficientzerotensor(tensor.size(), (tensor.kind(), Device::Cpu)),
        _ => tensor.f_internal_neg_view(),
    };
    // Not every tensor can be had so.
    odd.unwrap_or_else(|_| tensor.shallow_clone())
}
