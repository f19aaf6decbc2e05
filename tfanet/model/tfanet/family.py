"""TFANet as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from tfanet.model.family import Family
from tfanet.model.tfanet.config import PRESETS, TFANetConfig
from tfanet.model.tfanet.loss import loss
from tfanet.model.tfanet.network import TFANet
from tfanet.model.tfanet.published import PUBLISHED
from tfanet.model.training import Recipe, Training
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
    marks=(
        "backbone.patch_embed.0.weight",
        "fusion.0.align.image_proj.weight",
    ),
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
    training=Training(
        loss=loss,
        maps=lambda network, image: network.backbone(image),
        recipes={
            # The paper's: constant to half of the training, then cosine; half the rate where
            # pretrained.
            "tfanet-base": Recipe(
                epochs=50.0,
                batch=8,
                lr=5e-5,
                rates={"backbone.": 0.5, "text.": 0.5},
                schedule="constant-cosine",
            ),
            "tfanet-tiny": Recipe(
                epochs=2.0, batch=12, lr=1.5e-3, warmup=100, clip=1.0, by_picture=True
            ),
        },
        # The scan's own parameters, X-Norm's gains and the weights of MLAM's scales.
        no_decay=("A_logs", "Ds", "dt_projs_bias", "gamma", "w"),
    ),
)
