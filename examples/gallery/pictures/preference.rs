//! Losses of language models, over how much more likely an answer is than another one.

use tch::Tensor;
use tch_losses::{CpoLoss, DpoLoss, DpoVariant, IpoLoss, KtoLoss, OrpoLoss, PairLogProbs, PreferenceLoss, SimpoLoss};

use super::numbers;
use crate::picture::Picture;

const BETAS: [f64; 3] = [0.05, 0.1, 0.3];
/// Both answers' log-probability where they are alike.
const SEQUENCE: f64 = -30.0;
const TOKEN: f64 = -2.0;

pub fn pictures() -> Vec<Picture> {
    let with_reference = |name, losses| Picture::new(name, losses, "log-ratio, chosen − rejected", -30.0..30.0);
    let by_token = |name, losses| Picture::new(name, losses, "chosen − rejected, per token", -3.0..3.0);
    vec![
        with_reference("dpo", &["DpoLoss", "LinearPreference"])
            .curve("β = 0.1", of_pair(DpoLoss::new(), true, SEQUENCE))
            .curve("β = 0.3", of_pair(DpoLoss::new().beta(0.3), true, SEQUENCE))
            .curve("label smoothing 0.2", of_pair(DpoLoss::new().label_smoothing(0.2), true, SEQUENCE))
            .curve("hinge", of_pair(DpoLoss::new().variant(DpoVariant::Hinge), true, SEQUENCE)),
        with_reference("ipo", &["IpoLoss"])
            .each("β =", &[0.05, 0.1], |beta| of_pair(IpoLoss::new().beta(beta), true, SEQUENCE)),
        by_token("orpo", &["OrpoLoss"])
            .each("β =", &[0.1, 0.5, 1.0], |beta| of_pair(OrpoLoss::new().beta(beta), false, TOKEN)),
        by_token("simpo", &["SimpoLoss"])
            .each("β =", &[0.1, 1.0, 2.0], |beta| of_pair(SimpoLoss::new().beta(beta), false, TOKEN)),
        Picture::new("cpo", &["CpoLoss"], "log-probability of chosen − rejected", -30.0..30.0).each(
            "β =",
            &BETAS,
            |beta| of_pair(CpoLoss::new().beta(beta), false, SEQUENCE),
        ),
        Picture::new("kto", &["KtoLoss", "LinearKto"], "log-ratio to the reference", -30.0..30.0)
            .curve("good answer, β = 0.1", kto(0.1, 1.0))
            .curve("good answer, β = 0.3", kto(0.3, 1.0))
            .curve("bad answer, β = 0.1", kto(0.1, 0.0)),
    ]
}

/// The loss of a pair of answers whose log-probabilities are x apart, around `middle`.
fn of_pair(loss: impl PreferenceLoss + 'static, has_reference: bool, middle: f64) -> impl Fn(&Tensor) -> Tensor {
    move |x| {
        let half = x.view([1]) / 2.0;
        let (chosen, rejected) = (middle + &half, middle - &half);
        let alike = numbers(&[middle]);
        let reference = has_reference.then(|| PairLogProbs::new(&alike, &alike));
        loss.forward(PairLogProbs::new(&chosen, &rejected), reference)
    }
}

fn kto(beta: f64, label: f64) -> impl Fn(&Tensor) -> Tensor {
    move |x| {
        let policy = SEQUENCE + x.view([1]);
        KtoLoss::new().beta(beta).forward(&policy, Some(&numbers(&[SEQUENCE])), &numbers(&[label]).gt(0.5), None)
    }
}
