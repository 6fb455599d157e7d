use tch::{Tensor, no_grad};

use crate::kernels::NumberOperations;
use crate::numeric::f_ratio;
use crate::sequence::HeadNames;
use crate::{Chunking, InvalidValues, LinearCrossEntropy, LinearHead, LossError, Reduction, check};

/// How the log-probabilities of the tokens of a sequence become that of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[doc(alias = "average_log_prob")]
#[non_exhaustive]
pub enum TokenReduction {
    /// Their sum, log π(y|x). The default.
    #[default]
    Sum,
    /// Their mean, log π(y|x) / |y|, which does not favour short sequences. The mean over no tokens is 0.
    Mean,
}

crate::options::words!(TokenReduction);

#[cfg(feature = "serde")]
crate::description::none_is_null!(TokenReduction);

crate::options::options! {
/// The log-probabilities of sequences of tokens, from the hidden states of a model.
///
/// This is not a loss, but computes the input of the preference losses: for the log-probabilities of a reference model,
/// computed once before training (in `tch::no_grad`), and for training steps of your own. It is differentiable, and
/// only the logits of one chunk of tokens are in memory at a time.
///
/// # Formula
///
/// log π(y|x) = Σₜ log softmax(z\[t\])\[yₜ\], z = s · tanh((W h + b) / s)
///
/// where h are the hidden states, W and b are the weight and bias of the last layer, y is the target, and s the soft
/// cap; by default z = W h + b. Tokens of the ignored index are left out. The target is not shifted: h\[t\] predicts
/// yₜ.
///
/// # Shapes
///
/// * `head`: an input `[B, T, D]` of B sequences of T tokens, a weight `[V, D]` and a bias `[V]`
/// * `target`: `[B, T]`, of any integer kind
/// * result: `[B]`, of the input's kind, single precision at least
///
/// # Reference
///
/// What `LigerFusedLinearPreferenceBase` of liger-kernel 0.8.5 computes for the losses that are built on it.
///
/// # Differences from Liger
///
/// * The mean over a sequence whose tokens are all ignored is 0, with gradient 0; Liger's is NaN.
/// * Double precision is computed in double precision; Liger computes in single precision.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a token out of range, [`LossError::Option`] for a chunking of less than one row or a soft
/// cap that is not above 0.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{LinearHead, SequenceLogProbs};
///
/// // All tokens are equally likely, and the last one of the second sequence is padding.
/// let hidden = Tensor::zeros([2, 3, 8], (Kind::Double, Device::Cpu));
/// let weight = Tensor::randn([4, 8], (Kind::Double, Device::Cpu));
/// let target = Tensor::from_slice(&[0_i64, 1, 2, 3, 3, -100]).view([2, 3]);
///
/// let log_probs = SequenceLogProbs::new().f_forward(LinearHead::new(&hidden, &weight), &target)?;
/// assert_eq!(Vec::<f64>::try_from(log_probs)?, [-3.0 * 4_f64.ln(), -2.0 * 4_f64.ln()]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct SequenceLogProbs;

/// The log-probabilities of sequences, with targets of −100 ignored.
new {
    /// the token that is ignored, for prompts and padding.
    ignore_index: i64 = -100,
    /// whether tokens are summed up or averaged. By default they are summed up, and inside a
    /// [`LinearPreference`](crate::LinearPreference) it is what the [loss](crate::PreferenceLoss::token_reduction)
    /// says.
    #[doc(alias = "average_log_prob")]
    token_reduction: Option<TokenReduction> = None,
    /// how a token out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// how many tokens are taken at once.
    chunking: Chunking = Chunking::default(),
    /// the soft cap s: logits become s · tanh(logit / s), between −s and s.
    #[doc(alias = "softcap")]
    #[doc(alias = "final_logit_softcapping")]
    soft_cap: Option<f64> = None,
}
}

