"""What teaches InstAlign's queries to hold objects, before sentences choose among them.

Its ancestors start from weights of [Mask2Former], whose queries find every annotated object and
name its category. Relevance is chosen among what queries hold: from fresh ones, a training by
sentences alone learns where objects are, and only much later which colour or shape they have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.instalign.config import InstAlignConfig
from tfanet.model.instalign.loss import mask_loss, matched
from tfanet.model.instalign.predictor import Predictor
from tfanet.model.training import Batch

__all__ = ["ObjectHead", "traits_of"]

CLASS, TRAITS = 2.0, 2.0  # of the category [Mask2Former], of what else sentences say [ours]
NO_OBJECT = 0.1  # weight of queries that hold none [Mask2Former]


class ObjectHead(nn.Module):
    """Category, colour, place and size of the object that a query holds. Not part of the model.

    Sentences are given, and do not matter: all objects of a picture are wanted.
    """

    def __init__(self, config: InstAlignConfig, categories: int) -> None:
        super().__init__()
        self.category = nn.Linear(config.decoder_dim, 1 + categories)
        self.traits = nn.Linear(config.decoder_dim, 3 + 2 + 2)
        self.points = config.loss_points

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scalar to minimise, and which share of the objects gets its category, 0 to 1.

        At each layer of the decoder: masks, categories and `traits_of`.

        Args:
            batch: with `categories`, of each sample's instances (n,) int64, from 1.
        """
        network: Any = model
        predictor: Predictor = network.sem_seg_head.predictor
        image, instances = batch["image"], batch["instances"]
        traits = [
            traits_of(picture, masks) for picture, masks in zip(image, instances, strict=True)
        ]
        (words,) = network.encode_text(batch["token_ids"])
        pixels = network.pixels(image)
        states = predictor(pixels, words.transpose(1, 2), batch["word_mask"])
        total, right = image.new_zeros(()), image.new_zeros(())
        for state in states:
            logits = self.category(state.queries)  # (B, N, 1 + categories)
            alone = [
                -CLASS * scores[:, kinds]
                for scores, kinds in zip(logits.log_softmax(2), batch["categories"], strict=True)
            ]
            embedded = predictor.mask_embed(state.queries)
            found = matched(pixels.features, embedded, instances, alone, self.points)
            true = torch.zeros_like(logits[..., 0], dtype=torch.int64)
            errors = []
            for one in found:
                b, queries = one.sample, one.queries
                true[b, queries] = batch["categories"][b][one.order]
                guess = self.traits(state.queries[b, queries])
                errors.append((guess - traits[b][one.order]).abs())
            weight = logits.new_ones(logits.shape[2])
            weight[0] = NO_OBJECT
            entropy = F.cross_entropy(logits.flatten(0, 1), true.flatten(), weight)
            total = total + CLASS * entropy
            if found:
                total = total + TRAITS * torch.cat(errors).mean() + mask_loss(found)
            objects = true > 0
            right = ((logits.argmax(2) == true) & objects).sum() / objects.sum().clamp_min(1)
        return total, right


def traits_of(picture: Tensor, masks: Tensor) -> Tensor:
    """What an object looks like and where it is: (n, 7).

    Mean normalised RGB; mean and standard deviation of x and of y, from -1 to 1 over the picture.

    Args:
        picture: (3, H, W). masks: (n, H, W), none of them empty.
    """
    share = masks / masks.sum((1, 2), keepdim=True)
    height, width = (
        torch.arange(0.5, n, dtype=masks.dtype, device=masks.device) / n for n in masks.shape[1:]
    )
    parts = [torch.einsum("nhw,chw->nc", share, picture)]
    for at, along in ((2 * width - 1, share.sum(1)), (2 * height - 1, share.sum(2))):
        mean = along @ at  # (n,)
        variance = along @ at**2 - mean**2
        parts.append(torch.stack([mean, variance.clamp_min(0).sqrt()], 1))
    return torch.cat(parts, 1)
