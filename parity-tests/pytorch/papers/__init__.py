"""Losses that no installable package has, written down from the papers' formulas, independently of the crate.

Plain and slow, one function per loss, on the operations of torch; cases use them in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """The mean, the sum, or the losses as they are."""
    return {"mean": torch.mean, "sum": torch.sum, "none": lambda losses: losses}[reduction](losses)


def in_single(loss: Callable) -> Callable:
    """Computes a loss of half precision in single precision, and returns it in the dtype of its input."""

    @functools.wraps(loss)
    def wide(input: torch.Tensor, target: torch.Tensor, *args, **options) -> torch.Tensor:
        half = input.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half else input.dtype
        target = target.to(dtype) if target.is_floating_point() else target
        return loss(input.to(dtype), target, *args, **options).to(input.dtype)

    return wide


def matching(input: torch.Tensor, target: torch.Tensor) -> None:
    if input.shape != target.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, input {tuple(input.shape)}")


@in_single
def quality_focal_loss(input, target, beta: float = 2.0, reduction: str = "mean") -> torch.Tensor:
    """Equation 5 of https://arxiv.org/abs/2006.04388 on logits."""
    matching(input, target)
    score = torch.sigmoid(input)
    log_score, log_rest = torch.nn.functional.logsigmoid(input), torch.nn.functional.logsigmoid(-input)
    entropy = -((1 - target) * log_rest + target * log_score)
    return reduced((target - score).abs() ** beta * entropy, reduction)


@in_single
def distribution_focal_loss(input, target, reduction: str = "mean") -> torch.Tensor:
    """Equation 6 of https://arxiv.org/abs/2006.04388, over the bins 0, 1, … of the last dimension."""
    matching(input[..., 0], target)
    last = input.shape[-1] - 1
    if not bool(((target >= 0) & (target <= last)).all()):
        raise ValueError("a target outside the bins")
    log_probabilities = torch.log_softmax(input, -1)
    loss = torch.zeros_like(target)
    for left in range(last):
        right = left + 1
        between = (target >= left) & ((target < right) | (right == last))
        here = (right - target) * log_probabilities[..., left] + (target - left) * log_probabilities[..., right]
        loss = torch.where(between, -here, loss)
    return reduced(loss, reduction)


@in_single
def varifocal_loss(
    input, target, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "mean"
) -> torch.Tensor:
    """Equation 2 of https://arxiv.org/abs/2008.13367 on logits."""
    matching(input, target)
    log_score, log_rest = torch.nn.functional.logsigmoid(input), torch.nn.functional.logsigmoid(-input)
    positive = -target * (target * log_score + (1 - target) * log_rest)
    negative = -alpha * torch.exp(gamma * log_score) * log_rest
    return reduced(torch.where(target > 0, positive, negative), reduction)


# Focal losses (Lin et al., "Focal Loss for Dense Object Detection", 2017), with the options that no package has.


