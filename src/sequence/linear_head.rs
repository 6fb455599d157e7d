use tch::{Kind, Tensor};

use super::Linear;
use crate::numeric::wide_kind;
use crate::{LossError, check};

/// The last hidden states x of a model and its linear layer, whose logits are W x + b.
///
/// Losses that take it instead of the logits compute these in chunks, so that they are never all in memory:
/// [`LinearPreference`], [`LinearKto`], [`LinearDistillation`].
///
/// [`LinearPreference`]: crate::LinearPreference
/// [`LinearKto`]: crate::LinearKto
/// [`LinearDistillation`]: crate::LinearDistillation
#[derive(Debug, Clone, Copy)]
#[doc(alias = "lm_head")]
pub struct LinearHead<'a> {
    /// The hidden states x, with D features in the last dimension.
    pub input: &'a Tensor,
    /// The weight W, `[V, D]` for a vocabulary of V tokens.
    pub weight: &'a Tensor,
    /// The bias b, `[V]`.
    pub bias: Option<&'a Tensor>,
}

/// The names of the three tensors in errors.
pub(crate) type HeadNames = [&'static str; 3];

impl<'a> LinearHead<'a> {
    /// A layer without a bias.
    pub fn new(input: &'a Tensor, weight: &'a Tensor) -> Self {
        Self { input, weight, bias: None }
    }

    /// Sets the bias. None by default.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Checks that input, weight and bias fit together, and returns the size V of the vocabulary. `rows` names the
    /// dimensions of the input before its features.
    pub(crate) fn f_vocabulary(&self, names: HeadNames, rows: &[&str]) -> Result<i64, LossError> {
        let (input, weight) = ((names[0], self.input), (names[1], self.weight));
        let bias = self.bias.map(|bias| (names[2], bias));
        check::devices(&[&[input, weight][..], bias.as_slice()].concat())?;
        check::floating(input)?;
        check::same_kind(weight, input)?;
        let [vocabulary, features] = self.weight.size()[..] else {
            return Err(check::shape_error(weight, "[V, D]"));
        };
        let shape = self.input.size();
        if shape.len() != rows.len() + 1 || shape[rows.len()] != features {
            let expected = format!("[{}, {features}], for the {features} features of {}", rows.join(", "), names[1]);
            return Err(check::shape_error(input, expected));
        }
        if let Some(bias) = bias {
            check::same_kind(bias, input)?;
            let fits = bias.1.size() == [vocabulary];
            check::shape(bias, fits, format_args!("[{vocabulary}], one number per row of {}", names[1]))?;
        }
        Ok(vocabulary)
    }

    /// The kind in which losses of the logits are computed.
    pub(crate) fn f_wide_kind(&self) -> Result<Kind, LossError> {
        wide_kind(self.input)
    }

    /// The layer alone, in this kind.
    pub(crate) fn f_layer(&self, kind: Kind) -> Result<Linear, LossError> {
        let bias = self.bias.map(|bias| bias.f_to_kind(kind)).transpose()?;
        Ok(Linear { weight: self.weight.f_to_kind(kind)?, bias })
    }

    /// The same head in that kind, so that the gradients of several uses are added before they are rounded.
    pub(crate) fn f_widen(&self) -> Result<WideHead, LossError> {
        let kind = self.f_wide_kind()?;
        Ok(WideHead { input: self.input.f_to_kind(kind)?, layer: self.f_layer(kind)? })
    }
}

/// A [`LinearHead`] of its own tensors, in single precision at least.
pub(crate) struct WideHead {
    input: Tensor,
    layer: Linear,
}

impl WideHead {
    pub(crate) fn view(&self) -> LinearHead<'_> {
        LinearHead { input: &self.input, weight: &self.layer.weight, bias: self.layer.bias.as_ref() }
    }
}
