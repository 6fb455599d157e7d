"""Losses of pairs of images and texts, row by row."""

from __future__ import annotations

import torch

from papers import reduced


def rows(embeddings: torch.Tensor, normalize: bool) -> list[torch.Tensor]:
    """The embeddings one by one, at least in single precision, and of norm 1 where that is asked for."""
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    if not normalize:
        return list(embeddings)
    return [row / row.norm() if bool((row != 0).any()) else row * 0 for row in embeddings]


def matching(image: torch.Tensor, text: torch.Tensor) -> None:
    if image.dim() != 2 or image.shape != text.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}, text {tuple(text.shape)}")


def gathered(losses: list[torch.Tensor], image: torch.Tensor, reduction: str) -> torch.Tensor:
    """Empty batches keep a graph."""
    each = torch.stack(losses) if losses else image.sum(1)
    return reduced(each, reduction).to(image.dtype)


def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: float | torch.Tensor,
    normalize: bool = True,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Figure 3 of https://arxiv.org/abs/2103.00020; `logit_scale` is exp(t) there."""
    matching(image, text)
    images, texts = rows(image, normalize), rows(text, normalize)
    count = len(images)

    def entropy(logits: torch.Tensor, own: int) -> torch.Tensor:
        largest = logits.max().detach()
        log_sum = largest + (logits - largest).exp().sum().log()
        smooth = label_smoothing * (log_sum - logits.mean())
        return (1 - label_smoothing) * (log_sum - logits[own]) + smooth

    losses = []
    for n in range(count):
        of_image = torch.stack([(images[n] * other).sum() * logit_scale for other in texts])
        of_text = torch.stack([(other * texts[n]).sum() * logit_scale for other in images])
        losses.append((entropy(of_image, n) + entropy(of_text, n)) / 2)
    return gathered(losses, image, reduction)


def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor,
    normalize: bool = True,
    reduction: str = "mean",
) -> torch.Tensor:
    """Algorithm 1 of https://arxiv.org/abs/2303.15343; `logit_scale` is exp(t') there."""
    matching(image, text)
    images, texts = rows(image, normalize), rows(text, normalize)
    losses = []
    for n, own in enumerate(images):
        loss = own.sum() * 0
        for j, other in enumerate(texts):
            logit = (own * other).sum() * logit_scale + logit_bias
            signed = logit if j == n else -logit
            # log(1 + exp(-u)) without an exponential of a large number.
            loss = loss + torch.relu(-signed) + torch.log1p(torch.exp(-signed.abs()))
        losses.append(loss)
    return gathered(losses, image, reduction)
