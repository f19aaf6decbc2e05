"""What defines a CrossVLT: sizes and the two presets. Plain data, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from tfanet.errors import InputError
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_WIDTH,
    Config,
    check_image_size,
    check_kinds,
    number,
    tuples,
    whole,
)

__all__ = ["PRESETS", "CrossVLTConfig", "TextConfig"]

MAX_WINDOW = 64


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
        for name in ("width", "heads", "intermediate", "positions", "types"):
            whole(f"text.{name}", getattr(self, name), 1, MAX_WIDTH)
        whole("text.vocabulary", self.vocabulary, 1, MAX_ENTRIES)
        tuples(self, ("layers", 4, 0, MAX_DEPTH))
        if self.width % self.heads:
            raise InputError(
                f"text.width {self.width} is not a multiple of text.heads {self.heads}"
            )


@dataclass(frozen=True)
class CrossVLTConfig(Config):
    """Everything that determines CrossVLT's parameters and their shapes.

    Attributes:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export; multiples of 32.
        width: C_0, Swin's channels after the patch embedding; they double from stage to stage.
        depths, heads: Swin's blocks and attention heads per stage. window: side of its windows.
        text, text_length: the language encoder, and L, the tokens per sentence.
        head_width: of the fusion's attention heads, where its width is a multiple of it.
        decoder_dim: the decoder's width.
        align_dim: the width in which the alignment loss compares pixels and the sentence.
        drop_path: largest drop rate of a residual branch of Swin, in training.
    """

    name: str = "crossvlt-base"
    image_size: tuple[int, int] = (480, 480)
    width: int = 128
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    window: int = 12
    text: TextConfig = field(default_factory=TextConfig)
    text_length: int = 21
    head_width: int = 64
    decoder_dim: int = 512
    align_dim: int = 256
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        tuples(
            self,
            ("image_size", 2, 32, MAX_WIDTH),
            ("depths", 4, 0, MAX_DEPTH),
            ("heads", 4, 1, MAX_WIDTH),
        )
        check_image_size(self.image_size)
        for name in ("width", "text_length", "head_width", "decoder_dim", "align_dim"):
            whole(name, getattr(self, name), 1, MAX_WIDTH)
        whole("window", self.window, 1, MAX_WINDOW)
        number("drop_path", self.drop_path, 0, 0.999)
        check_kinds(self, name=str, text=TextConfig)
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise InputError(f"a stage of {dim} channels can't be split into {heads} heads")
        for dim in {2 * self.width, *self.dims[1:]}:
            if dim % self.fusion_heads(dim):
                raise InputError(
                    f"head_width {self.head_width} splits {dim} channels into "
                    f"{self.fusion_heads(dim)} unequal heads"
                )
        if not 3 <= self.text_length <= self.text.positions:
            raise InputError(
                f"text_length is {self.text_length}: give 3 to {self.text.positions} tokens"
            )

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """C_0 to C_3, the channels of Swin's stages."""
        c = self.width
        return c, 2 * c, 4 * c, 8 * c

    def fusion_heads(self, dim: int) -> int:
        """Attention heads of a fusion that is `dim` wide inside."""
        return max(1, dim // self.head_width)


PRESETS = {
    "crossvlt-base": CrossVLTConfig(),
    # The vocabulary is BERT's: most of the weights are its, and the widths keep the file small.
    "crossvlt-tiny": CrossVLTConfig(
        name="crossvlt-tiny",
        image_size=(128, 128),
        width=20,
        depths=(2, 2, 2, 1),
        heads=(1, 2, 4, 8),
        window=4,
        text=TextConfig(width=48, layers=(1, 1, 1, 1), heads=4, intermediate=192, positions=32),
        decoder_dim=48,
        align_dim=32,
        drop_path=0.0,
    ),
}
