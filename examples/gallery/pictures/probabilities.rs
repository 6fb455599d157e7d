//! Losses of distributions and of sequences.

use tch::{Kind, Tensor, nn};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, CtcLoss, DistillationLoss, KlDivLoss, KlDivReduction, Loss,
    SoftLoss,
};

use super::{labels, numbers, row};
use crate::picture::Picture;

pub fn pictures() -> Vec<Picture> {
    let zero = || Tensor::from(0.0);
    let distilled = |soft_loss: fn() -> SoftLoss| {
        move |x: &Tensor| {
            let teacher = numbers(&[2.0, 0.0, 0.0]).view([1, 3]);
            let loss = DistillationLoss::new().soft_loss(soft_loss()).soft_weight(1.0).hard_weight(0.0);
            loss.forward(&row(&[x, &zero(), &zero()]), &teacher, None)
        }
    };
    vec![
        Picture::new("kl_div", &["KlDivLoss"], "probability of the first of two", 0.02..0.98).each(
            "target",
            &[0.1, 0.5, 0.8],
            |share| {
                let target = numbers(&[share, 1.0 - share]).view([1, 2]);
                let loss = KlDivLoss::new().reduction(KlDivReduction::BatchMean);
                move |x: &Tensor| loss.forward(&row(&[x, &(1_f64 - x)]).log(), &target)
            },
        ),
        Picture::new(
            "distillation",
            &["DistillationLoss", "LinearDistillation"],
            "student's logit, the teacher's is 2",
            -4.0..8.0,
        )
        .curve("forward KL", distilled(|| SoftLoss::ForwardKl))
        .curve("reverse KL", distilled(|| SoftLoss::ReverseKl))
        .curve("Jensen-Shannon", distilled(|| SoftLoss::JensenShannon(0.5))),
        Picture::new("ctc", &["CtcLoss"], "logit of the right symbols", -2.0..6.0).each(
            "two labels, steps:",
            &[2.0, 4.0, 8.0],
            |steps| {
                let steps = steps as i64;
                move |x: &Tensor| ctc(x, steps)
            },
        ),
        Picture::new("adaptive_log_softmax", &["AdaptiveLogSoftmaxWithLoss"], "logit of the frequent class", -4.0..6.0)
            .curve("a frequent class", |x: &Tensor| adaptive(x, 0))
            .curve("a rare class", |x: &Tensor| adaptive(x, 5)),
    ]
}

/// CTC of the labels 1, 2, whose first half of the steps favours 1 and whose second half 2; class 0 is the blank.
fn ctc(x: &Tensor, steps: i64) -> Tensor {
    let zero = Tensor::from(0.0);
    let [first, second] = [row(&[&zero, x, &zero]), row(&[&zero, &zero, x])];
    let rows: Vec<&Tensor> = (0..steps).map(|step| if step < steps / 2 { &first } else { &second }).collect();
    let log_probs = Tensor::stack(&rows, 0).log_softmax(-1, None::<Kind>);
    CtcLoss::new().forward(&log_probs, &labels(&[1, 2]).view([1, 2]), [steps], [2])
}

/// Two frequent classes and four rare ones, with weights that make x the logit of class 0 and 0 all others.
fn adaptive(x: &Tensor, class: i64) -> Tensor {
    let mut store = nn::VarStore::new(tch::Device::Cpu);
    let config = AdaptiveLogSoftmaxConfig::new();
    let loss = AdaptiveLogSoftmaxWithLoss::new(store.root(), 1, 6, &[2], config);
    store.double();
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let _ = variable.zero_();
            if name == "head.weight" {
                let _ = variable.narrow(0, 0, 1).fill_(1.0);
            }
        }
    });
    loss.forward(&x.view([1, 1]), &labels(&[class])).loss
}
