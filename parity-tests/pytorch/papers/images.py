"""SSIM with all options, in the dtype of its input: no package has them together, or in double precision."""

from __future__ import annotations

import math

import torch

from papers import in_single, matching, reduced


def profile(size: int, sigma: float | None, image: torch.Tensor) -> torch.Tensor:
    """The weights of a Gaussian window along one dimension, or of a uniform one, for an image like this."""
    if sigma is None:
        return image.new_full((size,), 1 / size)
    heights = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return image.new_tensor([height / sum(heights) for height in heights])


def window(profiles: list[torch.Tensor]) -> torch.Tensor:
    """The product of the profiles, one for each dimension."""
    whole = profiles[0]
    for one in profiles[1:]:
        whole = whole.unsqueeze(-1) * one
    return whole


def sized_window(dims: int, win_size, kernel_sigma, kernel_type: str, image: torch.Tensor) -> tuple:
    """The sizes of a window, given as one for all dimensions or as a list, and its weights."""
    sizes = win_size if isinstance(win_size, list) else [win_size] * dims
    sigmas = kernel_sigma if isinstance(kernel_sigma, list) else [kernel_sigma] * dims
    if len(sizes) != dims or len(sigmas) != dims or min(sizes) < 1 or min(sigmas) <= 0:
        raise ValueError("no such window")
    gaussian = kernel_type == "gaussian"
    return sizes, window([profile(n, s if gaussian else None, image) for n, s in zip(sizes, sigmas)])


def means(image: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted means of all places where the window fits, channel by channel."""
    convolution = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[weights.dim()]
    flat = image.reshape(-1, 1, *image.shape[2:])
    return convolution(flat, weights[None, None]).reshape(*image.shape[:2], *[
        size - taps + 1 for size, taps in zip(image.shape[2:], weights.shape)
    ])


def terms(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, c1: float, c2: float) -> tuple:
    """Luminance, and contrast with structure: equation 12 of the paper, whose exponents are 1."""
    mean_x, mean_y = means(x, weights), means(y, weights)
    variance_x = means(x * x, weights) - mean_x**2
    variance_y = means(y * y, weights) - mean_y**2
    covariance = means(x * y, weights) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1, mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2, variance_x + variance_y + c2)


@in_single
def ssim_loss(
    input,
    target,
    win_size=11,
    kernel_sigma=1.5,
    kernel_type: str = "gaussian",
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    eps: float = 0.0,
    reflect: bool = False,
    half: bool = False,
    per_sample: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004."""
    matching(input, target)
    dims = input.dim() - 2
    if not 1 <= dims <= 3 or not data_range > 0 or min(k1, k2, eps) < 0:
        raise ValueError("no such similarity")
    sizes, weights = sized_window(dims, win_size, kernel_sigma, kernel_type, input)
    if reflect:
        border = [n // 2 for n in reversed(sizes) for _ in range(2)]
        input, target = (torch.nn.functional.pad(image, border, mode="reflect") for image in (input, target))
    elif any(size < n for size, n in zip(input.shape[2:], sizes)):
        raise ValueError("an image smaller than the window")
    first, second = terms(input, target, weights, (k1 * data_range) ** 2, (k2 * data_range) ** 2)
    losses = 1 - first[0] * second[0] / (first[1] * second[1] + eps)
    losses = losses / 2 if half else losses
    return reduced(losses.flatten(1).mean(1) if per_sample else losses, reduction)


@in_single
def ms_ssim_loss(
    input,
    target,
    weights: list[float] = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333),
    win_size=11,
    kernel_sigma=1.5,
    kernel_type: str = "gaussian",
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    per_channel: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 7 of Wang et al., Multiscale Structural Similarity for Image Quality Assessment, 2003."""
    matching(input, target)
    dims = input.dim() - 2
    if not 1 <= dims <= 3 or not data_range > 0 or min(k1, k2, *weights) < 0:
        raise ValueError("no such similarity")
    _, taps = sized_window(dims, win_size, kernel_sigma, kernel_type, input)
    halve = {1: torch.nn.functional.avg_pool1d, 2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}
    similarity = 1
    for scale, weight in enumerate(weights):
        if scale > 0:
            input, target = halve[dims](input, 2), halve[dims](target, 2)
        luminance, structure = terms(input, target, taps, (k1 * data_range) ** 2, (k2 * data_range) ** 2)
        map = structure[0] / structure[1]
        if scale == len(weights) - 1:
            map = map * luminance[0] / luminance[1]
        similarity = similarity * torch.relu(map.flatten(2 if per_channel else 1).mean(-1)) ** weight
    return reduced(1 - similarity, reduction)


@in_single
def ms_ssim_l1_loss(
    input,
    target,
    sigmas: list[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    alpha: float = 0.025,
    compensation: float = 200.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 14 of https://arxiv.org/abs/1511.08861, with kornia's scale of it."""
    matching(input, target)
    if input.dim() != 4 or not sigmas or min(sigmas) <= 0 or not 0 <= alpha <= 1:
        raise ValueError("no such loss")
    radius = int(2 * sigmas[-1])
    border = [radius] * 4
    x, y, distance = (
        torch.nn.functional.pad(image, border) for image in (input, target, (input - target).abs())
    )
    similarity = torch.ones_like(input)
    for sigma in sigmas:
        weights = window([profile(2 * radius + 1, sigma, input)] * 2)
        luminance, structure = terms(x, y, weights, (k1 * data_range) ** 2, (k2 * data_range) ** 2)
        similarity = similarity * structure[0] / structure[1]
    similarity = similarity * luminance[0] / luminance[1]
    mixed = alpha * (1 - similarity) + (1 - alpha) * means(distance, weights) / data_range
    return reduced(compensation * mixed.mean(1), reduction)
