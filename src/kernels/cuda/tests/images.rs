//! Windows, products and similarities of images, differences of neighbours, erosion and dilation.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::compare::{Compute, KINDS, REDUCTIONS, assert_as_composite, results, unaligned};
use super::compiled::{assert_compile, installed_nvrtc};
use super::{SOURCES, assert_caught, assert_near, emulated, excess, rand, randn};
use crate::kernels::{Beyond, f_slide};
use crate::{
    Backend, Loss, MsSsimL1Loss, MsSsimLoss, PixelReduction, Reduction, SoftClDiceLoss, SsimForm, SsimLoss,
    SsimPadding, SsimScope, SsimWindow, TotalVariationLoss, with_backend,
};

fn of_pair(loss: impl Loss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| loss.f_forward(&tensors[0], &tensors[1]).unwrap()
}

fn images(shape: &[i64], kind: Kind) -> [Tensor; 2] {
    let image = rand(shape);
    [(&image + rand(shape) * 0.3).to_kind(kind), image.to_kind(kind)]
}

/// The sources of the kernels that a call asks for.
fn asked(call: impl FnOnce()) -> BTreeSet<String> {
    SOURCES.take();
    emulated(call);
    SOURCES.take().into_iter().collect()
}

fn has(sources: &BTreeSet<String>, kernel: &str) -> bool {
    sources.iter().any(|source| source.contains(&format!(" {kernel}(const Call")))
}

fn taps(count: usize) -> Arc<[f64]> {
    (0..count).map(|tap| (0.1 + tap as f64) / (count * count) as f64).collect()
}

#[test]
fn windows_slide_as_convolutions_do() {
    for shape in [&[5, 7, 11][..], &[1, 40, 3], &[3, 2, 90], &[2, 300, 1]] {
        for (dim, size) in shape.iter().enumerate() {
            let inside = [1, 2, 5, 11, 70, 131].into_iter().filter(|count| count <= size);
            let inside = inside.map(|count| (count as usize, Beyond::Nothing));
            for (count, beyond) in inside.chain([1, 3, 33, 151].map(|count| (count, Beyond::Zeros))) {
                let slide = |tensors: &[Tensor]| f_slide(&tensors[0], dim, &taps(count), beyond).unwrap();
                for kind in [Kind::Double, Kind::Float] {
                    let name = format!("{count} taps along {dim}, {beyond:?}");
                    let input = randn(shape).to_kind(kind);
                    assert_as_composite(&name, &[input.shallow_clone()], &[0], &slide);
                    assert_as_composite(&name, &[unaligned(&input)], &[0], &slide);
                }
            }
        }
    }
}

#[test]
fn a_window_leaves_what_is_beyond_it_alone() {
    // 0 · ∞ would be NaN.
    let input = Tensor::from_slice(&[1.0, 2.0, f64::INFINITY, 3.0, 4.0, 5.0]);
    let sums = emulated(|| f_slide(&input, 0, &taps(2), Beyond::Nothing).unwrap());
    assert_eq!(Vec::<bool>::try_from(sums.isfinite()).unwrap(), [true, false, false, true, true]);
}

#[test]
fn windows_can_be_differentiated_again() {
    let input = randn([2, 3, 20]).set_requires_grad(true);
    let second = || {
        let sums = f_slide(&input, 2, &taps(5), Beyond::Zeros).unwrap();
        let first = Tensor::run_backward(&[(&sums * sums.square()).sum(None)], &[&input], true, true).remove(0);
        Tensor::run_backward(&[first.square().sum(None)], &[&input], false, false).remove(0)
    };
    let expected = with_backend(Backend::Composite, second);
    assert_near("second derivative", &emulated(second), &expected, Kind::Double);
}

