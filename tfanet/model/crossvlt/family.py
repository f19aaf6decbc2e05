"""CrossVLT as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tfanet.model.config import Config
from tfanet.model.crossvlt.config import PRESETS, CrossVLTConfig
from tfanet.model.crossvlt.loss import loss
from tfanet.model.crossvlt.network import PAD_ID, CrossVLT
from tfanet.model.crossvlt.published import PUBLISHED
from tfanet.model.family import Family
from tfanet.model.layers.swin import without_position_index
from tfanet.model.training import Recipe, Training
from tfanet.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["FAMILY"]


def _from_official(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Without the positions' index, which must be Swin's; `temp` is in training checkpoints only.

    It is a divisor of the alignment loss, and starts at 1.
    """
    assert isinstance(config, CrossVLTConfig)
    kept = without_position_index(tensors, config.window)
    return {"temp": torch.ones(4), **kept}


FAMILY = Family(
    name="crossvlt",
    title="CrossVLT",
    config=CrossVLTConfig,
    presets=PRESETS,
    network=CrossVLT,
    text_outputs=("word_features",),
    image_inputs=("image", "word_features", "word_mask"),
    image_outputs={"mask_logit": "mask"},
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    tokenizer="bert-wordpiece",
    truncation="cut",
    pad_id=PAD_ID,
    from_official=_from_official,
    marks=(
        "backbone.0.patch_embed.proj.weight",
        "lang_stage1.embeddings.word_embeddings.weight",
        "lang_stage2.crossattention.self.key.weight",
        "classifier.conv1_4.weight",
    ),
    parts=(
        "backbone.0.patch_embed",
        "backbone.?.layers.blocks.*",
        "backbone.?.layers.attn?",
        "lang_stage?",
        "classifier",
    ),
    published=PUBLISHED,
    training=Training(
        loss=loss,
        maps=lambda network, image: network.maps(image),
        recipes={
            # The official one, there of two processes with 6 samples each.
            "crossvlt-base": Recipe(
                epochs=40.0, batch=12, lr=3e-5, weight_decay=1e-2, schedule="polynomial"
            ),
            "crossvlt-tiny": Recipe(
                epochs=2.0, batch=12, lr=1e-3, warmup=200, clip=1.0, ema=0.998, by_picture=True
            ),
        },
        no_decay=("relative_position_bias_table",),
    ),
)
