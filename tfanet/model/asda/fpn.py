"""ASDA's convolutions: the sentence on the map, the pyramid over three layers, and the masks.

V is the vision tower's width, T the text tower's, D that of all that follows, (h, w) the map of
patches. Where the paper reduces low and middle features, the official code enlarges them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CBR", "FPN", "Fusion", "MaskDecoder"]

SLOPE = 0.1
POOL = 4


class CBR(nn.Module):
    """LeakyReLU(BatchNorm(convolution)), of the same size."""

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) to (B, outer, H, W)."""
        return F.leaky_relu(self.bn(self.conv(x)), SLOPE)


class Fusion(nn.Module):
    """The high map times the sentence, channel by channel."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.mapping_visu = CBR(vision_width, vision_width, 1)
        self.lang_proj = nn.Sequential(
            nn.Linear(text_width, vision_width), nn.BatchNorm1d(vision_width), nn.LeakyReLU(SLOPE)
        )
        self.fusion = nn.Sequential(nn.BatchNorm2d(vision_width), nn.LeakyReLU(SLOPE))

    def forward(self, high: Tensor, sentence: Tensor) -> Tensor:
        """(B, V, h, w) and (B, T) to (B, V, h, w)."""
        words = self.lang_proj(sentence).unflatten(1, (-1, 1, 1))  # (B, V, 1, 1)
        return self.fusion(self.mapping_visu(high) * words)


class FPN(nn.Module):
    """Three maps, enlarged by 1, 2 and 4, added from the smallest up, and pooled again.

    By the official names; of the output convolutions only the last is used there too.
    """

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        v, d = vision_width, width
        self.stages = nn.ModuleList(
            [
                nn.Sequential(CBR(v, d, 1), CBR(d, d, 3)),
                nn.Sequential(_twice(v, v // 2), CBR(v // 2, d, 1), CBR(d, d, 3)),
                nn.Sequential(
                    _twice(v, v // 2),
                    nn.BatchNorm2d(v // 2),
                    nn.GELU(),
                    _twice(v // 2, v // 4),
                    CBR(v // 4, d, 1),
                    CBR(d, d, 3),
                ),
            ]
        )
        self.lateral_convs = nn.ModuleList(CBR(d, d, 1) for _ in range(3))
        self.output_convs = nn.ModuleDict({"2": CBR(d, d, 3)})

    def forward(self, high: Tensor, mid: Tensor, low: Tensor) -> Tensor:
        """Three maps (B, V, h, w) to (B, D, h, w)."""
        maps = [
            lateral(stage(x))
            for x, stage, lateral in zip(
                (high, mid, low), self.stages, self.lateral_convs, strict=True
            )
        ]
        x = maps[0]
        for larger in maps[1:]:
            x = larger + F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.output_convs["2"](x)  # (B, D, 4h, 4w)
        return F.max_pool2d(x, POOL, POOL)


class MaskDecoder(nn.Module):
    """The encoded map, enlarged eight times, to n masks."""

    def __init__(self, width: int, masks: int) -> None:
        super().__init__()
        half = width // 2
        self.proj1 = CBR(width, half, 3)
        self.proj2 = CBR(half, half, 3)
        self.proj3 = CBR(half, half, 3)
        self.proj4 = CBR(half, half, 3)
        self.proj5 = CBR(half, half, 3)
        self.proj = nn.Conv2d(half, masks, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, n, 8h, 8w), before ReLU."""
        x = self.proj2(self.proj1(x))
        for enlarged in (self.proj3, self.proj4, self.proj5):
            x = enlarged(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.proj(x)


def _twice(inner: int, outer: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inner, outer, kernel_size=2, stride=2)
