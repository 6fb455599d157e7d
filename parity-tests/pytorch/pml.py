"""Losses of pytorch-metric-learning behind one of its miners, or without a reducer, as one call."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses, reducers


def mined_triplet_margin_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    miner: Any = None,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """The triplet margin loss of the triplets that a miner finds."""
    triplets = miner(embeddings, labels, ref_emb, ref_labels)
    loss = losses.TripletMarginLoss(**options)
    return loss(embeddings, labels, triplets, ref_emb, ref_labels)


def unreduced(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    loss: str = "",
    miner: Any = None,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """The losses of a loss class in one dimension, those of its parts one after the other."""
    criterion = getattr(losses, loss)(reducer=reducers.DoNothingReducer(), **options)
    triplets = None if miner is None else miner(embeddings, labels, ref_emb, ref_labels)
    parts = criterion(embeddings, labels, triplets, ref_emb, ref_labels).values()
    return torch.cat([part["losses"].flatten() for part in parts if isinstance(part["losses"], torch.Tensor)])
