//! Properties of the losses of boundaries and of the sums with Dice, over random masks and logits.

use tch::{Device, Kind, Tensor};
use tch_losses::*;

const SEEDS: std::ops::Range<u64> = 0..20;

/// Numbers in [0, 1) from a linear congruential generator.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_slice(&values).view(shape)
    }

    fn logits(&mut self, shape: &[i64]) -> Tensor {
        self.tensor(shape) * 8.0 - 4.0
    }

    /// Masks in which both sides occur.
    fn mask(&mut self, shape: &[i64]) -> Tensor {
        let mask = self.tensor(shape).gt(0.5).to_kind(Kind::Double);
        let _ = mask.view(-1).get(0).fill_(1.0);
        let _ = mask.view(-1).get(1).fill_(0.0);
        mask
    }

    fn labels(&mut self, shape: &[i64], classes: i64) -> Tensor {
        (self.tensor(shape) * classes as f64).floor().to_kind(Kind::Int64)
    }
}

fn value(loss: &Tensor) -> f64 {
    loss.double_value(&[])
}

fn one_hot(labels: &Tensor, classes: i64) -> Tensor {
    labels.one_hot(classes).movedim_int(-1, 1).to_kind(Kind::Double)
}

/// 1 − IoU of two masks.
fn jaccard_loss(prediction: &Tensor, mask: &Tensor) -> f64 {
    let (prediction, mask) = (prediction.gt(0.5), mask.gt(0.5));
    let intersection = value(&prediction.logical_and(&mask).sum(Kind::Double));
    let union = value(&prediction.logical_or(&mask).sum(Kind::Double));
    if union == 0.0 { 0.0 } else { 1.0 - intersection / union }
}

#[test]
fn the_lovasz_hinge_of_separated_logits_is_zero() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let mask = random.mask(&[3, 1, 5, 4]);
        let logits = (&mask * 2.0 - 1.0) * (random.tensor(&[3, 1, 5, 4]) * 5.0 + 1.0);
        for per_image in [false, true] {
            assert_eq!(value(&LovaszHingeLoss::new().per_image(per_image).forward(&logits, &mask)), 0.0);
        }
    }
}

#[test]
fn the_lovasz_hinge_of_signs_is_twice_the_jaccard_loss() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (mask, prediction) = (random.mask(&[1, 6, 5]), random.mask(&[1, 6, 5]));
        let loss = value(&LovaszHingeLoss::new().forward(&(&prediction * 2.0 - 1.0), &mask));
        assert!((loss - 2.0 * jaccard_loss(&prediction, &mask)).abs() < 1e-12);
    }
}

#[test]
fn lovasz_softmax_of_sure_classes_is_the_mean_jaccard_loss() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (target, predicted) = (random.labels(&[1, 6, 5], 4), random.labels(&[1, 6, 5], 4));
        let logits = one_hot(&predicted, 4) * 1e4;
        let loss = value(&LovaszSoftmaxLoss::new().classes(LovaszClasses::All).forward(&logits, &target));
        let of_class = |class: i64| match value(&target.eq(class).sum(Kind::Double)) {
            // A class without pixels has its largest probability.
            0.0 => value(&predicted.eq(class).any().to_kind(Kind::Double)),
            _ => jaccard_loss(&predicted.eq(class).to_kind(Kind::Double), &target.eq(class).to_kind(Kind::Double)),
        };
        let expected = (0..4).map(of_class).sum::<f64>() / 4.0;
        assert!((loss - expected).abs() < 1e-12, "{loss} {expected}");
    }
}

#[test]
fn lovasz_softmax_is_in_the_unit_interval_and_zero_when_perfect() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (logits, target) = (random.logits(&[2, 3, 4, 5]), random.labels(&[2, 4, 5], 3));
        for per_image in [false, true] {
            for classes in [LovaszClasses::Present, LovaszClasses::All, LovaszClasses::Only(vec![1, 2])] {
                let criterion = LovaszSoftmaxLoss::new().per_image(per_image).classes(classes);
                assert!((0.0..=1.0).contains(&value(&criterion.forward(&logits, &target))));
                assert_eq!(value(&criterion.forward(&(one_hot(&target, 3) * 1e4), &target)), 0.0);
            }
        }
    }
}

#[test]
fn mcc_is_zero_when_perfect_and_symmetric_in_the_two_sides() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (mask, prediction) = (random.mask(&[2, 7, 3]), random.tensor(&[2, 7, 3]));
        let loss = |p: &Tensor, t: &Tensor| value(&MccLoss::new().forward(p, t));
        assert!(loss(&mask, &mask).abs() < 1e-4);
        assert!((0.0..=2.0).contains(&loss(&prediction, &mask)));
        assert!((loss(&prediction, &mask) - loss(&(1.0 - &prediction), &(1.0 - &mask))).abs() < 1e-12);
        assert!((loss(&prediction, &mask) + loss(&(1.0 - &prediction), &mask) - 2.0).abs() < 1e-12);
    }
}

