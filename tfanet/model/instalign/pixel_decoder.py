"""Pixel decoder: Swin's maps to three that words and queries look at, and one for masks.

All of it [Mask2Former] (Cheng et al., 2022), `MSDeformAttnPixelDecoder`, by its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.instalign.attention import sine_positions
from tfanet.model.instalign.config import InstAlignConfig
from tfanet.model.layers.deformable import DeformableAttention, pixel_centres

__all__ = ["MAPS", "DecodedPixels", "PixelDecoder"]

MAPS = 3  # res5, res4, res3, in this order


class DecodedPixels(NamedTuple):
    """What the pixel decoder gives.

    Attributes:
        features: (B, C, H/4, W/4), of which a query's product with each pixel is its mask.
        maps: three of (B, C, h, w), at strides 32, 16 and 8.
    """

    features: Tensor
    maps: tuple[Tensor, ...]


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its GroupNorm, which is its child `norm`."""

    def __init__(self, channels: int, dim: int, side: int, groups: int) -> None:
        super().__init__(channels, dim, side, padding=side // 2, bias=False)
        self.norm = nn.GroupNorm(groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class EncoderLayer(nn.Module):
    """x = LN(x + deformable attention of x + position to x); x = LN(x + MLP(x))."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.self_attn = DeformableAttention(dim, config.decoder_heads, MAPS, config.points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.pixel_inner)
        self.linear2 = nn.Linear(config.pixel_inner, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        sizes: Sequence[tuple[int, int]],
        centres: tuple[Tensor, Tensor],
    ) -> Tensor:
        """x (B, S, C), position (S, C) to (B, S, C); the rest as for `DeformableAttention`."""
        x = self.norm1(x + self.self_attn(x + position, x, sizes, centres))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.pixel_layers))


class Transformer(nn.Module):
    """Deformable self-attention over all pixels of three maps; S is their number."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        self.heads, self.points = config.decoder_heads, config.points
        self.level_embed = nn.Parameter(torch.randn(MAPS, config.decoder_dim))
        self.encoder = Encoder(config)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) to such of the same sizes."""
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        dim, device = maps[0].shape[1], maps[0].device
        position = torch.cat(
            [
                sine_positions(size, dim).to(device) + level
                for size, level in zip(sizes, self.level_embed, strict=True)
            ]
        )  # (S, C)
        x, y = pixel_centres(sizes, self.heads, self.points)
        centres = (x.to(device), y.to(device))
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, S, C)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, sizes, centres)
        parts = tokens.split([height * width for height, width in sizes], 1)
        return tuple(
            part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)
        )


class PixelDecoder(nn.Module):
    """Deformable attention over the maps at strides 32, 16 and 8; one step of a pyramid to 4."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        dim, groups = config.decoder_dim, config.groups
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1), nn.GroupNorm(groups, dim))
            for channels in reversed(config.dims[1:])
        )
        self.transformer = Transformer(config)
        self.adapter_1 = ConvNorm(config.dims[0], dim, 1, groups)
        self.layer_1 = ConvNorm(dim, dim, 3, groups)
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, stages: Sequence[Tensor]) -> DecodedPixels:
        """Swin's maps (B, C_i, H / 2^(i+2), W / 2^(i+2)), finest first."""
        coarse_first = list(reversed(stages[1:]))
        maps = self.transformer(
            [project(m) for project, m in zip(self.input_proj, coarse_first, strict=True)]
        )
        fine = self.adapter_1(stages[0])
        size = (fine.shape[2], fine.shape[3])
        fine = fine + F.interpolate(maps[-1], size, mode="bilinear", align_corners=False)
        return DecodedPixels(self.mask_features(F.relu(self.layer_1(fine))), maps)
