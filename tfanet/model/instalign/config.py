"""What defines an InstAlign: sizes, what the paper leaves open, two presets. Plain data.

No official code of InstAlign is published: this is a reconstruction. Docstrings and docs mark where
a statement comes from: [paper] (arXiv 2411.15087), [Mask2Former], [ReLA] and [VATEX] (the published
code of its ancestors), [ours] (decided here).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tfanet.errors import InputError, shown
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_WIDTH,
    check_kinds,
    check_text,
    check_text_length,
    whole,
)
from tfanet.model.layers.swin_config import SwinConfig
from tfanet.runtime.bundle.contract import MAX_INSTANCES

__all__ = ["PRESETS", "InstAlignConfig", "TextConfig"]

# What the paper leaves open, what is built here first, and what else its code may turn out to do.
OPEN_POINTS = {
    "words_enter": ("decoder", "backbone", "pixel-decoder"),
    "query_start": ("learned", "sentence"),
    "class_embed": ("one-row", "two-rows"),
    "mask_slope": ("shared", "per-query"),
    "resize": ("after-sum", "before-sum"),
    "no_target": ("global-and-mean-word", "global-and-start-token"),
    "text_attention": ("beside-masked", "before-masked", "after-masked"),
}


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the BERT encoder; the defaults are those of BERT-base, uncased [paper, ReLA]."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2

    def __post_init__(self) -> None:
        check_text(self)
        whole("text.types", self.types, 1, MAX_WIDTH)
        whole("text.layers", self.layers, 0, MAX_DEPTH)


@dataclass(frozen=True)
class InstAlignConfig(SwinConfig):
    """Everything that determines InstAlign's parameters and their shapes.

    Attributes, besides those of `SwinConfig`:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export; multiples of 32 [paper].
        text, text_length: the language encoder, and L, the tokens per sentence [ReLA].
        queries, decoder_layers: N and K [paper].
        decoder_dim, decoder_heads, decoder_inner: of the masked decoder: its width C, which the
            pixel decoder shares, its attention heads, and the width inside its MLPs [Mask2Former].
        pixel_layers, pixel_inner, points, groups: of the pixel decoder: its layers, the width
            inside their MLPs, the points that a head reads of each map, and the groups of its norms
            [Mask2Former].
        loss_points: points that the losses of instance masks look at; 0: every pixel of the mask's
            map [Mask2Former].
        words_enter: where words meet the picture: in the "decoder" [ours].
        query_start: Q_0 is "learned" [Mask2Former].
        class_embed: the relevance is the sigmoid of "one-row" [ours]; a file with two rows is read
            as their difference, which is the same number.
        mask_slope: one slope of PReLU is "shared" by all queries [ours].
        resize: the merged mask is resized, "after-sum" [ours].
        no_target: that head sees "global-and-mean-word": the queries' weighted sum and the mean of
            the real words [paper].
        text_attention: queries attend to words "beside-masked" attention, the results added
            [VATEX].
    """

    name: str = "instalign-base"
    image_size: tuple[int, int] = (480, 480)
    text: TextConfig = field(default_factory=TextConfig)
    text_length: int = 20
    queries: int = 100
    decoder_layers: int = 9
    decoder_dim: int = 256
    decoder_heads: int = 8
    decoder_inner: int = 2048
    pixel_layers: int = 6
    pixel_inner: int = 1024
    points: int = 4
    groups: int = 32
    loss_points: int = 12544
    words_enter: str = "decoder"
    query_start: str = "learned"
    class_embed: str = "one-row"
    mask_slope: str = "shared"
    resize: str = "after-sum"
    no_target: str = "global-and-mean-word"
    text_attention: str = "beside-masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("decoder_dim", "decoder_heads", "decoder_inner", "pixel_inner", "points", "groups")
        for name in ("text_length", *sizes):
            whole(name, getattr(self, name), 1, MAX_WIDTH)
        whole("queries", self.queries, 1, MAX_INSTANCES)
        whole("loss_points", self.loss_points, 0, MAX_ENTRIES)
        for name in ("decoder_layers", "pixel_layers"):
            whole(name, getattr(self, name), 0, MAX_DEPTH)
        check_kinds(self, name=str, text=TextConfig)
        # Half of a position is for the row, half of that for sines.
        divisors = {"decoder_heads ": self.decoder_heads, "groups ": self.groups, "": 4}
        for name, divisor in divisors.items():
            if self.decoder_dim % divisor:
                raise InputError(
                    f"decoder_dim {self.decoder_dim} is not a multiple of {name}{divisor}"
                )
        check_text_length(self.text_length, self.text.positions)
        self._check_open_points()

    def _check_open_points(self) -> None:
        for name, (built, *others) in OPEN_POINTS.items():
            value = getattr(self, name)
            if value == built:
                continue
            if value in others:
                raise InputError(
                    f"{name} {shown(value)} is not built: InstAlign's code is not published, and "
                    f"this reconstruction knows {built!r} only"
                )
            raise InputError(f"{name} is {shown(value)}: choose {built!r}")


PRESETS = {
    "instalign-base": InstAlignConfig(),
    "instalign-tiny": InstAlignConfig(
        name="instalign-tiny",
        image_size=(128, 128),
        width=18,
        depths=(2, 2, 2, 1),
        heads=(9, 9, 9, 9),
        window=5,
        text=TextConfig(width=48, layers=2, heads=4, intermediate=192, positions=64),
        queries=16,
        decoder_layers=3,
        decoder_dim=64,
        decoder_heads=4,
        decoder_inner=128,
        pixel_layers=2,
        pixel_inner=128,
        groups=8,
        loss_points=0,
        drop_path=0.0,
    ),
}