#[test]
fn hausdorff_is_zero_when_perfect_and_symmetric() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (a, b) = (random.tensor(&[2, 2, 5, 6]), random.mask(&[2, 2, 5, 6]));
        for log in [false, true] {
            let criterion = HausdorffDtLoss::new().log(log).alpha(1.5);
            assert_eq!(value(&criterion.forward(&b, &b)), 0.0);
            assert!(value(&criterion.forward(&a, &b)) > 0.0);
            assert!((value(&criterion.forward(&a, &b)) - value(&criterion.forward(&b, &a))).abs() < 1e-12);
        }
    }
}

#[test]
fn hausdorff_grows_with_the_distance_of_an_error() {
    let point = |column: i64| {
        let image = Tensor::zeros([1, 1, 3, 20], (Kind::Double, Device::Cpu));
        let _ = image.get(0).get(0).get(1).get(column).fill_(1.0);
        image
    };
    let losses: Vec<f64> =
        (0..20).map(|column| value(&HausdorffDtLoss::new().forward(&point(column), &point(0)))).collect();
    assert!(losses.windows(2).all(|pair| pair[0] < pair[1]), "{losses:?}");
}

#[test]
fn cldice_of_a_line_is_zero_when_perfect_and_bounded() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        // Every second column at most is set, so that each line is its own skeleton.
        let columns = random.mask(&[2, 1, 1, 6]).expand([2, 1, 7, 6], false);
        let lines = Tensor::stack(&[columns.shallow_clone(), columns.zeros_like()], -1).reshape([2, 1, 7, 12]);
        let criterion = SoftClDiceLoss::new().smooth(1e-12);
        assert!(value(&criterion.forward(&lines, &lines)).abs() < 1e-9);
        let prediction = random.tensor(&[2, 1, 7, 12]);
        assert!((0.0..=1.0).contains(&value(&criterion.forward(&prediction, &lines))));
    }
}

#[test]
fn the_sums_are_the_sums_of_their_parts() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (logits, target) = (random.logits(&[2, 3, 4, 5]), random.labels(&[2, 4, 5], 3));
        let dice = value(&DiceLoss::new().activation(Activation::Softmax).forward(&logits, &target));
        let entropy = value(&CrossEntropyLoss::new().forward(&logits, &target));
        let focal = value(&SoftmaxFocalLoss::new().forward(&logits, &target));
        let sum = DiceCrossEntropyLoss::new().lambda_dice(2.0).lambda_ce(3.0);
        assert!((value(&sum.forward(&logits, &target)) - 2.0 * dice - 3.0 * entropy).abs() < 1e-12);
        let sum = DiceFocalLoss::new().lambda_dice(2.0).lambda_focal(3.0);
        assert!((value(&sum.forward(&logits, &target)) - 2.0 * dice - 3.0 * focal).abs() < 1e-12);
    }
}

#[test]
fn dice_with_a_focal_loss_without_focus_is_dice_with_cross_entropy() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (logits, target) = (random.logits(&[2, 3, 4, 5]), random.labels(&[2, 4, 5], 3));
        let focal = DiceFocalLoss::new().focal(SoftmaxFocalLoss::new().gamma(0.0));
        let difference = focal.forward(&logits, &target) - DiceCrossEntropyLoss::new().forward(&logits, &target);
        assert!(value(&difference).abs() < 1e-12);
    }
}

#[test]
fn extreme_logits_have_finite_losses_and_gradients() {
    let losses: Vec<(&str, Box<dyn Loss>)> = vec![
        ("lovasz softmax", Box::new(LovaszSoftmaxLoss::new())),
        ("hausdorff", Box::new(HausdorffDtLoss::new().activation(Activation::Softmax))),
        ("cldice", Box::new(SoftClDiceLoss::new().activation(Activation::Softmax))),
        ("dice and cldice", Box::new(SoftDiceClDiceLoss::new().activation(Activation::Softmax))),
        ("dice and cross entropy", Box::new(DiceCrossEntropyLoss::new())),
        ("dice and focal", Box::new(DiceFocalLoss::new().focal(SoftmaxFocalLoss::new().gamma(0.5)))),
        ("dice and focal of sigmoids", Box::new(DiceFocalLoss::new().focal(OneVsRestFocalLoss::new().gamma(0.5)))),
    ];
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let (logits, target) = (random.logits(&[2, 3, 4, 5]), random.labels(&[2, 4, 5], 3));
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            for (name, criterion) in &losses {
                let input = (&logits * 2.5e3).to_kind(kind).detach().set_requires_grad(true);
                let loss = criterion.forward(&input, &target);
                loss.backward();
                assert!(value(&loss).is_finite(), "{name} {kind:?}");
                assert!(input.grad().isfinite().all().int64_value(&[]) != 0, "{name} {kind:?}");
            }
        }
    }
}
