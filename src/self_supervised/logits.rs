//! What the losses of images and texts share: the logits of all pairs of embeddings.

use tch::{Kind, Tensor};

use crate::LossError;
use crate::check;
use crate::kernels::{NumberOperations, waits};
use crate::numeric::{f_matrix_product, f_unit_rows, wide_kind};

/// A scale or bias of logits, made from a tensor of one element, which may be learnt, or from a number.
#[derive(Debug, Clone, Copy)]
pub enum LogitParameter<'a> {
    /// A tensor of one element.
    Tensor(&'a Tensor),
    /// A number.
    Number(f64),
}

crate::options::from_variants!(LogitParameter<'a>: &'a Tensor => Tensor, f64 => Number);

impl LogitParameter<'_> {
    /// A scalar of the kind and on the device of `logits`.
    pub(super) fn f_like(self, name: &'static str, logits: &Tensor) -> Result<Tensor, LossError> {
        let kind = logits.f_kind()?;
        let parameter = match self {
            LogitParameter::Tensor(parameter) => parameter,
            LogitParameter::Number(number) => {
                check::option(name, number, number.is_finite(), "a finite number")?;
                let held = kind == Kind::Double || number.abs() <= f64::from(f32::MAX);
                check::option(name, number, held, "a number that single precision holds, as the embeddings")?;
                return Ok(Tensor::f_full_number(&[], number, (Kind::Double, logits.device()))?.f_to_kind(kind)?);
            }
        };
        check::devices(&[("image", logits), (name, parameter)])?;
        check::floating((name, parameter))?;
        check::shape((name, parameter), parameter.numel() == 1, "one element")?;
        let parameter = parameter.f_reshape([0_i64; 0])?;
        // Only on the CPU, because on another device reading the number would wait for it.
        if !waits(&parameter) && kind != parameter.f_kind()? {
            let number = parameter.f_double_value(&[])?;
            if number.is_finite() && number.abs() > f64::from(f32::MAX) {
                let expected = "a number that single precision holds, as the embeddings".to_owned();
                return Err(LossError::Value { argument: name, expected, actual: number.to_string() });
            }
        }
        Ok(parameter.f_to_kind(kind)?)
    }
}

/// Checks that the embeddings of images and of their texts are rows of one kind, with one text for each image.
pub(super) fn pairs(image: &Tensor, text: &Tensor) -> Result<(), LossError> {
    let (image, text) = (("image", image), ("text", text));
    super::views(image, text)?;
    check::shape(image, matches!(image.1.size()[..], [_, features] if features > 0), "[N, D] with D > 0")
}

/// The similarity of each image to each text, `[N, N]`, at least in single precision.
pub(super) fn f_similarities(image: &Tensor, text: &Tensor, normalize: bool) -> Result<Tensor, LossError> {
    let kind = wide_kind(image)?;
    f_matrix_product(&f_rows(image, kind, normalize)?, &f_rows(text, kind, normalize)?.f_transpose(0, 1)?)
}

/// The rows whose products are similarities.
pub(super) fn f_rows(embeddings: &Tensor, kind: Kind, normalize: bool) -> Result<Tensor, LossError> {
    let embeddings = embeddings.f_to_kind(kind)?;
    if normalize { f_unit_rows(&embeddings, 2.0, 0.0) } else { Ok(embeddings) }
}
