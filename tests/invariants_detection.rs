//! What holds for losses of detection and of several labels whatever their arguments are.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::{
    AsymmetricMultiLabelLoss, BceWithLogitsLoss, CompleteBoxIouLoss, CrossEntropyLoss, DistanceBoxIouLoss,
    DistributionFocalLoss, GeneralizedBoxIouLoss, HingeLoss, HingeTargets, JsdCrossEntropyLoss, Loss,
    PolyCrossEntropyLoss, QualityFocalLoss, Reduction, VarifocalLoss,
};

use common::random::{rand, randn};

const ROUNDS: i64 = 40;

/// Boxes with an area, many of which overlap.
fn boxes() -> Tensor {
    let corner = randn([25, 2]);
    let size = rand([25, 2]) * 2.0 + 0.1;
    Tensor::cat(&[&corner, &(&corner + size)], 1)
}

/// Each round with two sets of boxes.
fn for_boxes(check: impl Fn(&Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        check(&boxes(), &boxes());
    }
}

/// The losses of boxes, exact ones for the invariants of scale.
fn box_losses() -> [Box<dyn Loss>; 3] {
    [
        Box::new(GeneralizedBoxIouLoss::new().eps(0.0)),
        Box::new(DistanceBoxIouLoss::new().eps(0.0)),
        Box::new(CompleteBoxIouLoss::new().eps(0.0).alpha_eps(0.0)),
    ]
}

/// One minus intersection over union.
fn overlap_loss(a: &Tensor, b: &Tensor) -> Tensor {
    let area = |size: &Tensor| size.select(1, 0) * size.select(1, 1);
    let corners = |boxes: &Tensor| (boxes.narrow(1, 0, 2), boxes.narrow(1, 2, 2));
    let ((a_low, a_high), (b_low, b_high)) = (corners(a), corners(b));
    let common = area(&(a_high.minimum(&b_high) - a_low.maximum(&b_low)).clamp_min(0.0));
    let union = area(&(a_high - a_low)) + area(&(b_high - b_low)) - &common;
    1.0 - common / union
}

fn all(condition: Tensor) -> bool {
    condition.all().try_into().unwrap()
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-9, 1e-12, false)
}

#[test]
fn equal_boxes_cost_nothing() {
    for_boxes(|a, _| {
        for loss in box_losses() {
            assert!(all(loss.forward(a, a).abs().le(1e-12)));
        }
    });
}

#[test]
fn losses_of_boxes_are_bounded_and_symmetric() {
    for_boxes(|a, b| {
        for (loss, most) in box_losses().into_iter().zip([2.0, 2.0, 3.0]) {
            let losses = loss.forward(a, b);
            assert!(all(losses.ge(0.0)) && all(losses.le(most)));
            assert!(close(&losses, &loss.forward(b, a)));
        }
    });
}

#[test]
fn they_are_ordered() {
    for_boxes(|a, b| {
        let [generalized, distance, complete] = box_losses().map(|loss| loss.forward(a, b) + 1e-12);
        let overlap = overlap_loss(a, b);
        assert!(all(generalized.ge_tensor(&overlap)));
        assert!(all(distance.ge_tensor(&overlap)));
        assert!(all((complete + 1e-12).ge_tensor(&distance)));
    });
}

#[test]
fn neither_the_place_nor_the_scale_of_a_pair_of_boxes_matters() {
    for_boxes(|a, b| {
        let by = Tensor::from_slice(&[3.0, -7.0, 3.0, -7.0]);
        for loss in box_losses() {
            let losses = loss.forward(a, b);
            assert!(close(&losses, &loss.forward(&(a + &by), &(b + &by))));
            assert!(close(&losses, &loss.forward(&(a * 8.0), &(b * 8.0))));
        }
    });
}

/// Each round with logits and qualities.
fn for_scores(check: impl Fn(&Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        check(&(randn([6, 5]) * 3.0), &rand([6, 5]));
    }
}

#[test]
fn a_score_that_is_the_quality_costs_nothing_in_quality_focal_loss() {
    for_scores(|logits, qualities| {
        let loss = QualityFocalLoss::new().reduction(Reduction::None);
        assert!(all(loss.forward(logits, &logits.sigmoid()).abs().le(1e-12)));
        assert!(all(loss.forward(logits, qualities).ge(0.0)));
        let unfocused = QualityFocalLoss::new().beta(0.0).forward(logits, qualities);
        assert!(close(&unfocused, &BceWithLogitsLoss::new().forward(logits, qualities)));
    });
}

#[test]
fn varifocal_loss_is_cross_entropy_for_what_certainly_is_there() {
    for_scores(|logits, _| {
        let ones = logits.ones_like();
        assert!(close(&VarifocalLoss::new().forward(logits, &ones), &BceWithLogitsLoss::new().forward(logits, &ones)));
        let zeros = logits.zeros_like();
        let unfocused = VarifocalLoss::new().alpha(1.0).gamma(0.0).forward(logits, &zeros);
        assert!(close(&unfocused, &BceWithLogitsLoss::new().forward(logits, &zeros)));
    });
}

#[test]
fn distribution_focal_loss_is_linear_between_bins() {
    for_scores(|logits, shares| {
        let loss = DistributionFocalLoss::new().reduction(Reduction::None);
        let share = shares.select(1, 0);
        for bin in 0..4 {
            let left = CrossEntropyLoss::new().reduction(Reduction::None);
            let of = |class: i64| left.forward(logits, &Tensor::full([6], class, (Kind::Int64, Device::Cpu)));
            let expected = (1.0 - &share) * of(bin) + &share * of(bin + 1);
            assert!(close(&loss.forward(logits, &(&share + bin)), &expected));
        }
    });
}

#[test]
fn losses_of_labels_are_not_negative() {
    for_scores(|logits, qualities| {
        let labels = qualities.gt(0.5).to_kind(Kind::Double);
        assert!(all(AsymmetricMultiLabelLoss::new().forward(logits, &labels).ge(0.0)));
        assert!(all(HingeLoss::new().forward(logits, &labels).ge(0.0)));
        let signs = HingeLoss::new().targets(HingeTargets::Signs).forward(logits, &(&labels * 2.0 - 1.0));
        assert!(close(&signs, &HingeLoss::new().targets(HingeTargets::Binary).forward(logits, &labels)));
    });
}

#[test]
fn the_divergence_of_views_does_not_depend_on_their_order() {
    for_scores(|logits, _| {
        let target = Tensor::from_slice(&[1_i64, 4]);
        let views = logits.split(2, 0);
        let loss = JsdCrossEntropyLoss::new().forward(logits, &target);
        let swapped = Tensor::cat(&[&views[0], &views[2], &views[1]], 0);
        assert!(close(&loss, &JsdCrossEntropyLoss::new().forward(&swapped, &target)));
        let entropy = CrossEntropyLoss::new().label_smoothing(0.1).forward(&views[0], &target);
        assert!(all((loss + 1e-9).ge_tensor(&entropy)));
    });
}

#[test]
fn poly_loss_grows_with_its_epsilon() {
    for_scores(|logits, _| {
        let target = logits.argmin(1, false);
        let of = |epsilon: f64| PolyCrossEntropyLoss::new().epsilon(epsilon).forward(logits, &target);
        assert!(close(&of(0.0), &CrossEntropyLoss::new().forward(logits, &target)));
        assert!(all(of(2.0).ge_tensor(&of(1.0))) && all(of(1.0).ge_tensor(&of(0.0))));
        assert!(close(&(of(2.0) - of(1.0)), &(of(1.0) - of(0.0))));
    });
}
