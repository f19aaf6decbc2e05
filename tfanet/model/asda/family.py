"""ASDA as a family: what export, training and the runtimes need to know of it."""

from __future__ import annotations

from tfanet.model.asda.config import PRESETS, ASDAConfig
from tfanet.model.asda.loss import loss
from tfanet.model.asda.network import ASDA
from tfanet.model.asda.official import from_official, official_config
from tfanet.model.asda.published import PUBLISHED
from tfanet.model.family import Choice, Family
from tfanet.model.training import Recipe, Training

__all__ = ["FAMILY"]


def _choices(config: ASDAConfig) -> tuple[Choice, ...]:
    """The layers of the vision tower that the sentence selects."""

    def blocks(numbers: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(f"block {number}" for number in numbers)

    return (
        Choice("low", blocks(config.low), "feature_selector_l"),
        Choice("mid", blocks(config.mid), "feature_selector_m"),
    )


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
    choices=_choices,
    published=PUBLISHED,
    training=Training(
        loss=loss,
        maps=lambda network, image: network.maps(image),
        recipes={
            # The official one: Adam, a tenth of the rate for the towers. It divides the rate by ten
            # late in the training, here it falls as a cosine.
            "asda-base": Recipe(
                epochs=30.0,
                batch=28,
                lr=5e-5,
                rates={"visumodel.": 0.1, "textmodel": 0.1, "positional_embedding": 0.1},
                weight_decay=0.0,
                schedule="constant-cosine",
            ),
            "asda-tiny": Recipe(
                epochs=2.2,
                batch=12,
                lr=1e-3,
                rates={"visumodel.": 0.1, "positional_embedding": 0.1, "projout.": 0.03},
                warmup=200,
                clip=1.0,
                ema=0.998,
                by_picture=True,
            ),
        },
    ),
)
