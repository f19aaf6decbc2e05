"""TFANet as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from tfanet.model.family import Family
from tfanet.model.tfanet.config import PRESETS, TFANetConfig
from tfanet.model.tfanet.network import TFANet
from tfanet.model.tfanet.published import PUBLISHED
from tfanet.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tfanet.runtime.tokenizer_file import END_ID

__all__ = ["FAMILY"]

FAMILY = Family(
    name="tfanet",
    title="TFANet",
    config=TFANetConfig,
    presets=PRESETS,
    network=TFANet,
    text_outputs=("word_features", "sentence_feature"),
    image_inputs=("image", "word_features", "sentence_feature", "word_mask"),
    image_outputs={"mask_logit": "mask"},
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pad_id=END_ID,
    marks=("decoder.", "fusion.0.", "backbone.patch_embed.0.weight"),
    # The scan's own parameters decide over thousands of steps.
    full_precision=("A_logs", "Ds", "dt_projs_bias"),
    parts=(
        "backbone.patch_embed",
        "backbone.layers.?.blocks",
        "fusion.?.align",
        "fusion.?.block",
        "fusion.?.cfsm",
        "decoder",
    ),
    published=PUBLISHED,
)