/// A loss of two images, and its name.
type Similarity = (&'static str, Box<dyn Fn(&[Tensor]) -> Tensor>);

fn similarities(reduction: Reduction) -> Vec<Similarity> {
    let ssim = || SsimLoss::new().reduction(reduction).window_size(&[5]);
    let several = MsSsimLoss::new().reduction(reduction).weights(&[0.4, 0.6]).window_size(&[3]);
    vec![
        ("ssim", Box::new(of_pair(ssim()))),
        ("ssim of samples", Box::new(of_pair(ssim().scope(SsimScope::Sample).window(SsimWindow::Uniform)))),
        ("dssim", Box::new(of_pair(ssim().form(SsimForm::Dissimilarity).padding(SsimPadding::Reflect).eps(1e-12)))),
        ("ms-ssim", Box::new(of_pair(several))),
    ]
}

#[test]
fn similarities_are_those_of_the_composite() {
    for reduction in REDUCTIONS {
        for (name, loss) in similarities(reduction) {
            for shape in [[2, 3, 13, 17], [1, 1, 8, 9]] {
                for wanted in [&[0][..], &[0, 1], &[1]] {
                    assert_as_composite(name, &images(&shape, Kind::Double), wanted, &loss);
                }
                assert_as_composite(name, &images(&shape, Kind::Double).each_ref().map(unaligned), &[0], &loss);
            }
        }
        let both = MsSsimL1Loss::new().sigmas(&[0.5, 1.5]).alpha(0.4).compensation(3.0).reduction(reduction);
        assert_as_composite("ms-ssim and l1", &images(&[2, 3, 9, 11], Kind::Double), &[0, 1], &of_pair(both));
    }
    let [input, target] = images(&[1, 1, 12, 12], Kind::Double);
    let input = input.set_requires_grad(true);
    let sources = asked(|| SsimLoss::new().forward(&input, &target).backward());
    for kernel in ["map", "window", "pointwise"] {
        assert!(has(&sources, kernel), "no {kernel}");
    }
}

/// Single precision is that of the GPU, where the composite of the CPU has double precision.
#[test]
fn similarities_are_computed_in_single_precision() {
    for (name, loss) in similarities(Reduction::Mean) {
        let loss: Compute = &loss;
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let tensors = images(&[2, 3, 13, 17], kind);
            let wide = tensors.each_ref().map(|tensor| tensor.to_kind(Kind::Double));
            let actual = emulated(|| results(&tensors, &[0], loss));
            let expected = with_backend(Backend::Composite, || results(&wide, &[0], loss));
            for (actual, expected) in actual.iter().zip(&expected) {
                assert_eq!(actual.kind(), kind, "{name}");
                let tolerance = if kind == Kind::BFloat16 { kind } else { Kind::Half };
                assert_near(&format!("{name} of {kind:?}"), &actual.to_kind(Kind::Double), expected, tolerance);
            }
        }
    }
}

fn variation(pixels: PixelReduction, reduction: Reduction) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| TotalVariationLoss::new().pixels(pixels).reduction(reduction).f_forward(&tensors[0]).unwrap()
}

#[test]
fn variations_are_those_of_the_composite() {
    for shape in [&[5, 7][..], &[2, 3, 1, 9], &[3, 9, 1], &[1, 1], &[2, 60, 71], &[2, 0, 3, 4]] {
        for kind in KINDS {
            for (pixels, reduction) in [PixelReduction::Mean, PixelReduction::Sum]
                .into_iter()
                .flat_map(|pixels| REDUCTIONS.map(|r| (pixels, r)))
            {
                // Differences of 0 as well.
                let planes = (randn(shape) * 4).round().to_kind(kind);
                let (name, loss) = (format!("{pixels:?} {reduction:?}"), variation(pixels, reduction));
                if planes.numel() == 0 {
                    let expected = with_backend(Backend::Composite, || loss(&[planes.shallow_clone()]));
                    assert_eq!(emulated(|| loss(&[planes.shallow_clone()])).size(), expected.size());
                    continue;
                }
                assert_as_composite(&name, &[planes.shallow_clone()], &[0], &loss);
                assert_as_composite(&name, &[unaligned(&planes)], &[0], &loss);
            }
        }
    }
    let columns = randn([2, 9, 5]).transpose(1, 2);
    assert_as_composite("columns", &[columns], &[0], &variation(PixelReduction::Mean, Reduction::Mean));
}

#[test]
fn erosions_and_dilations_are_those_of_pooling() {
    for shape in [&[2, 3, 5, 4][..], &[1, 2, 1, 7], &[1, 1, 1, 1], &[2, 1, 20, 60], &[2, 2, 3, 4, 5], &[1, 1, 2, 1, 2]]
    {
        for kind in [Kind::Double, Kind::Float] {
            // Of the rounded numbers many are equal.
            for regions in [rand(shape), (rand(shape) * 4).round() / 4, rand(shape).zeros_like()] {
                let tensors = [regions.to_kind(kind), rand(shape).round().to_kind(kind)];
                let loss = of_pair(SoftClDiceLoss::new().smooth(1.0).iterations(2));
                assert_as_composite("soft clDice", &tensors, &[0], &loss);
                assert_as_composite("soft clDice", &tensors.each_ref().map(unaligned), &[0, 1], &loss);
            }
        }
    }
    let regions = rand([1, 1, 6, 6]).set_requires_grad(true);
    let sources = asked(|| SoftClDiceLoss::new().forward(&regions, &rand([1, 1, 6, 6]).round()).backward());
    assert!(has(&sources, "extremes") && has(&sources, "slopes"));
}

#[test]
fn what_is_no_number_goes_through_erosions() {
    let regions = rand([1, 1, 6, 6]);
    let _ = regions.view(-1).get(7).fill_(f64::NAN);
    let loss = emulated(|| {
        SoftClDiceLoss::new().invalid_values(crate::InvalidValues::Nan).forward(&regions, &rand([1, 1, 6, 6]).round())
    });
    assert!(loss.double_value(&[]).is_nan());
}

