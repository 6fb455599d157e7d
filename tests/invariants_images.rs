//! What holds for losses of images and for robust losses whatever their arguments are.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::{
    CauchyLoss, CharbonnierLoss, GemanMcClureLoss, L1Loss, LogCoshLoss, Loss, LossError, MsSsimL1Loss, MsSsimLoss,
    MseLoss, PixelReduction, PsnrLoss, QuantileLoss, Reduction, SsimForm, SsimLoss, SsimPadding, SsimScope, SsimWindow,
    TotalVariationLoss, WelschLoss,
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

/// kornia 0.9: `total_variation` of integers, whose sums are 64-bit integers.
#[test]
fn the_total_variation_of_integers_is_exact() {
    let image = Tensor::from_slice(&[3_i64, 1, 0, 255]).view([1, 2, 2]);
    for kind in [Kind::Uint8, Kind::Int16, Kind::Int, Kind::Int64] {
        for reduction in [Reduction::None, Reduction::Sum] {
            let loss = TotalVariationLoss::new().reduction(reduction).forward(&image.to_kind(kind));
            assert_eq!((loss.kind(), loss.sum(None).int64_value(&[])), (Kind::Int64, 514));
        }
        let loss = TotalVariationLoss::new().pixels(PixelReduction::Mean).forward(&image.to_kind(kind));
        assert_eq!((loss.kind(), loss.double_value(&[])), (Kind::Float, 257.0));
        let loss = TotalVariationLoss::new().forward(&image.to_kind(kind));
        assert_eq!((loss.kind(), loss.double_value(&[])), (Kind::Float, 514.0));
    }
    let ends = Tensor::from_slice(&[127_i8, -128]).view([1, 1, 2]);
    assert_eq!(TotalVariationLoss::new().reduction(Reduction::Sum).forward(&ends).int64_value(&[]), 255);
}

#[test]
fn bytes_are_images_too() {
    let bytes = || (rand([2, 3, 12, 14]) * 255.0).to_kind(Kind::Uint8);
    let (a, b) = (bytes(), bytes());
    let losses: [Box<dyn Loss>; 4] = [
        Box::new(SsimLoss::new().window_size(&[5]).data_range(255.0)),
        Box::new(MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[5]).data_range(255.0)),
        Box::new(MsSsimL1Loss::new().sigmas(&[0.5, 1.0]).data_range(255.0)),
        Box::new(PsnrLoss::new().data_range(255.0)),
    ];
    for loss in &losses {
        let expected = loss.forward(&a.to_kind(Kind::Float), &b.to_kind(Kind::Float));
        assert_eq!(loss.forward(&a, &b), expected);
        assert_eq!(loss.forward(&a.to_kind(Kind::Int64), &b), expected);
        assert_eq!(loss.forward(&a.to_kind(Kind::Float), &b), expected);
        let of_double = loss.forward(&a, &b.to_kind(Kind::Double));
        assert_eq!(of_double.kind(), Kind::Double);
        assert!((of_double - &expected).abs().double_value(&[]) < 1e-5 * expected.abs().double_value(&[]));
        let error = loss.f_forward(&a.to_kind(Kind::ComplexFloat), &b).unwrap_err().to_string();
        assert_eq!(error, "input has kind ComplexFloat, expected a kind of real numbers");
    }
}

#[test]
fn an_image_without_samples_is_an_error() {
    let image = rand([3, 16, 16]);
    let expected = "input has shape [3, 16, 16], expected [N, C, H, W] or [N, C, D, H, W], with at least one channel, or \
                    spatial_dims(1) for lines [N, C, L]";
    let ssim = || SsimLoss::new().window_size(&[5]);
    let ms_ssim = || MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[5]);
    assert_eq!(ssim().f_forward(&image, &image).unwrap_err().to_string(), expected);
    assert_eq!(ms_ssim().f_forward(&image, &image).unwrap_err().to_string(), expected);
    assert_eq!(ssim().spatial_dims(1).forward(&image, &image).double_value(&[]), 0.0);
    assert_eq!(ms_ssim().spatial_dims(1).forward(&image, &image).double_value(&[]), 0.0);
    let wrong = ssim().spatial_dims(2).f_forward(&image, &image).unwrap_err().to_string();
    assert_eq!(
        wrong,
        "input has shape [3, 16, 16], expected [N, C, ...] with 2 more as spatial_dims, with at least one channel"
    );
    let wrong = ssim().spatial_dims(4).f_forward(&image, &image).unwrap_err().to_string();
    assert_eq!(wrong, "option spatial_dims is 4, expected 1, 2 or 3");
}

#[test]
fn an_image_without_channels_is_an_error() {
    let image = rand([2, 0, 16, 16]);
    for loss in [
        &SsimLoss::new().window_size(&[5]) as &dyn Loss,
        &MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[5]),
        &MsSsimL1Loss::new(),
    ] {
        let error = loss.f_forward(&image, &image).unwrap_err();
        assert!(matches!(error, LossError::Shape { argument: "input", .. }), "{error}");
    }
}
