"""What defines a TFANet: sizes, switches and the two presets. Plain data, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tfanet.errors import InputError, shown
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_WIDTH,
    Config,
    check_image_size,
    check_kinds,
    check_text,
    check_text_length,
    number,
    tuples,
    whole,
)

__all__ = ["PRESETS", "TFANetConfig", "TextConfig"]

ALIGNMENTS = ("mlam", "attention", "gate")
MAX_GRID = 256


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the CLIP text tower; the defaults are ViT-L/14's.

    `pretrained` is a local directory or a hub name that holds a `CLIPTextModel` of these sizes, to
    start a training from; None builds the tower from the sizes, with random weights. Where weights
    come from a checkpoint it is not looked at.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 49408
    positions: int = 77
    pretrained: str | None = None

    def __post_init__(self) -> None:
        check_text(self)
        whole("text.layers", self.layers, 0, MAX_DEPTH)
        if self.pretrained is not None and not isinstance(self.pretrained, str):
            raise InputError(f"text.pretrained is {shown(self.pretrained)}: give a name or None")


@dataclass(frozen=True)
class TFANetConfig(Config):
    """Everything that determines TFANet's parameters and their shapes.

    Attributes:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export; multiples of 32.
        dims, depths, ssm_ratio: the VMamba backbone's channels C_i, blocks and inner ratio E / C.
        text, text_length: the text tower, and L, the tokens per sentence it is used with.
        align_dim: d, the width in which words and pixels are compared.
        decoder_dim: D, the decoder's width.
        grid: g, the side to which CSSM pools a map; the paper's S / 32.
        refine: residual pairs of the decoder at strides 16, 8 and 4.
        alignment: "mlam", "attention" (plain softmax cross-attention in its place) or "gate" (the
            baseline of Table 4: pixels times the mean word).
        cfsm, wfdm: the other two modules on or off (rows of the paper's Tables 3 and 4).
        drop_path: largest drop rate of a residual branch of the backbone, in training.
    """

    name: str = "tfanet-base"
    image_size: tuple[int, int] = (480, 480)
    dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    depths: tuple[int, int, int, int] = (2, 2, 15, 2)
    ssm_ratio: float = 2.0
    text: TextConfig = field(default_factory=TextConfig)
    text_length: int = 17
    align_dim: int = 128
    decoder_dim: int = 256
    grid: int = 15
    refine: tuple[int, int, int] = (1, 1, 3)
    alignment: str = "mlam"
    cfsm: bool = True
    wfdm: bool = True
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        tuples(
            self,
            ("image_size", 2, 32, MAX_WIDTH),
            ("dims", 4, 2, MAX_WIDTH),
            ("depths", 4, 0, MAX_DEPTH),
            ("refine", 3, 0, MAX_DEPTH),
        )
        check_image_size(self.image_size)
        for name in ("text_length", "align_dim", "decoder_dim"):
            whole(name, getattr(self, name), 1, MAX_WIDTH)
        whole("grid", self.grid, 1, MAX_GRID)
        number("ssm_ratio", self.ssm_ratio, 0.01, 64)
        if self.ssm_ratio * min(self.dims) < 1:
            raise InputError(
                f"ssm_ratio {self.ssm_ratio} leaves no inner channel with dims {self.dims}"
            )
        number("drop_path", self.drop_path, 0, 0.999)
        check_kinds(self, name=str, cfsm=bool, wfdm=bool, text=TextConfig)
        check_text_length(self.text_length, self.text.positions)
        if self.alignment not in ALIGNMENTS:
            raise InputError(f"alignment is {shown(self.alignment)}: choose one of {ALIGNMENTS}")

    def by_sizes(self) -> TFANetConfig:
        """With a text tower that is built, not opened."""
        return replace(self, text=replace(self.text, pretrained=None))


PRESETS = {
    "tfanet-base": TFANetConfig(),
    "tfanet-tiny": TFANetConfig(
        name="tfanet-tiny",
        image_size=(128, 128),
        dims=(24, 48, 96, 192),
        depths=(1, 1, 2, 1),
        ssm_ratio=1.0,
        text=TextConfig(width=48, layers=2, heads=4, intermediate=192),
        text_length=20,
        align_dim=32,
        decoder_dim=48,
        grid=4,
        refine=(0, 0, 1),
        drop_path=0.0,
    ),
}