def reduce_where(losses: torch.Tensor, counted: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduces the losses that count; the others are 0."""
    losses = torch.where(counted, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    chosen = losses[counted.expand_as(losses)]
    return chosen.sum() if reduction == "sum" else chosen.mean()


def sigmoid_focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | torch.Tensor | None = 0.25,
    gamma: float = 2.0,
    soft_targets: str = "expectation",
    reduced_threshold: float | None = None,
    normalization: str | None = None,
    ignore_index: int | None = None,
    mask: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    counted = torch.ones_like(input, dtype=torch.bool) if mask is None else mask
    if ignore_index is not None:
        counted = counted & (target != ignore_index)
    dim = 0 if input.dim() == 1 else 1
    if isinstance(alpha, torch.Tensor):
        alpha = alpha.view([-1 if d == dim else 1 for d in range(input.dim())])
    target = torch.where(counted, target, torch.zeros_like(target))
    p = input.sigmoid()

    def factor(p_t: torch.Tensor) -> torch.Tensor:
        if reduced_threshold is None:
            return (1 - p_t) ** gamma
        return torch.where(p_t < reduced_threshold, 1.0, ((1 - p_t) / reduced_threshold) ** gamma)

    positive, negative = -target * p.log(), -(1 - target) * (1 - p).log()
    positive_alpha, negative_alpha = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    if soft_targets == "terms":
        losses = positive_alpha * factor(p) * positive + negative_alpha * factor(1 - p) * negative
        factors = target * factor(p) + (1 - target) * factor(1 - p)
    else:
        p_t = {
            "expectation": target * p + (1 - target) * (1 - p),
            "margin": ((2 * target - 1) * input).sigmoid(),
            "likelihood": (target * p.log() + (1 - target) * (1 - p).log()).exp(),
        }[soft_targets]
        factors = factor(p_t)
        losses = (target * positive_alpha + (1 - target) * negative_alpha) * factors * (positive + negative)
    if normalization is not None:
        others = [d for d in range(input.dim()) if d != dim or normalization == "all"]
        factors = torch.where(counted, factors, torch.zeros_like(factors))
        losses = losses / (factors.sum(others, keepdim=True) if others else factors).clamp_min(1e-6)
    if weight is not None:
        losses = losses * weight
    return reduce_where(losses, counted, reduction)


def one_vs_rest_focal_loss(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """The sigmoid focal loss of a one-hot target; a target of -100 does not count."""
    dim = 0 if input.dim() == 1 else 1
    counted = (target != -100).unsqueeze(dim)
    one_hot = torch.nn.functional.one_hot(target.clamp_min(0), input.shape[dim]).movedim(-1, dim)
    if weight is not None:
        weight = weight.view([-1 if d == dim else 1 for d in range(input.dim())])
    mask = counted.expand_as(input)
    return sigmoid_focal_loss(input, one_hot.to(input.dtype), weight=weight, mask=mask, **options)


def softmax_focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | torch.Tensor | None = None,
    gamma: float = 2.0,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """With the means of cross entropy: over Σ w of class indices, and over the number of class probabilities."""
    dim = 0 if input.dim() == 1 else 1
    count = input.shape[dim]
    ones = input.new_ones(count)
    weight = ones if weight is None else weight
    if isinstance(alpha, torch.Tensor):
        balance = alpha
    else:
        balance = ones if alpha is None else input.new_tensor([1 - alpha] + [alpha] * (count - 1))
    shape = [-1 if d == dim else 1 for d in range(input.dim())]
    probabilities = target.is_floating_point()
    if probabilities:
        counted, soft = torch.ones_like(input.sum(dim), dtype=torch.bool), target
    else:
        counted = target != -100
        soft = torch.nn.functional.one_hot(target.clamp_min(0), count).movedim(-1, dim).to(input.dtype)
    divisor = counted.to(input.dtype) if probabilities else weight[target.clamp_min(0)] * counted
    soft = (1 - label_smoothing) * soft + label_smoothing / count
    p = input.softmax(dim)
    each = -((weight * balance).view(shape) * (1 - p) ** gamma * soft * p.log()).sum(dim)
    each = torch.where(counted, each, torch.zeros_like(each))
    if reduction == "none":
        return each
    if not counted.any() and reduction == "mean":
        return (each * 0).sum() + float("nan")
    return each.sum() if reduction == "sum" else each.sum() / divisor.sum()


def signs(target: torch.Tensor) -> torch.Tensor:
    """The labels 0 and 1 as -1 and 1, where there are no others."""
    binary = bool(((target == 0) | (target == 1)).all())
    return 2 * target - 1 if binary else target


@in_single
def hinge_loss(input, target, reduction: str = "mean") -> torch.Tensor:
    """keras.losses.Hinge: the mean over the last dimension, then the reduction."""
    matching(input, target)
    hinges = torch.relu(1 - signs(target) * input)
    return reduced(hinges.mean(-1), reduction)


@in_single
def squared_hinge_loss(input, target, reduction: str = "mean") -> torch.Tensor:
    """keras.losses.SquaredHinge."""
    matching(input, target)
    hinges = torch.relu(1 - signs(target) * input)
    return reduced((hinges**2).mean(-1), reduction)


@in_single
def categorical_hinge_loss(input, target, reduction: str = "mean") -> torch.Tensor:
    """keras.losses.CategoricalHinge; class indices become one-hot vectors first."""
    if target.shape != input.shape:
        matching(input[..., 0], target)
        target = torch.nn.functional.one_hot(target, input.shape[-1]).to(input.dtype)
    own = (target * input).sum(-1)
    others = ((1 - target) * input).amax(-1)
    return reduced(torch.relu(others - own + 1), reduction)


@in_single
def focal_tversky_loss(
    input,
    target,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = 4 / 3,
    eps: float = 1e-5,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equations 3 and 4 of https://arxiv.org/abs/1810.07842: for each image and class, (1 - TI) ** (1 / gamma).

    `input` holds probabilities; the target is one-hot of the same shape, or classes. `alpha` is for the pixels that
    the prediction misses, `beta` for those that it has too many.
    """
    count = input.shape[1]
    if target.dim() < input.dim():
        target = torch.stack([(target == label).to(input.dtype) for label in range(count)], 1)
    matching(input, target)
    losses = []
    for probability, truth in zip(input.reshape(-1, *input.shape[2:]), target.reshape(-1, *input.shape[2:])):
        both = (probability * truth).sum()
        missed, surplus = ((1 - probability) * truth).sum(), (probability * (1 - truth)).sum()
        index = (both + eps) / (both + alpha * missed + beta * surplus + eps)
        losses.append((1 - index) ** (1 / gamma))
    return reduced(torch.stack(losses).reshape(-1, count), reduction)


# Losses of boundaries and of regions with pixels, where the package computes in single precision alone.


def boundary_distances(mask: torch.Tensor) -> torch.Tensor:
    """How far every pixel is from the nearest one of the other value, by comparison with all of them."""
    indices = (torch.arange(length, device=mask.device) for length in mask.shape)
    places = torch.cartesian_prod(*indices).view(mask.numel(), -1)
    distances = torch.cdist(places.double(), places.double(), compute_mode="donot_use_mm_for_euclid_dist")
    flat = mask.reshape(-1)
    other = flat[:, None] != flat[None, :]
    nearest = distances.masked_fill(~other, float("inf")).amin(1)
    return torch.where(other.any(1), nearest, 0.0).view(mask.shape)


def hausdorff_dt_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 2.0,
    log: bool = False,
    batch: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """Equation 8 of https://arxiv.org/abs/1904.10030 on probabilities and masks `[N, C, ...]`."""
    matching(input, target)
    per_region = []
    for sample in range(input.shape[0]):
        for channel in range(input.shape[1]):
            p, t = input[sample, channel], target[sample, channel]
            weights = boundary_distances(p > 0.5) ** alpha + boundary_distances(t > 0.5) ** alpha
            per_region.append(((p - t) ** 2 * weights).mean())
    losses = torch.stack(per_region).view(input.shape[:2])
    loss = reduced(losses.mean(0) if batch else losses, reduction)
    return torch.log(loss + 1) if log else loss


def dice_focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    gamma: float = 2.0,
    softmax: bool = False,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Dice of each class of each sample and the focal loss of each pixel: of class indices, or of masks."""
    if softmax:
        hot = torch.nn.functional.one_hot(target, input.shape[1]).movedim(-1, 1).to(input.dtype)
        p = torch.softmax(input, 1)
        focal = -(hot * (1 - p) ** gamma * torch.log_softmax(input, 1)).sum(1)
    else:
        hot, p = target, torch.sigmoid(input)
        log_p, log_q = torch.nn.functional.logsigmoid(input), torch.nn.functional.logsigmoid(-input)
        focal = -(hot * (1 - p) ** gamma * log_p + (1 - hot) * p**gamma * log_q)
    inside = tuple(range(2, input.dim()))
    dice = 1 - (2 * (p * hot).sum(inside) + 1e-5) / (p.sum(inside) + hot.sum(inside) + 1e-5)
    return lambda_dice * reduced(dice, reduction) + lambda_focal * reduced(focal, reduction)


def jaccard_loss(wrong: torch.Tensor, foreground: torch.Tensor) -> float:
    """1 - IoU of the prediction that differs from the foreground in the pixels that are wrong."""
    predicted = foreground ^ wrong
    union = int((predicted | foreground).sum())
    return 1 - int((predicted & foreground).sum()) / union if union else 0.0


def lovasz_extension(errors: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """Definition 1 of https://arxiv.org/abs/1705.08790: of the Jaccard loss as a function of the wrong pixels."""
    wrong = torch.zeros_like(foreground)
    total, before = (errors * 0).sum(), 0.0
    for pixel in sorted(range(len(errors)), key=lambda pixel: -errors[pixel].item()):
        wrong[pixel] = True
        after = jaccard_loss(wrong, foreground)
        total, before = total + errors[pixel] * (after - before), after
    return total


def of_images(loss: Callable, input: torch.Tensor, target: torch.Tensor, per_image: bool) -> torch.Tensor:
    """The mean of the losses of the single images, or the loss of all of them at once."""
    if not per_image:
        return loss(input, target)
    return torch.stack([loss(input[i : i + 1], target[i : i + 1]) for i in range(len(input))]).mean()


def lovasz_hinge_loss(
    input: torch.Tensor, target: torch.Tensor, per_image: bool = False, ignore_index: int | None = None
) -> torch.Tensor:
    def loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
        score, label = input[counted], target[counted]
        margin = torch.where(label == 1, 1 - score, 1 + score)
        return lovasz_extension(margin.relu(), label == 1)

    matching(input, target)
    return of_images(loss, input, target, per_image)


def lovasz_softmax_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    classes: str | list[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
) -> torch.Tensor:
    def loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
        rows, label = input.movedim(1, -1)[counted].softmax(-1), target[counted]
        chosen = classes if isinstance(classes, list) else range(input.shape[1])
        chosen = [c for c in chosen if classes != "present" or bool((label == c).any())]
        each = [lovasz_extension((rows[:, c] - (label == c).to(rows)).abs(), label == c) for c in chosen]
        return torch.stack(each).mean() if each else rows.sum()

    return of_images(loss, input, target, per_image)


# Cross entropy of large vocabularies, with what language models add to it.


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
) -> torch.Tensor:
    """Row by row. The soft cap is that of Gemma 2 (https://arxiv.org/abs/2408.00118), the z-loss that of PaLM
    (https://arxiv.org/abs/2204.02311), averaged over the targets that count. `chunk` says nothing about the value.
    """
    own = input.dtype
    dtype = torch.float32 if own in (torch.float16, torch.bfloat16) else own
    classes, *places, features = linear_weight.shape
    rows = input.reshape(-1, features).to(dtype)
    matrices = linear_weight.reshape(classes, -1, features).to(dtype)
    biases = None if linear_bias is None else linear_bias.reshape(classes, -1).to(dtype)
    class_weight = rows.new_ones(classes) if weight is None else weight.to(dtype)
    soft, indices = target.is_floating_point(), torch.arange(classes, device=rows.device)
    targets = target.reshape(len(rows), classes, -1) if soft else target.reshape(len(rows), -1)
    entropies, squares, weights, counts = [], [], 0.0, 0
    for n, x in enumerate(rows):
        for k in range(matrices.shape[1]):
            if not soft and int(targets[n, k]) == ignore_index:
                entropies.append(rows.new_zeros(()))
                squares.append(rows.new_zeros(()))
                continue
            z = matrices[:, k] @ x
            z = z if biases is None else z + biases[:, k]
            z = z if softcap is None else softcap * torch.tanh(z / softcap)
            own_class = targets[n, :, k].to(dtype) if soft else indices == targets[n, k]
            mixed = (1 - label_smoothing) * own_class.to(dtype)
            # For a class the weight of the target is that of its own class, which is the same.
            mixed = class_weight * (mixed + label_smoothing / classes)
            log_sum_exp = torch.logsumexp(z, 0)
            entropies.append((mixed * (log_sum_exp - z)).sum())
            squares.append(lse_square_scale * log_sum_exp**2)
            weights = weights + (1.0 if soft else class_weight[targets[n, k]])
            counts += 1
    entropy, square = torch.stack(entropies), torch.stack(squares)
    if reduction == "none":
        shape = [*input.shape[:-1], *places]
        return (entropy + square).reshape(shape).to(own)
    if reduction == "sum":
        return (entropy + square).sum().to(own)
    return (entropy.sum() / weights + square.sum() / counts).to(own)


def chunked_linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    chunk: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """PyTorch's own, all rows at once: its chunks do not heed autocast. `chunk` says nothing about the value."""
    return torch.nn.functional.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, **options
    )
