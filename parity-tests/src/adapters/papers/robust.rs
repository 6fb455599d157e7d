//! Robust losses of regression, and SSIM with all options.

use tch_losses::{
    CauchyLoss, CharbonnierLoss, CharbonnierMinimum, GemanMcClureLoss, LogCoshLoss, Loss, MapeLoss, MsSsimL1Loss,
    MsSsimLoss, MsSsimScope, MsleLoss, QuantileLoss, Reduction, SsimForm, SsimLoss, SsimPadding, SsimScope, SsimWindow,
    WelschLoss,
};

use crate::adapters::Equality::Close;
use crate::adapters::{Adapter, Outcome, adapter, pair, with};
use crate::arguments::{Argument, Arguments, EvalError, Numbers};

#[rustfmt::skip]
pub(in crate::adapters) const ADAPTERS: &[Adapter] = &[
    adapter("LogCoshLoss", &["papers.robust.log_cosh_loss"], &["input", "target"], Close, log_cosh),
    adapter("MsleLoss", &["papers.robust.squared_logarithmic_error"], &["input", "target"], Close, msle),
    adapter("MapeLoss", &["papers.robust.percentage_error"], &["input", "target"], Close, mape),
    adapter("QuantileLoss", &["papers.robust.quantile_loss"], &["input", "target"], Close, quantile),
    adapter("CauchyLoss, GemanMcClureLoss, WelschLoss (formula)", &["papers.robust.barron_loss"],
        &["input", "target"], Close, barron),
    adapter("CharbonnierLoss (formula)", &["papers.robust.charbonnier_loss"], &["input", "target"], Close, charbonnier),
    adapter("SsimLoss (formula)", &["papers.images.ssim_loss"], &["input", "target"], Close, ssim),
    adapter("MsSsimLoss (formula)", &["papers.images.ms_ssim_loss"], &["input", "target"], Close, ms_ssim),
    adapter("MsSsimL1Loss (formula)", &["papers.images.ms_ssim_l1_loss"], &["input", "target"], Close, ms_ssim_l1),
];

/// A loss with the weight and the reduction of the call; without a weight Keras takes the mean over the last dimension
/// before it reduces.
macro_rules! keras {
    ($loss:ident, $arguments:ident, $($options:tt)*) => {{
        let reduction = $arguments.reduction()?;
        match $arguments.optional_tensor("weight")? {
            Some(weight) => pair(&$loss::new()$($options)*.weight(weight).reduction(reduction), $arguments),
            None if reduction == Reduction::Mean => pair(&$loss::new()$($options)*, $arguments),
            None => rows(&$loss::new()$($options)*.reduction(Reduction::None), reduction, $arguments),
        }
    }};
}

/// The reduced means over the last dimension, rounded once.
fn rows(loss: &dyn Loss, reduction: Reduction, arguments: &mut Arguments) -> Outcome {
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    let kind = input.f_kind()?;
    let half = matches!(kind, tch::Kind::Half | tch::Kind::BFloat16);
    let wide = if half { tch::Kind::Float } else { kind };
    let means = loss.f_forward(&input.f_to_kind(wide)?, &target)?.f_mean_dim(-1, false, None)?;
    let reduced = if reduction == Reduction::Sum { means.f_sum(None)? } else { means };
    Ok(reduced.f_to_kind(kind)?.into())
}

fn log_cosh(arguments: &mut Arguments) -> Outcome {
    keras!(LogCoshLoss, arguments,)
}

fn msle(arguments: &mut Arguments) -> Outcome {
    let eps = arguments.number("eps", 1e-7)?;
    keras!(MsleLoss, arguments, .eps(eps))
}

fn mape(arguments: &mut Arguments) -> Outcome {
    let eps = arguments.number("eps", 1e-7)?;
    keras!(MapeLoss, arguments, .eps(eps))
}

fn quantile(arguments: &mut Arguments) -> Outcome {
    let loss = QuantileLoss::new().reduction(arguments.reduction()?);
    let loss = with(loss, arguments.optional_tensor("weight")?, QuantileLoss::weight);
    let loss = match arguments.numbers("quantiles")? {
        None => loss,
        Some(Numbers::One(quantile)) => loss.quantiles(quantile),
        Some(Numbers::Many(quantiles)) => loss.quantiles(quantiles),
    };
    pair(&loss, arguments)
}

fn barron(arguments: &mut Arguments) -> Outcome {
    let (alpha, scale) = (arguments.integer("alpha", 0)?, arguments.number("scale", 1.0)?);
    let (reduction, weight) = (arguments.reduction()?, arguments.optional_tensor("weight")?);
    match alpha {
        0 => pair(&with(CauchyLoss::new().scale(scale).reduction(reduction), weight, CauchyLoss::weight), arguments),
        -2 => {
            let loss = GemanMcClureLoss::new().scale(scale).reduction(reduction);
            pair(&with(loss, weight, GemanMcClureLoss::weight), arguments)
        }
        -1000 => {
            pair(&with(WelschLoss::new().scale(scale).reduction(reduction), weight, WelschLoss::weight), arguments)
        }
        other => Err(EvalError::Unsupported(format!("alpha {other}"))),
    }
}

