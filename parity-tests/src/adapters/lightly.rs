//! The losses of lightly. `pytorch/dino.py` calls the one that keeps a centre, and returns that as well.

use tch::{Device, nn};
use tch_losses::{BarlowTwinsLoss, DinoConfig, DinoLoss, Loss, NegativeCosineSimilarity, VicRegLoss};

use super::Equality::{BitwiseComposite, Close};
use super::{Adapter, Outcome, Outputs, adapter};
use crate::arguments::{Arguments, EvalError};

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("BarlowTwinsLoss", &["lightly.loss.BarlowTwinsLoss"], &["z_a", "z_b"], Close, barlow_twins),
    adapter("VicRegLoss", &["lightly.loss.VICRegLoss"], &["z_a", "z_b"], Close, vicreg),
    adapter("NegativeCosineSimilarity", &["lightly.loss.NegativeCosineSimilarity"], &["x0", "x1"], BitwiseComposite,
        negative_cosine_similarity),
    adapter("DinoLoss", &["dino.loss_and_center"], &["teacher_out", "student_out", "center"], Close, dino),
];

fn views(loss: &dyn Loss, arguments: &mut Arguments, names: [&str; 2]) -> Outcome {
    let [input, target] = names.map(|name| arguments.tensor(name));
    Ok(loss.f_forward(&input?, &target?)?.into())
}

fn barlow_twins(arguments: &mut Arguments) -> Outcome {
    let loss = BarlowTwinsLoss::new().lambda_param(arguments.number("lambda_param", 5e-3)?);
    views(&loss, arguments, ["z_a", "z_b"])
}

fn vicreg(arguments: &mut Arguments) -> Outcome {
    let loss = VicRegLoss::new()
        .lambda_param(arguments.number("lambda_param", 25.0)?)
        .mu_param(arguments.number("mu_param", 25.0)?)
        .nu_param(arguments.number("nu_param", 1.0)?)
        .eps(arguments.number("eps", 1e-4)?);
    views(&loss, arguments, ["z_a", "z_b"])
}

fn negative_cosine_similarity(arguments: &mut Arguments) -> Outcome {
    let loss = NegativeCosineSimilarity::new().dim(arguments.integer("dim", 1)?).eps(arguments.number("eps", 1e-8)?);
    views(&loss, arguments, ["x0", "x1"])
}

/// The outputs are the loss and the centre after the call.
fn dino(arguments: &mut Arguments) -> Outcome {
    let config = DinoConfig::new()
        .warmup_teacher_temp(temperature(arguments, "warmup_teacher_temp")?)
        .teacher_temp(temperature(arguments, "teacher_temp")?)
        .warmup_teacher_temp_epochs(arguments.integer("warmup_teacher_temp_epochs", 30)?)
        .student_temp(arguments.number("student_temp", 0.1)?)
        .center_momentum(arguments.number("center_momentum", 0.9)?);
    let center = arguments.tensor("center")?;
    let store = nn::VarStore::new(arguments.device.unwrap_or(Device::Cpu));
    let mut loss = DinoLoss::f_new(store.root(), center.size()[2], config)?;
    let mut variable = store.variables().remove("center").expect("the centre is on the path");
    // A copy, since the update is in place.
    variable.f_set_data(&center.copy())?;
    if let Some(epoch) = arguments.optional_integer("epoch")? {
        loss.set_epoch(epoch);
    }
    if arguments.contains("call_temp") {
        loss.f_set_teacher_temp(temperature(arguments, "call_temp")?)?;
    }
    let (teacher_out, student_out) = (arguments.tensor("teacher_out")?, arguments.tensor("student_out")?);
    let (teacher_out, student_out) = (teacher_out.f_unbind(0)?, student_out.f_unbind(0)?);
    let value = loss.f_forward(&teacher_out, &student_out)?;
    loss.f_update_center(&teacher_out)?;
    let center = loss.center().f_detach()?.f_add_scalar(0)?;
    Ok(Outputs { tensors: vec![value, center], state: Vec::new() })
}

/// lightly keeps the temperatures of the teacher in single precision.
fn temperature(arguments: &mut Arguments, name: &str) -> Result<f64, EvalError> {
    Ok(f64::from(arguments.number(name, 0.04)? as f32))
}
