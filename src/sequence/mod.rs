//! Losses of sequences and of large vocabularies. They need no feature.
//!
//! [`CtcLoss`] where targets are shorter than the input and nobody says where they stand, as in speech. Of a language
//! model [`LinearCrossEntropy`] is the last layer and the cross entropy in one, without the logits of a whole batch;
//! [`AdaptiveLogSoftmaxWithLoss`] is for vocabularies of which few words are frequent.
//!
//! # Of torch.nn
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`CtcLoss`] | labels whose places are unknown | `nn.CTCLoss` | `log_probs, targets, input_lengths, target_lengths` |
//! | [`LinearCrossEntropyLoss`] | a large vocabulary, with the last layer | `nn.LinearCrossEntropyLoss` | `input, target` |
//! | [`LinearCrossEntropy`] | the same with weights that are passed in | `F.linear_cross_entropy` | `input, linear_weight, target, linear_bias` |
//! | [`AdaptiveLogSoftmaxWithLoss`] | a large vocabulary whose words are of very different frequency | `nn.AdaptiveLogSoftmaxWithLoss` | `input, target` |
//!
//! # Large vocabularies
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`LinearCrossEntropy`] | the same with a soft cap and a z-loss | `liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss` | `input, linear_weight, target, linear_bias` |

mod adaptive_log_softmax;
mod ctc;
mod linear_cross_entropy;
mod linear_head;

pub use adaptive_log_softmax::{AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxOutput, AdaptiveLogSoftmaxWithLoss};
pub use ctc::CtcLoss;
#[cfg(feature = "distributed")]
pub(crate) use linear_cross_entropy::ClassShard;
pub use linear_cross_entropy::{Chunking, LinearCrossEntropy, LinearCrossEntropyConfig, LinearCrossEntropyLoss};
pub(crate) use linear_head::HeadNames;
pub use linear_head::LinearHead;

use tch::{Tensor, nn};

use crate::LossError;
use crate::mean_parts::{f_wide, f_wide_option};
use crate::numeric::f_linear;

/// A linear layer with PyTorch's names and initial values: both uniform in ±1/√in_features.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

crate::option_tensors::shared_parameters!(Linear { weight, bias });

impl Linear {
    fn f_new(path: &nn::Path, in_features: i64, out_features: i64, bias: bool) -> Result<Linear, LossError> {
        let up = if in_features > 0 { 1.0 / (in_features as f64).sqrt() } else { 0.0 };
        let init = nn::Init::Uniform { lo: -up, up };
        let weight = path.f_var("weight", &[out_features, in_features], init)?;
        let bias = bias.then(|| path.f_var("bias", &[out_features], init)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// The same layer, in single precision at least.
    fn f_wide(&self) -> Result<Linear, LossError> {
        Ok(Linear { weight: f_wide(&self.weight)?, bias: f_wide_option(&self.bias)? })
    }

    pub(crate) fn f_forward(&self, input: &Tensor) -> Result<Tensor, LossError> {
        f_linear(input, &self.weight, self.bias.as_ref())
    }
}
