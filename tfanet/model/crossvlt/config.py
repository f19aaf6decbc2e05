"""What defines a CrossVLT: sizes and the two presets. Plain data, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfanet.errors import InputError
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_WIDTH,
    check_kinds,
    check_text,
    check_text_length,
    tuples,
    whole,
)
from tfanet.model.layers.swin_config import SwinConfig

__all__ = ["PRESETS", "CrossVLTConfig", "TextConfig"]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the language encoder; the defaults are those of BERT-base, uncased.

    `layers` are the layers of self-attention in each of the four stages. From the second stage on,
    one of cross-attention to the picture comes before them.
    """

    width: int = 768
    layers: tuple[int, int, int, int] = (6, 1, 1, 1)
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2

    def __post_init__(self) -> None:
        check_text(self)
        whole("text.types", self.types, 1, MAX_WIDTH)
        tuples(self, ("layers", 4, 0, MAX_DEPTH))


@dataclass(frozen=True)
class CrossVLTConfig(SwinConfig):
    """Everything that determines CrossVLT's parameters and their shapes.

    Attributes, besides those of `SwinConfig`:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export; multiples of 32.
        text, text_length: the language encoder, and L, the tokens per sentence.
        head_width: of the fusion's attention heads, where its width is a multiple of it.
        decoder_dim: the decoder's width.
        align_dim: the width in which the alignment loss compares pixels and the sentence.
    """

    name: str = "crossvlt-base"
    image_size: tuple[int, int] = (480, 480)
    text: TextConfig = field(default_factory=TextConfig)
    text_length: int = 21
    head_width: int = 64
    decoder_dim: int = 512
    align_dim: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_length", "head_width", "decoder_dim", "align_dim"):
            whole(name, getattr(self, name), 1, MAX_WIDTH)
        check_kinds(self, name=str, text=TextConfig)
        for dim in {2 * self.width, *self.dims[1:]}:
            if dim % self.fusion_heads(dim):
                raise InputError(
                    f"head_width {self.head_width} splits {dim} channels into "
                    f"{self.fusion_heads(dim)} unequal heads"
                )
        check_text_length(self.text_length, self.text.positions)

    def fusion_heads(self, dim: int) -> int:
        """Attention heads of a fusion that is `dim` wide inside."""
        return max(1, dim // self.head_width)


PRESETS = {
    "crossvlt-base": CrossVLTConfig(),
    # The vocabulary is BERT's: most of the weights are its, and the widths keep the file small.
    "crossvlt-tiny": CrossVLTConfig(
        name="crossvlt-tiny",
        image_size=(128, 128),
        width=18,
        depths=(2, 2, 2, 1),
        heads=(9, 9, 9, 9),
        window=5,
        text=TextConfig(width=48, layers=(1, 1, 1, 1), heads=4, intermediate=192, positions=32),
        decoder_dim=48,
        align_dim=32,
        drop_path=0.0,
    ),
}