/// Whether the results of the emulated engines are those of the composite.
fn is_right(tensors: &[Tensor], compute: Compute) -> bool {
    let expected = with_backend(Backend::Composite, || results(tensors, &[0], compute));
    let actual = emulated(|| results(tensors, &[0], compute));
    actual.iter().zip(&expected).all(|(actual, expected)| excess(actual, expected, Kind::Double) <= 0.0)
}

#[test]
fn mutations_of_the_kernels_of_images_are_caught() {
    let slide = |tensors: &[Tensor]| f_slide(&tensors[0], 1, &taps(67), Beyond::Zeros).unwrap();
    let ssim = of_pair(SsimLoss::new().window_size(&[5]));
    let total = variation(PixelReduction::Mean, Reduction::Mean);
    let each = variation(PixelReduction::Sum, Reduction::None);
    let cldice = of_pair(SoftClDiceLoss::new().smooth(1.0).iterations(1));
    let (lines, pair, planes) =
        (vec![randn([2, 70, 3])], images(&[1, 2, 9, 11], Kind::Double), vec![randn([3, 50, 61])]);
    let rounded = [(rand([1, 2, 4, 6, 5]) * 4).round() / 4, rand([1, 2, 4, 6, 5]).round()];
    type Row<'a> = (&'a str, &'a str, &'a [Tensor], Compute<'a>);
    let mutations: [Row; 17] = [
        (
            "if (position < 0 || position >= call.read) continue;",
            "if (position < 0 || position >= call.read - 1) continue;",
            &lines,
            &slide,
        ),
        ("tap >= 0 && tap < call.count", "tap >= 0 && tap < call.count - 1", &lines, &slide),
        ("at < call.count + GROUP - 1", "at < call.count", &lines, &slide),
        ("call.more && place + k < call.written", "false && place + k < call.written", &lines, &slide),
        ("const Index line = i / step / groups;", "const Index line = 0;", &lines, &slide),
        ("a[k] = widened(read[k].elements[i]);", "a[k] = widened(read[k].elements[0]);", &pair, &ssim),
        ("written[k].elements[i] = narrowed(r[k]);", "written[k].elements[i] = narrowed(r[0]);", &pair, &ssim),
        ("if (row + 1 < call.height)", "if (row + 2 < call.height)", &planes, &total),
        ("if (column > 0) slope +=", "if (column > 1) slope +=", &planes, &total),
        ("work % call.chunks * CHUNK", "work % call.chunks * (CHUNK - 1)", &planes, &total),
        ("call.factors[call.each ? plane : 0]", "call.factors[0]", &planes, &each),
        ("chunk < chunks; chunk++) sum", "chunk < chunks - 1; chunk++) sum", &planes, &each),
        ("number < extreme : number > extreme", "number <= extreme : number >= extreme", &rounded, &cldice),
        ("share /= 2;", "share /= 4;", &rounded, &cldice),
        ("return from == step ? share : Real(0);", "return share;", &rounded, &cldice),
        (
            "if (ERODE && (z != 0) + (y != 0) + (x != 0) > 1) continue;",
            "if (ERODE && (z != 0) + (y != 0) + (x != 0) > 0) continue;",
            &rounded,
            &cldice,
        ),
        ("at >= 0 && at < place.sizes[axis]", "at >= 0 && at < place.sizes[axis] - 1", &rounded, &cldice),
    ];
    for (text, other, tensors, compute) in mutations {
        assert_caught(text, other, || is_right(tensors, compute));
    }
}

#[test]
fn image_sources_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    // A GPU that launches nothing is asked for no backward pass; so the kernels run here.
    let calls = || {
        for kind in [Kind::Float, Kind::Double] {
            let [input, target] = images(&[1, 1, 8, 8], kind);
            let input = input.set_requires_grad(true);
            SsimLoss::new().window_size(&[3]).forward(&input, &target).backward();
            MsSsimL1Loss::new().sigmas(&[0.5, 1.0]).forward(&input, &target).backward();
            for shape in [&[1, 1, 5, 5][..], &[1, 1, 3, 4, 5]] {
                let regions = rand(shape).to_kind(kind).set_requires_grad(true);
                SoftClDiceLoss::new().forward(&regions, &rand(shape).round().to_kind(kind)).backward();
            }
        }
        for kind in KINDS {
            let planes = randn([2, 5, 5]).to_kind(kind).set_requires_grad(true);
            variation(PixelReduction::Sum, Reduction::Mean)(&[planes.shallow_clone()]).backward();
            variation(PixelReduction::Sum, Reduction::None)(&[planes]).sum(Kind::Double).backward();
        }
    };
    let sources = asked(calls);
    assert!(sources.len() > 20, "{} sources", sources.len());
    assert_compile(&nvrtc, sources);
}
