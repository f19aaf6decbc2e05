"""The sizes of Swin, for the configurations of all families that see through it."""

from __future__ import annotations

from dataclasses import dataclass

from tfanet.errors import InputError
from tfanet.model.config import (
    MAX_DEPTH,
    MAX_WIDTH,
    Config,
    check_image_size,
    number,
    tuples,
    whole,
)

__all__ = ["SwinConfig"]

MAX_WINDOW = 64


@dataclass(frozen=True)
class SwinConfig(Config):
    """Base of such a configuration; the defaults are Swin-B's.

    Attributes:
        width: C_0, Swin's channels after the patch embedding; they double from stage to stage.
        depths, heads: Swin's blocks and attention heads per stage. window: side of its windows.
        drop_path: largest drop rate of a residual branch of Swin, in training.
    """

    width: int = 128
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    window: int = 12
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        tuples(
            self,
            ("image_size", 2, 32, MAX_WIDTH),
            ("depths", 4, 0, MAX_DEPTH),
            ("heads", 4, 1, MAX_WIDTH),
        )
        check_image_size(self.image_size)
        whole("width", self.width, 1, MAX_WIDTH)
        whole("window", self.window, 1, MAX_WINDOW)
        number("drop_path", self.drop_path, 0, 0.999)
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise InputError(f"a stage of {dim} channels can't be split into {heads} heads")

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """C_0 to C_3, the channels of Swin's stages."""
        c = self.width
        return c, 2 * c, 4 * c, 8 * c