/// The reference model, given by its hidden states or by its log-probabilities. It gets no gradient.
#[derive(Debug, Clone, Copy)]
pub enum ReferenceModel<'a> {
    /// Its hidden states and its last layer, of which the log-probabilities are computed as those of the policy are.
    Head(LinearHead<'a>),
    /// Its log-probabilities, one per sequence, `[B]`, as [`SequenceLogProbs`] computes them.
    LogProbs(&'a Tensor),
}

/// The names of the policy's tensors.
pub(super) const NAMES: HeadNames = ["input", "weight", "bias"];

/// The log-probabilities of a batch of sequences.
pub(super) struct Scores {
    /// The log-probability of each token, 0 where it is ignored, `[B, T]`.
    pub(super) tokens: Tensor,
    /// Which tokens are not ignored, `[B, T]`.
    pub(super) counted: Tensor,
    /// The log-probability of each sequence, `[B]`.
    pub(super) sequences: Tensor,
}

impl SequenceLogProbs {
    /// Computes the log-probabilities, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, head: LinearHead, target: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_scores(head, NAMES, target, TokenReduction::Sum)?.sequences)
    }

    crate::loss::or_panic! { "Computes the log-probabilities", forward[] as
    f_forward(head: LinearHead, target: &Tensor) -> Tensor }

    /// `default` says how tokens are reduced where no option does.
    pub(super) fn f_scores(
        &self,
        head: LinearHead,
        names: HeadNames,
        target: &Tensor,
        default: TokenReduction,
    ) -> Result<Scores, LossError> {
        head.f_vocabulary(names, &["B", "T"])?;
        check::devices(&[(names[0], head.input), ("target", target)])?;
        let mut shape = head.input.size();
        shape.pop();
        if target.size() != shape {
            return Err(check::shape_error(
                ("target", target),
                format!("{shape:?}, one token per row of {}", names[0]),
            ));
        }
        let target = check::integers(("target", target))?;
        let counted = target.f_ne_number(self.ignore_index)?;
        let tokens = self.f_tokens(head, &target)?.f_reshape(&shape)?.f_neg()?;
        let sum = tokens.f_sum_dim_intlist(1, false, None)?;
        let sequences = match self.token_reduction.unwrap_or(default) {
            TokenReduction::Sum => sum,
            TokenReduction::Mean => f_ratio(&sum, &counted.f_sum_dim_intlist(1, false, sum.f_kind()?)?)?,
        };
        Ok(Scores { tokens, counted, sequences })
    }

    /// The log-probabilities that the reference model gives to the sequences of `target`.
    pub(super) fn f_reference(
        &self,
        reference: ReferenceModel,
        target: &Tensor,
        default: TokenReduction,
    ) -> Result<Tensor, LossError> {
        match reference {
            ReferenceModel::Head(head) => {
                let names = ["reference input", "reference weight", "reference bias"];
                Ok(no_grad(|| self.f_scores(head, names, target, default))?.sequences)
            }
            ReferenceModel::LogProbs(log_probs) => {
                let named = ("reference", log_probs);
                check::devices(&[("target", target), named])?;
                check::floating(named)?;
                let fits = log_probs.size() == target.size()[..1];
                check::shape(named, fits, format_args!("{:?}, one log-probability per sequence", &target.size()[..1]))?;
                Ok(log_probs.f_detach()?)
            }
        }
    }

    /// The negative log-probabilities of the tokens. Half precision is converted to single precision first, because a
    /// sum over many tokens loses its digits in half precision.
    fn f_tokens(&self, head: LinearHead, target: &Tensor) -> Result<Tensor, LossError> {
        let wide = head.f_widen()?;
        let head = wide.view();
        let features = head.weight.size()[1];
        let rows = target.numel() as i64;
        let mut criterion = LinearCrossEntropy::new()
            .ignore_index(Some(self.ignore_index))
            .invalid_values(self.invalid_values)
            .chunking(self.chunking)
            .reduction(Reduction::None);
        if let Some(cap) = self.soft_cap {
            criterion = criterion.soft_cap(cap);
        }
        let input = head.input.f_reshape([rows, features])?;
        criterion.f_forward(&input, head.weight, &target.f_reshape([rows])?, head.bias)
    }
}

