"""What defines an ASDA: sizes and which layers may be selected. Plain data, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from tfanet.errors import InputError, shown
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_WIDTH,
    Config,
    check_image_size,
    check_kinds,
    tuples,
    whole,
)

__all__ = ["PRESETS", "ASDAConfig"]

MAX_POSITIONS = 77  # of CLIP's text tower
MAX_GRID = 256


@dataclass(frozen=True)
class ASDAConfig(Config):
    """Everything that determines ASDA's parameters and their shapes.

    Attributes:
        name: the preset it started from.
        image_size: (H, W) in pixels; the weights fit this size alone.
        text_length: L, the tokens per sentence.
        patch: side of a patch in pixels; H and W are multiples of it. A map is (H, W) / patch.
        layers: blocks of each tower; text block i goes with vision block i.
        vision_width, vision_heads: V and its heads, of the vision tower.
        text_width, text_heads, vocabulary: T, its heads and the entries, of the text tower.
        mlp_ratio: inner width of both towers' blocks, in widths.
        low, mid: blocks, counted from 0, of which one each is selected by the sentence; the last
            block is always used besides.
        width, heads: D and its heads, of all that follows the towers.
        encoder_layers: of the encoder over the fused map.
        masks: n, the masks that are added up, weighted by as many coefficients.
    """

    name: str = "asda-base"
    image_size: tuple[int, int] = (416, 416)
    text_length: int = 17
    patch: int = 16
    layers: int = 12
    vision_width: int = 768
    vision_heads: int = 12
    text_width: int = 512
    text_heads: int = 8
    vocabulary: int = 49408
    mlp_ratio: int = 4
    low: tuple[int, ...] = (3, 4, 5)
    mid: tuple[int, ...] = (6, 7, 8)
    width: int = 512
    heads: int = 8
    encoder_layers: int = 2
    masks: int = 32

    def __post_init__(self) -> None:
        tuples(self, ("image_size", 2, 1, MAX_WIDTH))
        whole("patch", self.patch, 1, MAX_WIDTH)
        check_image_size(self.image_size, self.patch)
        for side in self.grid:
            whole("a side of the map, image_size / patch,", side, 1, MAX_GRID)
        for name in ("vision_width", "text_width", "width", "mlp_ratio", "masks"):
            whole(name, getattr(self, name), 1, MAX_WIDTH)
        whole("vocabulary", self.vocabulary, 1, MAX_ENTRIES)
        whole("layers", self.layers, 1, MAX_DEPTH)
        whole("encoder_layers", self.encoder_layers, 0, MAX_DEPTH)
        whole("text_length", self.text_length, 3, MAX_POSITIONS)
        for part in ("vision_", "text_", ""):
            width, heads = getattr(self, f"{part}width"), getattr(self, f"{part}heads")
            whole(f"{part}heads", heads, 1, MAX_WIDTH)
            if width % heads or width % 4:
                raise InputError(
                    f"{part}width is {width}: give a multiple of 4 and of {part}heads, {heads}"
                )
        for name in ("low", "mid"):
            group = getattr(self, name)
            if not isinstance(group, tuple) or not group:
                raise InputError(f"{name} is {shown(group)}: name one block or more")
            for block in group:
                whole(f"one of {name}", block, 0, self.layers - 1)
        check_kinds(self, name=str)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of a map of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch


PRESETS = {
    "asda-base": ASDAConfig(),
    "asda-tiny": ASDAConfig(
        name="asda-tiny",
        image_size=(120, 120),
        text_length=20,
        patch=10,
        layers=5,
        vision_width=64,
        vision_heads=4,
        text_width=48,
        text_heads=4,
        mlp_ratio=2,
        low=(0, 1),
        mid=(2, 3),
        width=48,
        heads=4,
        encoder_layers=2,
        masks=8,
    ),
}
