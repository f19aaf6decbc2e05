"""InstAlign as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tfanet.model.config import Config
from tfanet.model.family import Family
from tfanet.model.instalign.config import PRESETS, InstAlignConfig
from tfanet.model.instalign.loss import loss
from tfanet.model.instalign.network import PAD_ID, InstAlign
from tfanet.model.instalign.objects import ObjectHead
from tfanet.model.instalign.published import PUBLISHED
from tfanet.model.layers.swin import without_position_index
from tfanet.model.training import Recipe, Training
from tfanet.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["FAMILY"]

CLASS_EMBED = "sem_seg_head.predictor.class_embed."
TRAINING_ONLY = ("criterion.empty_weight",)  # [Mask2Former]'s class weights


def _from_ancestors(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A state dict by its ancestors' names: there is no official one of InstAlign itself.

    The positions' index must be Swin's. Two rows of `class_embed`, for meant and not meant, become
    the difference: softmax over two is the sigmoid of it.
    """
    assert isinstance(config, InstAlignConfig)
    kept = without_position_index(tensors, config.window)
    for name in TRAINING_ONLY:
        kept.pop(name, None)
    for name in (f"{CLASS_EMBED}weight", f"{CLASS_EMBED}bias"):
        if name in kept and kept[name].shape[:1] == (2,):
            kept[name] = kept[name][:1] - kept[name][1:]
    return kept


FAMILY = Family(
    name="instalign",
    title="InstAlign",
    config=InstAlignConfig,
    presets=PRESETS,
    network=InstAlign,
    text_outputs=("word_features",),
    image_inputs=("image", "word_features", "word_mask"),
    image_outputs={
        "mask_logit": "mask",
        "no_target_logit": "no_target",
        "relevance": "relevance",
        "instance_logits": "instances",
        "alignment": "alignment",
    },
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    tokenizer="bert-wordpiece",
    truncation="cut",
    pad_id=PAD_ID,
    from_official=_from_ancestors,
    marks=(
        "text_encoder.embeddings.word_embeddings.weight",
        "sem_seg_head.pixel_decoder.mask_features.weight",
        "sem_seg_head.predictor.query_feat.weight",
        "sem_seg_head.predictor.lang_proj.weight",
    ),
    parts=(
        "backbone.patch_embed",
        "backbone.layers.?.blocks.*",
        "sem_seg_head.pixel_decoder",
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.?",
        "sem_seg_head.predictor.transformer_ffn_layers.?",
        "sem_seg_head.predictor.decoder_norm",
    ),
    published=PUBLISHED,
    training=Training(
        loss=loss,
        maps=lambda network, image: network.backbone(image),
        objects=ObjectHead,
        recipes={
            # AdamW, batch and epochs [paper]; rates and decay [Mask2Former].
            "instalign-base": Recipe(
                epochs=20.0,
                batch=32,
                lr=1e-4,
                rates={"backbone.": 0.1, "text_encoder.": 0.1},
                weight_decay=0.05,
                clip=0.01,
            ),
            "instalign-tiny": Recipe(
                epochs=1.25,
                batch=24,
                lr=1e-3,
                rates={"backbone.": 0.1},
                warmup=200,
                clip=1.0,
                ema=0.998,
                by_picture=True,
            ),
        },
        no_decay=("relative_position_bias_table", "query_feat.weight", "query_embed.weight"),
    ),
)