/// The mean over tokens and vocabulary of the logits of each sequence, `[B]`, before a soft cap and without a graph. It
/// is computed from means of the hidden states and of the weight, without the logits.
pub(super) fn f_logits_means(head: LinearHead) -> Result<Tensor, LossError> {
    let kind = head.f_wide_kind()?;
    let hidden = head.input.f_detach()?.f_mean_dim(1, false, kind)?;
    let weight = head.weight.f_detach()?.f_mean_dim(0, false, kind)?;
    let means = hidden.f_mv(&weight)?;
    match head.bias {
        Some(bias) => Ok(means.f_add(&bias.f_detach()?.f_mean(kind)?)?),
        None => Ok(means),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::random::randn;

    #[test]
    fn they_are_those_of_the_log_softmax() {
        let (hidden, weight, bias) = (randn([2, 5, 3]), randn([7, 3]), randn([7]));
        let target = Tensor::from_slice(&[6_i64, 0, 1, 2, 3, 4, 9, 9, 5, 9]).view([2, 5]);
        let head = LinearHead::new(&hidden, &weight).bias(&bias);
        let log_probs = hidden.linear(&weight, Some(&bias)).log_softmax(2, None);
        let counted = target.ne(9);
        let each =
            log_probs.gather(2, &target.masked_fill(&counted.logical_not(), 0).unsqueeze(2), false).squeeze_dim(2);
        let expected = (each * &counted).sum_dim_intlist(1, false, Kind::Double);
        for rows in [1, 3, 100] {
            let of = SequenceLogProbs::new().ignore_index(9).chunking(Chunking::Rows(rows));
            assert!(of.forward(head, &target).allclose(&expected, 1e-12, 1e-12, false));
            let means = of.token_reduction(TokenReduction::Mean).forward(head, &target);
            let expected = &expected / Tensor::from_slice(&[5.0, 2.0]);
            assert!(means.allclose(&expected, 1e-12, 1e-12, false));
        }
        let logits = hidden.linear(&weight, Some(&bias)).mean_dim([1, 2].as_slice(), false, None);
        assert!(f_logits_means(head).unwrap().allclose(&logits, 1e-12, 1e-12, false));
    }

    #[test]
    fn half_precision_is_summed_up_in_single_precision() {
        let hidden = Tensor::zeros([1, 4096, 2], (Kind::BFloat16, Device::Cpu));
        let weight = Tensor::zeros([4, 2], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
        let target = Tensor::zeros([1, 4096], (Kind::Uint8, Device::Cpu));
        let log_probs = SequenceLogProbs::new().forward(LinearHead::new(&hidden, &weight), &target);
        assert_eq!(log_probs.kind(), Kind::Float);
        assert!((log_probs.double_value(&[0]) + 4096.0 * 4_f64.ln()).abs() < 1e-2);
        log_probs.sum(None).backward();
        assert_eq!(weight.grad().kind(), Kind::BFloat16);
    }

    #[test]
    fn wrong_calls_are_named() {
        let (hidden, weight, target) = (randn([2, 3, 4]), randn([5, 4]), Tensor::from_slice(&[0_i64; 6]).view([2, 3]));
        let of = SequenceLogProbs::new();
        let (flat, other, floats) = (randn([6, 4]), randn([5, 3]), randn([5, 4]).to_kind(Kind::Float));
        let (bias, short, high) = (randn([4]), target.narrow(1, 0, 2), &target + 5);
        for (result, message) in [
            (
                of.f_forward(LinearHead::new(&flat, &weight), &target),
                "input has shape [6, 4], expected [B, T, 4], for the 4 features of weight",
            ),
            (
                of.f_forward(LinearHead::new(&hidden, &other), &target),
                "input has shape [2, 3, 4], expected [B, T, 3], for the 3 features of weight",
            ),
            (
                of.f_forward(LinearHead::new(&hidden, &floats), &target),
                "weight has kind Float, expected Double, the kind of input",
            ),
            (
                of.f_forward(LinearHead::new(&hidden, &weight).bias(&bias), &target),
                "bias has shape [4], expected [5], one number per row of weight",
            ),
            (
                of.f_forward(LinearHead::new(&hidden, &weight), &short),
                "target has shape [2, 2], expected [2, 3], one token per row of input",
            ),
            (
                of.f_forward(LinearHead::new(&hidden, &weight), &high),
                "target holds 5, expected classes in [0, 5), or ignore_index -100",
            ),
            (
                of.chunking(Chunking::Rows(0)).f_forward(LinearHead::new(&hidden, &weight), &target),
                "option chunking is Rows(0), expected a number of rows >= 1",
            ),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
