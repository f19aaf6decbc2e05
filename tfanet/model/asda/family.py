"""ASDA as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from tfanet.model.asda.config import PRESETS, ASDAConfig
from tfanet.model.asda.network import ASDA
from tfanet.model.asda.official import from_official, official_config
from tfanet.model.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    name="asda",
    title="ASDA",
    config=ASDAConfig,
    presets=PRESETS,
    network=ASDA,
    text_outputs=("word_features", "sentence_feature"),
    image_inputs=("image", "word_features", "sentence_feature"),
    image_outputs={"mask_logit": "mask"},
    mean=(0.48145466, 0.4578275, 0.40821073),  # CLIP's
    std=(0.26862954, 0.26130258, 0.27577711),
    image_size_stride=0,
    resize="letterbox-area",
    padding=(124, 116, 104),
    value="probability",
    threshold=0.35,
    from_official=from_official,
    official_config=official_config,
    marks=("vis_select.weight", "textmodel_token_embedding.weight", "projout.weight"),
    # Few numbers decide which layer is selected, and statistics have a wide range.
    full_precision=(
        "vis_select.weight",
        "feature_selector_l.weight",
        "feature_selector_m.weight",
        "running_mean",
        "running_var",
    ),
    parts=(
        "visumodel.transformer.resblocks.?",
        "visumodel.transformer.resblocks.??",
        "fusion",
        "fpn",
        "encoder",
        "mask_decoder",
        "lang_tf_enc",
        "proj?",
    ),
)
