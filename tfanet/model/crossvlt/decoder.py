"""CrossVLT's decoder: from the coarsest map to the finest, each joined to what is there already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder"]

LEVELS = (4, 3, 2)  # as the official names count them


class Decoder(nn.Module):
    """For each level: resize, join, twice ReLU(BN(3x3 convolution)); then two logits.

    Args:
        dims: C_0 to C_3 of the maps. width: of the convolutions.
    """

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        coarse = dims[-1]
        for level, dim in zip(LEVELS, reversed(dims[:-1]), strict=True):
            for place, channels in ((1, coarse + dim), (2, width)):
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                self.add_module(f"conv{place}_{level}", conv)
                self.add_module(f"bn{place}_{level}", nn.BatchNorm2d(width))
            coarse = width
        self.conv1_1 = nn.Conv2d(width, 2, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H / 2^(i+2), W / 2^(i+2)) to two logits (B, 2, H/4, W/4)."""
        x = maps[-1]
        for level, finer in zip(LEVELS, reversed(maps[:-1]), strict=True):
            x = F.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=True)
            x = torch.cat([x, finer], dim=1)
            for place in (1, 2):
                conv = self.get_submodule(f"conv{place}_{level}")
                norm = self.get_submodule(f"bn{place}_{level}")
                x = F.relu(norm(conv(x)))
        return self.conv1_1(x)
