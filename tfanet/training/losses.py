"""Training loss: Dice plus binary cross-entropy, in equal parts, on the logit z."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["dice_loss", "segmentation_loss"]


def dice_loss(logit: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) per sample, mean over the batch.

    Args:
        logit, target: (B, 1, H, W), target in {0, 1}; p = sigmoid(logit).
    """
    p, t = logit.sigmoid().flatten(1), target.flatten(1)
    dice = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return 1 - dice.mean()


def segmentation_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE. On z = logit_1 - logit_0, BCE is exactly two-class cross-entropy."""
    return dice_loss(logit, target) + F.binary_cross_entropy_with_logits(logit, target)
