"""TFANet's training loss: Dice plus binary cross-entropy, in equal parts, on the logit z."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.losses import dice_loss
from tfanet.model.training import Batch

__all__ = ["loss", "segmentation_loss"]


def segmentation_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Dice + BCE. On z = logit_1 - logit_0, BCE is exactly two-class cross-entropy."""
    return dice_loss(logit, target) + F.binary_cross_entropy_with_logits(logit, target)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The scalar loss of a `TFANet` on a batch, and its logit z (B, 1, H, W)."""
    logit = model(batch["image"], batch["token_ids"], batch["word_mask"]).float()
    return segmentation_loss(logit, batch["target"]), logit
