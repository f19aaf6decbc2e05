"""Training loss: Dice plus binary cross-entropy, in equal parts, on the logit z."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tfanet.model.layers.losses import dice_loss

__all__ = ["segmentation_loss"]


def segmentation_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE. On z = logit_1 - logit_0, BCE is exactly two-class cross-entropy."""
    return dice_loss(logit, target) + F.binary_cross_entropy_with_logits(logit, target)
