"""SSIM, MS-SSIM alone and with L1, PSNR and total variation of images."""

from __future__ import annotations

from itertools import product

import torch
from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids.pairs import Pair, check

IMAGES: tuple[Shape, ...] = ((2, 3, 8, 9), (1, 1, 7, 7), (2, 1, 12, 7), (1, 4, 9, 15), (3, 2, 7, 8))
VOLUMES: tuple[Shape, ...] = ((1, 2, 7, 8, 7), (2, 1, 7, 7, 9), (1, 1, 8, 7, 7))
SINGLE = ("f32", "bf16", "f16")


def restored(draw: Draw, shape: Shape) -> list:
    """An image, and the same with noise."""
    target = draw.uniform(shape)
    return [(target + draw.normal(shape, 0.2)).to(draw.dtype), target]


def other(draw: Draw, shape: Shape) -> list:
    return [draw.uniform(shape), draw.uniform(shape)]


def bytes_of(make: Pair) -> Pair:
    return lambda draw, shape: [(image.double() * 255).to(draw.dtype) for image in make(draw, shape)]


def signed(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape), draw.normal(shape)]


def equal(draw: Draw, shape: Shape) -> list:
    image = draw.uniform(shape)
    return [image, image.clone()]


def black(draw: Draw, shape: Shape) -> list:
    """Half of the image is black in both."""
    images = restored(draw, shape)
    for image in images:
        image[..., : shape[-1] // 2] = 0
    return images


VALUES: dict[str, Pair] = {"other": other, "signed": signed, "equal": equal, "black": black}
SHAPES_DIFFER: tuple[Pair, dict] = (lambda draw, _: [draw.uniform((1, 2, 8, 8)), draw.uniform((1, 2, 8, 7))], {})


def rejected(shape: Shape, **options) -> tuple[Pair, dict]:
    return lambda draw, _: restored(draw, shape), options


def ssim_kornia(suite: Suite) -> None:
    for names, shapes in ((("SSIMLoss", "ssim_loss"), IMAGES), (("SSIM3DLoss", "ssim3d_loss"), VOLUMES)):
        base = {"window_size": 5}
        settings = [base, {"window_size": 3, "padding": "valid"}, {"window_size": 7, "eps": 1e-3, "max_val": 2.0}]
        rejects = [
            rejected((8, 8), **base),
            rejected((2, 8, 8), **base),
            rejected(shapes[0], window_size=4),
            rejected(shapes[0], window_size=5, padding="zeros"),
            rejected(shapes[0], window_size=5, reduction="average"),
            rejected((*shapes[0][:-1], 2), window_size=5),
            (SHAPES_DIFFER[0], base),
        ]
        for name in names:
            check(suite, f"kornia.losses.{name}", restored, shapes, settings, VALUES, rejects)
            levels = [{"window_size": 5, "max_val": 255.0}]
            check(suite, f"kornia.losses.{name}", bytes_of(restored), shapes[:2], levels, {}, [], kind="bytes")


def ssim_monai(suite: Suite) -> None:
    """MONAI computes in single precision, whatever comes."""
    reference = "monai.losses.SSIMLoss"
    for dims, shapes in ((2, IMAGES), (3, VOLUMES)):
        base = {"spatial_dims": dims, "win_size": 5}
        settings = [
            base,
            {**base, "kernel_type": "uniform", "win_size": 4},
            {**base, "kernel_sigma": 0.7, "k1": 0.02, "k2": 0.1},
            {**base, "win_size": [3, 5, 4][:dims], "kernel_sigma": [0.5, 1.0, 2.0][:dims], "data_range": 2.0},
        ]
        rejects = [
            rejected((2, 8, 8), **base),
            rejected(shapes[0], **{**base, "win_size": 11}),
            rejected(shapes[0], **base, reduction="average"),
            rejected(shapes[0], **base, kernel_type="triangle"),
            (SHAPES_DIFFER[0], base),
        ]
        check(suite, reference, restored, shapes, settings, VALUES, rejects, dtypes=SINGLE, kind=f"{dims}d")
        levels = [{**base, "data_range": 255.0}]
        check(
            suite, reference, bytes_of(restored), shapes[:2], levels, {}, [], dtypes=SINGLE, kind=f"{dims}d_bytes"
        )
    default = [{"spatial_dims": 2}]
    check(suite, reference, restored, ((1, 2, 14, 12), (2, 1, 11, 16)), default, {}, [], dtypes=SINGLE, kind="default")


def ssim_formula(suite: Suite) -> None:
    reference = "papers.images.ssim_loss"
    small = {"win_size": 3}
    settings = [
        small,
        {"win_size": 4, "kernel_type": "uniform", "per_sample": True},
        {"win_size": 5, "reflect": True, "half": True, "eps": 1e-4},
        {"win_size": 5, "kernel_sigma": 0.8, "k1": 0.0, "k2": 0.2, "data_range": 3.0},
    ]
    rejects = [
        SHAPES_DIFFER,
        rejected((8, 8), **small),
        rejected(IMAGES[0]),
        rejected(IMAGES[0], **small, data_range=0.0),
        rejected(IMAGES[0], **small, k2=-1.0),
        rejected(IMAGES[0], win_size=[3, 3, 3]),
        rejected(IMAGES[0], **small, kernel_sigma=0.0),
    ]
    lines: tuple[Shape, ...] = ((2, 3, 9), (1, 1, 30), (2, 1, 8))
    check(suite, reference, restored, (*IMAGES, (1, 1, 40, 33)), settings, VALUES, rejects)
    check(suite, reference, restored, VOLUMES, settings, {}, [], kind="volume")
    check(suite, reference, restored, lines, settings, {}, [], kind="line")
    check(suite, reference, restored, ((1, 2, 14, 12), (2, 1, 11, 16)), [{}], {}, [], kind="default")


PYRAMIDS: tuple[Shape, ...] = ((2, 1, 12, 13), (2, 3, 16, 18), (1, 1, 13, 15), (2, 1, 24, 12))


def near(draw: Draw, shape: Shape) -> list:
    """Images that have something in common at all scales: fine noise and a wave."""
    wave = 0.25 * draw.uniform(shape)
    for dim, size in enumerate(shape[2:], 2):
        along = [size if at == dim else 1 for at in range(len(shape))]
        wave = wave + 0.25 * torch.cos(torch.arange(size, dtype=wave.dtype) * (4.0 / size) + dim).reshape(along)
    return [wave + draw.normal(shape, 0.05), wave]


def opposed(draw: Draw, shape: Shape) -> list:
    """An image and its negative, whose structures are contrary."""
    image = draw.uniform(shape)
    return [1 - image, image]


def ms_ssim_monai(suite: Suite) -> None:
    """MONAI computes in single precision, whatever comes."""
    reference = "chains.one_minus_ms_ssim"
    for dims, shapes in ((2, PYRAMIDS), (3, ((1, 2, 13, 12, 14), (2, 1, 12, 16, 12)))):
        base = {"spatial_dims": dims, "kernel_size": 3, "weights": [0.3, 0.3, 0.4]}
        settings = [
            base,
            {**base, "kernel_type": "uniform", "weights": [0.5, 0.2, 0.2]},
            {**base, "kernel_sigma": 0.7, "k1": 0.02, "k2": 0.1, "data_range": 2.0},
            {**base, "weights": [1.0]},
        ]
        values = {"equal": equal, "opposed": opposed}
        rejects = [
            rejected((2, 8, 8), **base),
            rejected(shapes[0], **{**base, "kernel_size": 9}),
            (SHAPES_DIFFER[0], base),
        ]
        check(suite, reference, near, shapes, settings, values, rejects, dtypes=("f32",), kind=f"{dims}d")
    large: tuple[Shape, ...] = ((1, 1, 176, 180), (1, 2, 176, 177))
    check(suite, reference, near, large, [{"spatial_dims": 2}], {}, [], dtypes=("f32",), kind="default")


def ms_ssim_formula(suite: Suite) -> None:
    reference = "papers.images.ms_ssim_loss"
    base = {"win_size": 3, "weights": [0.3, 0.3, 0.4]}
    settings = [
        base,
        {**base, "win_size": 2, "kernel_type": "uniform", "per_channel": True},
        {**base, "kernel_sigma": 0.8, "k1": 0.0, "k2": 0.2, "data_range": 3.0, "weights": [0.2, 0.0, 0.9]},
        {**base, "weights": [0.7]},
    ]
    rejects = [
        SHAPES_DIFFER,
        rejected((8, 8), **base),
        rejected(PYRAMIDS[0], **{**base, "win_size": 5}),
        rejected(PYRAMIDS[0], **base, data_range=0.0),
        rejected(PYRAMIDS[0], **{**base, "weights": [0.5, -0.5]}),
    ]
    lines: tuple[Shape, ...] = ((2, 3, 40), (1, 1, 52))
    check(suite, reference, near, PYRAMIDS, settings, {"black": black}, rejects)
    check(suite, reference, near, ((1, 2, 13, 12, 14), (2, 1, 12, 16, 12)), settings, {}, [], kind="volume")
    check(suite, reference, near, lines, settings, {}, [], kind="line")
    large: tuple[Shape, ...] = ((1, 2, 176, 177), (1, 1, 176, 180))
    check(suite, reference, near, large, [{}], {}, [], dtypes=("f64", "f32"), kind="default", second_order=False)


def ms_ssim_l1(suite: Suite) -> None:
    few = [
        {"sigmas": [0.5, 1.5]},
        {"sigmas": [1.0, 2.0, 3.0], "alpha": 0.5, "compensation": 1.0},
        {"sigmas": [0.5, 1.0, 2.0], "data_range": 2.0, "alpha": 0.9, "compensation": 10.0},
    ]
    rejects = [rejected((2, 8, 8), **few[0]), (SHAPES_DIFFER[0], few[0])]
    reference = "kornia.losses.MS_SSIMLoss"
    kornia = [{**setting, "K": [0.02, 0.05]} for setting in few[:1]]
    more = [*rejects, rejected(IMAGES[0], **few[0], reduction="average")]
    # kornia's windows are rounded to single precision, also where the rest is double: in f32 its gradients, in which variances
    # cancel, are held against the formula alone (below).
    for dtypes, grad in ((("f32",), ()), (("bf16", "f16"), (0, 1))):
        tags = {"dtypes": dtypes, "grad": grad}
        check(suite, reference, restored, IMAGES, [*few, *kornia], VALUES, more, **tags)
        check(suite, reference, restored, ((1, 2, 10, 12), (1, 1, 40, 33)), [{}], {}, [], kind="default", **tags)
    reference = "papers.images.ms_ssim_l1_loss"
    formula = [{**setting, "k1": 0.02, "k2": 0.05} for setting in few[:1]]
    more = [*rejects, rejected(IMAGES[0], sigmas=[]), rejected(IMAGES[0], alpha=2.0)]
    check(suite, reference, restored, IMAGES, [*few, *formula], VALUES, more)
    check(suite, reference, restored, ((1, 2, 10, 12), (1, 1, 40, 33)), [{}], {}, [], kind="default")


def psnr(suite: Suite) -> None:
    settings = [{"max_val": 1.0}, {"max_val": 2.5}]
    shapes: tuple[Shape, ...] = (*IMAGES, (7,), (1,))
    for name in ("PSNRLoss", "psnr_loss"):
        reference = f"kornia.losses.{name}"
        values = {"other": other, "signed": signed, "black": black}
        rejects = [(SHAPES_DIFFER[0], settings[0])]
        check(suite, reference, restored, shapes, settings, values, rejects, reductions=(), empty=((0, 5),))
        levels = [{"max_val": 255.0}]
        check(suite, reference, bytes_of(restored), shapes[:2], levels, {}, [], reductions=(), kind="bytes")
        tags = {"reductions": (), "kind": "better_equal", "second_order": False}
        check(suite, reference, equal, ((2, 3, 4, 5), (7,)), settings, {}, [], **tags)


def total_variation(suite: Suite) -> None:
    shapes: list[Shape] = [(2, 3, 8, 9), (4, 5), (1, 1, 1, 1), (1, 6), (6, 1), (2, 3, 2, 4, 5)]
    shapes += [(2, 0, 3), (2, 3, 0)]
    makes: dict[str, Pair] = {
        "noise": lambda draw, shape: [draw.normal(shape)],
        "plain": lambda draw, shape: [draw.integers(shape, 3).to(draw.dtype)],
        "bytes": lambda draw, shape: [draw.integers(shape, 256).to(draw.dtype)],
    }
    references = [("kornia.losses.TotalVariation", {}), ("kornia.losses.total_variation", {})]
    references.append(("kornia.losses.total_variation", {"reduction": "mean"}))

    def add(reference: str, tag: str, dtype: str, make: Pair, shape: Shape, options: dict, layout=None, **more) -> None:
        def call(draw: Draw) -> Call:
            return Call([lay_out(layout, make(draw, shape)[0])], dict(options), grad=(0,))

        tag = f"{options.get('reduction', 'default')}_{tag}"
        suite.add(reference, tag, dtype, call, layout=layout, **more)

    for (reference, options), dtype in product(references, DTYPES):
        for (tag, make), shape in product(makes.items(), shapes):
            add(reference, tag, dtype, make, shape, options)
        for layout in LAYOUTS:
            add(reference, "layout", dtype, makes["noise"], shapes[0], options, layout)
        add(reference, "ones", dtype, makes["noise"], shapes[0], options, ones=True)
        add(reference, "reject", dtype, makes["noise"], (5,), options, expect="error")
    add("kornia.losses.total_variation", "reject", "f32", makes["noise"], (4, 5), {"reduction": "none"}, expect="error")
    for (reference, options), kind, shape in product(references, (torch.uint8, torch.int16, torch.int64), shapes[:3]):
        make = lambda draw, shape, kind=kind: [draw.integers(shape, 256).to(kind)]  # noqa: E731
        call = lambda draw, make=make, shape=shape, options=options: Call(make(draw, shape), dict(options))  # noqa: E731
        suite.add(reference, f"{options.get('reduction', 'default')}_integers", "f32", call)


def add_all(suite: Suite) -> None:
    for add in (
        ssim_kornia,
        ssim_monai,
        ssim_formula,
        ms_ssim_monai,
        ms_ssim_formula,
        ms_ssim_l1,
        psnr,
        total_variation,
    ):
        add(suite)
