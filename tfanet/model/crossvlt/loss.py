"""CrossVLT's loss: which pixels are meant, and in every stage pixels that agree with the sentence.

    2 CE(z, t) + sum over stages of BCE(resize(cos(pixel, [CLS]) / temp_i), t)

(the official training code; CE has the weights 0.9 for the ground and 1.1 for what is meant.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.crossvlt.network import CrossVLT
from tfanet.model.training import Batch

__all__ = ["loss"]

CLASS_WEIGHTS = (0.9, 1.1)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a `CrossVLT` on a batch, a scalar, and the mask logit (B, 1, H, W)."""
    assert isinstance(model, CrossVLT)
    outputs = model.training_outputs(batch["image"], batch["token_ids"], batch["word_mask"])
    logits, target = outputs.logits, batch["target"]
    weight = torch.tensor(CLASS_WEIGHTS, device=logits.device, dtype=logits.dtype)
    result = 2 * F.cross_entropy(logits, target.squeeze(1).long(), weight)
    for pixels, sentence, temperature in zip(
        outputs.pixels, outputs.sentence, model.temp, strict=True
    ):
        # The cosine of each pixel (B, A, h, w) and the sentence (B, A).
        similar = F.cosine_similarity(pixels, sentence[:, :, None, None], dim=1) / temperature
        similar = F.interpolate(
            similar.unsqueeze(1), target.shape[2:], mode="bilinear", align_corners=True
        )
        result = result + F.binary_cross_entropy_with_logits(similar, target.to(similar.dtype))
    return result, logits[:, 1:] - logits[:, :1]
