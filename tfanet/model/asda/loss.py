"""ASDA's training loss: focal and Dice, in equal parts, at the size of the logit."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.losses import dice_loss
from tfanet.model.training import Batch

__all__ = ["focal_loss", "loss"]

GAMMA = 0.0  # the official code calls its focal loss by default values: it is the cross-entropy


def focal_loss(logit: Tensor, target: Tensor, gamma: float = GAMMA) -> Tensor:
    """Mean of -(1 - p_t)^gamma log(p_t), p_t the probability of what is true; target in {0, 1}.

    "Focal Loss for Dense Object Detection" (Lin et al., 2017), without its weights of classes.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")  # -log(p_t)
    return ((1 - (-entropy).exp()) ** gamma * entropy).mean()


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The scalar loss of an `ASDA` on a batch, and its mask logit (B, 1, h, w).

    The target is reduced to the logit's size by its nearest pixels.
    """
    logit = model(batch["image"], batch["token_ids"], batch["word_mask"]).float()
    target = F.interpolate(batch["target"], logit.shape[2:], mode="nearest")
    return focal_loss(logit, target) + dice_loss(logit, target), logit
