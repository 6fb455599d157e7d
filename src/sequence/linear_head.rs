use tch::{Kind, Tensor};

use crate::numeric::wide_kind;
use crate::{LossError, check};

/// The last hidden states of a model and the linear layer that makes logits of them, W x + b.
///
/// Losses that take it instead of the logits never have all logits in memory: [`LinearPreference`], [`LinearKto`],
/// [`LinearDistillation`].
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

    /// The size V of the vocabulary, once input, weight and bias fit together; `rows` says what the input's shape is
    /// before its features.
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
            if bias.1.size() != [vocabulary] {
                return Err(check::shape_error(bias, format!("[{vocabulary}], one number per row of {}", names[1])));
            }
        }
        Ok(vocabulary)
    }

    /// The kind in which losses of the logits are computed.
    pub(crate) fn f_wide_kind(&self) -> Result<Kind, LossError> {
        wide_kind(self.input)
    }

    /// The same in that kind: gradients of several uses are added up before they are rounded.
    pub(crate) fn f_widen(&self) -> Result<WideHead, LossError> {
        let kind = self.f_wide_kind()?;
        let bias = self.bias.map(|bias| bias.f_to_kind(kind)).transpose()?;
        Ok(WideHead { input: self.input.f_to_kind(kind)?, weight: self.weight.f_to_kind(kind)?, bias })
    }
}

/// A [`LinearHead`] of its own tensors, in single precision at least.
pub(crate) struct WideHead {
    input: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl WideHead {
    pub(crate) fn view(&self) -> LinearHead<'_> {
        LinearHead { input: &self.input, weight: &self.weight, bias: self.bias.as_ref() }
    }
}
