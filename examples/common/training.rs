//! The loop of all trainings.

use std::f64::consts::PI;

use anyhow::{Context, Result, ensure};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};

use super::progress::Progress;

/// How long to train, in what steps.
pub struct Plan {
    pub name: String,
    pub epochs: u32,
    /// How many samples there are to learn from.
    pub samples: i64,
    pub batch_size: i64,
    /// The learning rate of Adam at the start; it falls to 0 along a half cosine.
    pub lr: f64,
}

/// What a training was like, by epochs.
pub struct Curve {
    pub name: String,
    /// The mean losses.
    pub losses: Vec<f64>,
    /// What the net was worth on held-out data after each epoch.
    pub scores: Vec<f64>,
}

impl Curve {
    /// The score after the last epoch.
    pub fn last_score(&self) -> f64 {
        // There is at least one epoch.
        self.scores[self.scores.len() - 1]
    }
}

/// Trains the variables with Adam. `loss` computes the loss of a batch, which is given by the indices of its samples on
/// the CPU; `score` judges the net after each epoch.
pub fn train(
    plan: &Plan,
    variables: &nn::VarStore,
    mut loss: impl FnMut(&Tensor) -> Result<Tensor>,
    mut score: impl FnMut() -> Result<f64>,
) -> Result<Curve> {
    let mut optimizer = nn::Adam::default().build(variables, plan.lr)?;
    let batches = (plan.samples as u64).div_ceil(plan.batch_size as u64);
    let progress = Progress::new(&plan.name, plan.epochs, batches);
    let steps = u64::from(plan.epochs) * batches;
    let mut curve = Curve { name: plan.name.clone(), losses: Vec::new(), scores: Vec::new() };

    for epoch in 1..=plan.epochs {
        let before = u64::from(epoch - 1) * batches;
        let mean = train_epoch(plan, &mut optimizer, &progress, [epoch.into(), before, steps], &mut loss)
            .with_context(|| format!("{}, epoch {epoch}", plan.name))?;
        ensure!(
            mean.is_finite(),
            "{}: the loss of epoch {epoch} is {mean}; a smaller learning rate may help",
            plan.name
        );
        let score = tch::no_grad(&mut score)?;
        progress.end_epoch(epoch, mean, score);
        curve.losses.push(mean);
        curve.scores.push(score);
    }
    Ok(curve)
}

/// Shows every sample to the net once, in an order of its own, and returns the mean loss.
fn train_epoch(
    plan: &Plan,
    optimizer: &mut nn::Optimizer,
    progress: &Progress,
    [epoch, before, steps]: [u64; 3],
    loss: &mut impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<f64> {
    // The sum stays on the device: reading every loss would make the CPU wait for the GPU at every step.
    let mut sum: Option<Tensor> = None;
    let mut seen = 0;
    // Drawn on the CPU: a seed means the same order on every device.
    let order = Tensor::randperm(plan.samples, (Kind::Int64, Device::Cpu));
    for (step, batch) in order.split(plan.batch_size, 0).iter().enumerate() {
        optimizer.set_lr(plan.lr * falling((before + step as u64) as f64 / steps as f64));
        let loss = loss(batch)?;
        optimizer.backward_step(&loss);
        // Weighted, because the last batch can be smaller.
        let weighted = loss.detach().to_kind(Kind::Double) * batch.size()[0];
        sum = Some(sum.map_or_else(|| weighted.shallow_clone(), |sum| sum + &weighted));
        seen += batch.size()[0];
        if step % 10 == 9 && progress.is_seen() {
            progress.running(epoch as u32, mean(&sum, seen)?);
        }
        progress.end_step();
    }
    mean(&sum, seen)
}

fn mean(sum: &Option<Tensor>, count: i64) -> Result<f64> {
    let sum = sum.as_ref().context("there is nothing to learn from")?;
    Ok(f64::try_from(sum)? / count as f64)
}

/// From 1 to 0 while `done` goes from 0 to 1.
fn falling(done: f64) -> f64 {
    0.5 * (1.0 + (PI * done).cos())
}
