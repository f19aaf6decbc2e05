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

__all__ = ["ObjectHead"]

CLASS, COLOUR = 2.0, 2.0  # of the category [Mask2Former], of the colour [ours]
NO_OBJECT = 0.1  # weight of queries that hold none [Mask2Former]


class ObjectHead(nn.Module):
    """Category and mean colour of the object that a query holds. Not part of the model.

    Sentences are given, and do not matter: all objects of a picture are wanted.
    """

    def __init__(self, config: InstAlignConfig, categories: int) -> None:
        super().__init__()
        self.category = nn.Linear(config.decoder_dim, 1 + categories)
        self.colour = nn.Linear(config.decoder_dim, 3)
        self.points = config.loss_points

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scalar to minimise, and which share of the objects gets its category, 0 to 1.

        At each layer of the decoder: masks, categories, and mean normalised RGB.

        Args:
            batch: with `categories`, of each sample's instances (n,) int64, from 1.
        """
        network: Any = model
        predictor: Predictor = network.sem_seg_head.predictor
        image, instances = batch["image"], batch["instances"]
        colours = [  # (n, 3) of each sample
            torch.einsum("nhw,chw->nc", masks, picture) / masks.sum((1, 2))[:, None]
            for masks, picture in zip(instances, image, strict=True)
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
                guess = self.colour(state.queries[b, queries])
                errors.append((guess - colours[b][one.order]).abs())
            weight = logits.new_ones(logits.shape[2])
            weight[0] = NO_OBJECT
            entropy = F.cross_entropy(logits.flatten(0, 1), true.flatten(), weight)
            total = total + CLASS * entropy
            if found:
                total = total + COLOUR * torch.cat(errors).mean() + mask_loss(found)
            objects = true > 0
            right = ((logits.argmax(2) == true) & objects).sum() / objects.sum().clamp_min(1)
        return total, right