fn charbonnier(arguments: &mut Arguments) -> Outcome {
    let minimum = match arguments.text("minimum")?.as_deref() {
        Some("eps") => CharbonnierMinimum::Eps,
        _ => CharbonnierMinimum::Zero,
    };
    let loss =
        CharbonnierLoss::new().eps(arguments.number("eps", 1.0)?).minimum(minimum).reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, CharbonnierLoss::weight), arguments)
}

/// One number or several, as a list.
pub(in crate::adapters) fn list(arguments: &mut Arguments, name: &str) -> Result<Option<Vec<f64>>, EvalError> {
    Ok(arguments.numbers(name)?.map(|numbers| match numbers {
        Numbers::One(number) => vec![number],
        Numbers::Many(numbers) => numbers,
    }))
}

fn window(arguments: &mut Arguments) -> Result<SsimWindow, EvalError> {
    match arguments.text("kernel_type")?.as_deref() {
        None | Some("gaussian") => Ok(SsimWindow::Gaussian),
        Some("uniform") => Ok(SsimWindow::Uniform),
        Some(other) => Err(EvalError::Rejected(format!("there is no window {other:?}"))),
    }
}

/// The options that MONAI's loss and the formula have in common.
pub(in crate::adapters) fn ssim_options(arguments: &mut Arguments) -> Result<SsimLoss, EvalError> {
    let loss = SsimLoss::new()
        .window(window(arguments)?)
        .data_range(arguments.number("data_range", 1.0)?)
        .k1(arguments.number("k1", 0.01)?)
        .k2(arguments.number("k2", 0.03)?)
        .reduction(arguments.reduction()?);
    let sizes = list(arguments, "win_size")?;
    let loss =
        with(loss, sizes, |loss, sizes| loss.window_size(&sizes.iter().map(|size| *size as i64).collect::<Vec<_>>()));
    Ok(with(loss, list(arguments, "kernel_sigma")?, |loss, sigma| loss.sigma(&sigma)))
}

/// How many dimensions the images have, beside samples and channels.
fn image_dims(arguments: &mut Arguments) -> Result<usize, EvalError> {
    let input = arguments.tensor("input")?;
    let dims = input.dim().saturating_sub(2);
    arguments.insert("input", Argument::Tensor(input));
    Ok(dims)
}

fn ssim(arguments: &mut Arguments) -> Outcome {
    let loss = ssim_options(arguments)?.eps(arguments.number("eps", 0.0)?).spatial_dims(image_dims(arguments)?);
    let loss = if arguments.boolean("reflect", false)? { loss.padding(SsimPadding::Reflect) } else { loss };
    let loss = if arguments.boolean("half", false)? { loss.form(SsimForm::Dissimilarity) } else { loss };
    let loss = if arguments.boolean("per_sample", false)? { loss.scope(SsimScope::Sample) } else { loss };
    pair(&loss, arguments)
}

/// The options that MONAI's metric and the formula have in common; `size` is the name of the window's.
pub(in crate::adapters) fn ms_ssim_options(arguments: &mut Arguments, size: &str) -> Result<MsSsimLoss, EvalError> {
    let loss = MsSsimLoss::new()
        .window(window(arguments)?)
        .data_range(arguments.number("data_range", 1.0)?)
        .k1(arguments.number("k1", 0.01)?)
        .k2(arguments.number("k2", 0.03)?)
        .reduction(arguments.reduction()?);
    let loss = with(loss, list(arguments, "weights")?, |loss, weights| loss.weights(&weights));
    let loss = with(loss, list(arguments, size)?, |loss, sizes| {
        loss.window_size(&sizes.iter().map(|size| *size as i64).collect::<Vec<_>>())
    });
    Ok(with(loss, list(arguments, "kernel_sigma")?, |loss, sigma| loss.sigma(&sigma)))
}

fn ms_ssim(arguments: &mut Arguments) -> Outcome {
    let loss = ms_ssim_options(arguments, "win_size")?.spatial_dims(image_dims(arguments)?);
    let loss = if arguments.boolean("per_channel", false)? { loss.scope(MsSsimScope::Channel) } else { loss };
    pair(&loss, arguments)
}

fn ms_ssim_l1(arguments: &mut Arguments) -> Outcome {
    let loss = MsSsimL1Loss::new();
    let loss = with(loss, list(arguments, "sigmas")?, |loss, sigmas| loss.sigmas(&sigmas));
    let loss = loss
        .k1(arguments.number("k1", 0.01)?)
        .k2(arguments.number("k2", 0.03)?)
        .data_range(arguments.number("data_range", 1.0)?)
        .alpha(arguments.number("alpha", 0.025)?)
        .compensation(arguments.number("compensation", 200.0)?)
        .reduction(arguments.reduction()?);
    pair(&loss, arguments)
}
