use std::borrow::Borrow;

use tch::{Device, Kind, Tensor, nn};

use super::LinearCrossEntropy;
use crate::option_tensors::{OptionTensors, Replace};
use crate::sequence::Linear;
use crate::{Loss, LossError, MeanParts, check, option_tensors};

crate::options::options! {
/// The options of [`LinearCrossEntropyLoss`].
pub struct LinearCrossEntropyConfig;

/// PyTorch's defaults.
new {
    /// the dimensions d₁, …, dₖ of k-dimensional targets.
    out_features: Vec<i64> = vec![] => slice,
    /// whether the linear layer has a bias.
    bias: bool = false,
    /// the options of the cross entropy.
    cross_entropy: LinearCrossEntropy = LinearCrossEntropy::new(),
}
}

/// A linear layer and the cross entropy of its logits in one.
///
/// For the last layer of a classifier or language model. Where the layer's weights are shared with another layer choose
/// [`LinearCrossEntropy`]; where there are so many classes that a full softmax is too slow,
/// [`AdaptiveLogSoftmaxWithLoss`](crate::AdaptiveLogSoftmaxWithLoss).
///
/// # Formula
///
/// loss = [`LinearCrossEntropy`](x, W, y, b)
///
/// where x is the input, y the target, and W and b are the weight and bias of the layer.
///
#[doc = include_str!("../../../docs/book/src/gallery/linear_cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`, or `[D]` for a single row without d₁, …, dₖ
/// * `target`: `[N, d₁, …, dₖ]`, without N for a single row, of any integer kind, for class indices; or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * result: scalar, or `[N, d₁, …, dₖ]` with [`Reduction::None`](crate::Reduction::None)
///
/// The variables on the path are `linear.weight`, `[C·d₁·…·dₖ, D]`, and `linear.bias`, `[C·d₁·…·dₖ]`: the names of
/// PyTorch's state dict. Their initial values are those of `torch.nn.Linear`.
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.LinearCrossEntropyLoss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// Those of [`LinearCrossEntropy`].
///
/// # Errors
///
/// Those of [`LinearCrossEntropy`].
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{LinearCrossEntropy, LinearCrossEntropyConfig, LinearCrossEntropyLoss, Loss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let cross_entropy = LinearCrossEntropy::new().label_smoothing(0.1);
/// let config = LinearCrossEntropyConfig::new().bias(true).cross_entropy(cross_entropy);
/// let criterion = LinearCrossEntropyLoss::f_new(vs.root() / "head", 16, 5, config)?;
/// assert!(vs.variables().contains_key("head.linear.weight"));
///
/// let input = Tensor::randn([3, 16], (Kind::Float, Device::Cpu));
/// let loss = criterion.f_forward(&input, &Tensor::from_slice(&[4_i64, 0, -100]))?;
/// loss.f_backward()?;
///
/// let logits = input.linear(criterion.linear_weight(), criterion.linear_bias());
/// assert_eq!(logits.size(), [3, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias = "nn.LinearCrossEntropyLoss")]
#[must_use]
pub struct LinearCrossEntropyLoss {
    linear: Linear,
    /// `[C, d₁, …, dₖ]`, which is the shape of the bias.
    bias_shape: Vec<i64>,
    cross_entropy: LinearCrossEntropy,
}

impl OptionTensors for LinearCrossEntropyLoss {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        let cross_entropy = self.cross_entropy.map_tensors(replace);
        Self { linear: self.linear.clone(), bias_shape: self.bias_shape.clone(), cross_entropy }
    }
}

/// A copy shares the parameters.
impl Clone for LinearCrossEntropyLoss {
    fn clone(&self) -> Self {
        self.map_tensors(&mut Tensor::shallow_clone)
    }
}

impl LinearCrossEntropyLoss {
    /// The same loss with the tensors among its options on `device` and in `kind`, such as those of the input. Boolean
    /// tensors and integers keep their kind. Parameters stay where they are: they move with the `nn::VarStore` that
    /// they were created in.
    ///
    /// # Errors
    /// [`LossError::Kind`] for a kind that is not floating, [`LossError::Torch`] where libtorch cannot make the
    /// tensors.
    pub fn f_to(&self, device: Device, kind: Kind) -> Result<Self, LossError> {
        option_tensors::f_to(self, device, kind)
    }

    /// Creates the variables on `path`.
    ///
    /// # Errors
    /// A [`LossError`] that names the option at fault.
    pub fn f_new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        in_features: i64,
        num_classes: i64,
        config: LinearCrossEntropyConfig,
    ) -> Result<Self, LossError> {
        let LinearCrossEntropyConfig { out_features, bias, cross_entropy } = config;
        check::option("in_features", in_features, in_features >= 0, "a number >= 0")?;
        check::option("num_classes", num_classes, num_classes >= 0, "a number >= 0")?;
        cross_entropy.f_check_options()?;
        if let Some(weight) = &cross_entropy.weight {
            check::class_weight(Some(weight), weight, num_classes)?;
        }
        let multiply = |outputs: i64, &size: &i64| outputs.checked_mul(size).filter(|_| size >= 0);
        let Some(outputs) = out_features.iter().try_fold(num_classes, multiply) else {
            let (expected, actual) = ("numbers >= 0".into(), format!("{out_features:?}"));
            return Err(LossError::Option { option: "out_features", expected, actual });
        };
        let linear = Linear::f_new(&(path.borrow() / "linear"), in_features, outputs, bias)?;
        let bias_shape = [&[num_classes], &out_features[..]].concat();
        Ok(Self { linear, bias_shape, cross_entropy })
    }

    crate::loss::or_panic! { "Creates the variables on `path`", new['a] as new f_new(
        path: impl Borrow<nn::Path<'a>>, in_features: i64, num_classes: i64, config: LinearCrossEntropyConfig
    ) -> Self }

    /// The weight of the layer, for logits without a loss.
    pub fn linear_weight(&self) -> &Tensor {
        &self.linear.weight
    }

    /// The bias of the layer.
    pub fn linear_bias(&self) -> Option<&Tensor> {
        self.linear.bias.as_ref()
    }

    /// The variables in the shapes that the loss takes.
    fn f_layer(&self) -> Result<(Tensor, Option<Tensor>), LossError> {
        let Linear { weight, bias } = &self.linear;
        let [_] = self.bias_shape[..] else {
            let weight_shape = [&self.bias_shape[..], &weight.size()[1..]].concat();
            let bias = bias.as_ref().map(|bias| bias.f_reshape(&self.bias_shape)).transpose()?;
            return Ok((weight.f_reshape(weight_shape)?, bias));
        };
        Ok((weight.shallow_clone(), bias.as_ref().map(Tensor::shallow_clone)))
    }
}

impl Loss for LinearCrossEntropyLoss {
    crate::option_tensors::with_tensors!();

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (weight, bias) = self.f_layer()?;
        self.cross_entropy.f_forward(input, &weight, target, bias.as_ref())
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let (weight, bias) = self.f_layer()?;
        self.cross_entropy.f_parts(input, &weight, target, bias.as_ref())
    }
}
