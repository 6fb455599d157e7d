//! What holds for losses of images and for robust losses whatever their arguments are.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::{
    CauchyLoss, CharbonnierLoss, GemanMcClureLoss, L1Loss, LogCoshLoss, Loss, MsSsimL1Loss, MseLoss, PsnrLoss,
    QuantileLoss, Reduction, SsimForm, SsimLoss, SsimPadding, SsimScope, SsimWindow, TotalVariationLoss, WelschLoss,
};

use common::random::{rand, randn};

const ROUNDS: i64 = 20;
const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

fn all(condition: Tensor) -> bool {
    condition.all().try_into().unwrap()
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-9, 1e-12, false)
}

/// Each round with two images.
fn for_images(check: impl Fn(&Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        let image = || rand([2, 3, 9, 12]);
        check(&image(), &image());
    }
}

fn similarities() -> Vec<SsimLoss> {
    let new = || SsimLoss::new().window_size(&[5]).reduction(Reduction::None);
    vec![
        new(),
        new().padding(SsimPadding::Reflect).form(SsimForm::Dissimilarity),
        new().window(SsimWindow::Uniform).scope(SsimScope::Sample),
    ]
}

#[test]
fn equal_images_cost_nothing() {
    for_images(|a, _| {
        for loss in similarities() {
            assert!(all(loss.forward(a, a).eq(0.0)));
        }
        assert_eq!(MsSsimL1Loss::new().sigmas(&[0.5, 2.0]).forward(a, a).double_value(&[]), 0.0);
    });
}

#[test]
fn the_similarity_of_two_images_is_that_of_the_two() {
    for_images(|a, b| {
        for loss in similarities() {
            let value = loss.forward(a, b);
            assert!(close(&value, &loss.forward(b, a)));
            assert!(all(value.gt(0.0)) && all(value.lt(2.0)));
        }
        let loss = MsSsimL1Loss::new().sigmas(&[0.5, 2.0]);
        assert!(close(&loss.forward(a, b), &loss.forward(b, a)));
        assert!(close(&PsnrLoss::new().forward(a, b), &PsnrLoss::new().forward(b, a)));
    });
}

#[test]
fn the_range_of_the_pixels_does_not_count() {
    for_images(|a, b| {
        let (bytes_a, bytes_b) = (a * 255.0, b * 255.0);
        for loss in similarities() {
            assert!(close(&loss.clone().data_range(255.0).forward(&bytes_a, &bytes_b), &loss.forward(a, b)));
        }
        let loss = MsSsimL1Loss::new().sigmas(&[0.5, 2.0]);
        assert!(close(&loss.clone().data_range(255.0).forward(&bytes_a, &bytes_b), &loss.forward(a, b)));
        let loss = PsnrLoss::new();
        assert!(close(&loss.data_range(255.0).forward(&bytes_a, &bytes_b), &loss.forward(a, b)));
    });
}

#[test]
fn a_volume_of_equal_slices_is_as_similar_as_the_slices() {
    for_images(|a, b| {
        let loss = SsimLoss::new().window_size(&[5]);
        let volume = |image: &Tensor| Tensor::stack(&[image; 7], 2);
        assert!(close(&loss.forward(&volume(a), &volume(b)), &loss.forward(a, b)));
    });
}

#[test]
fn a_constant_error_has_a_known_ratio() {
    for_images(|a, _| {
        for error in [0.1, 0.01, 0.5] {
            let loss = PsnrLoss::new().forward(&(a + error), a);
            assert!((loss.double_value(&[]) - 20.0 * f64::log10(error)).abs() < 1e-9);
        }
    });
}

#[test]
fn the_total_variation_of_a_step_is_its_height_times_its_length() {
    let image = Tensor::zeros([5, 8], OPTIONS);
    let _ = image.narrow(1, 3, 5).fill_(2.5);
    assert_eq!(TotalVariationLoss::new().forward(&image).double_value(&[]), 2.5 * 5.0);
    for_images(|a, _| {
        let loss = TotalVariationLoss::new();
        assert!(close(&loss.forward(&(a * -3.0 + 1.0)), &(loss.forward(a) * 3.0)));
        assert!(close(&loss.forward(&a.transpose(-2, -1)), &loss.forward(a)));
    });
}

/// Each round with an input and a target at various distances.
fn for_numbers(check: impl Fn(&Tensor, &Tensor)) {
    for round in 0..ROUNDS {
        let scale = 10_f64.powf(round as f64 / 4.0 - 2.0);
        check(&(randn([200]) * scale), &(randn([200]) * scale));
    }
}

#[test]
fn the_quantile_loss_of_the_median_is_half_of_l1() {
    for_numbers(|x, y| {
        let l1 = L1Loss::new().reduction(Reduction::None).forward(x, y);
        assert!(close(&QuantileLoss::new().reduction(Reduction::None).forward(x, y), &(&l1 * 0.5)));
        let of = |quantile| QuantileLoss::new().quantiles(quantile).reduction(Reduction::None);
        assert!(close(&(of(0.8).forward(x, y) + of(0.2).forward(x, y)), &l1));
        assert!(close(&of(0.8).forward(x, y), &of(0.2).forward(y, x)));
    });
}

#[test]
fn robust_losses_are_between_nothing_and_the_squared_error() {
    for_numbers(|x, y| {
        let half_square = MseLoss::new().reduction(Reduction::None).forward(x, y) * 0.5;
        let l1 = L1Loss::new().reduction(Reduction::None).forward(x, y);
        let none = Reduction::None;
        let losses: [Box<dyn Loss>; 5] = [
            Box::new(LogCoshLoss::new().reduction(none)),
            Box::new(CharbonnierLoss::new().reduction(none)),
            Box::new(CauchyLoss::new().reduction(none)),
            Box::new(GemanMcClureLoss::new().reduction(none)),
            Box::new(WelschLoss::new().reduction(none)),
        ];
        for loss in &losses {
            let value = loss.forward(x, y);
            assert!(all(value.ge(0.0)) && all(value.le_tensor(&(&half_square * (1.0 + 1e-9)))));
            assert!(all(value.le_tensor(&(&l1 * (1.0 + 1e-9)))));
            assert!(close(&value, &loss.forward(y, x)));
        }
        let log_cosh = losses[0].forward(x, y);
        assert!(all(log_cosh.ge_tensor(&(&l1 - 2_f64.ln() - 1e-9))));
        // Barron's family, from the least to the most robust.
        for pair in losses[1..].windows(2) {
            assert!(all(pair[1].forward(x, y).le_tensor(&(pair[0].forward(x, y) * (1.0 + 1e-9)))));
        }
    });
}
