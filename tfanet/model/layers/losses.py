"""Losses that several families train with."""

from __future__ import annotations

from torch import Tensor

__all__ = ["dice_loss"]


def dice_loss(logit: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) per sample, mean over the batch.

    Args:
        logit, target: (B, 1, H, W), target in {0, 1}; p = sigmoid(logit).
    """
    p, t = logit.sigmoid().flatten(1), target.flatten(1)
    dice = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return 1 - dice.mean()
