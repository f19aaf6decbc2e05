"""A vision stage of CrossVLT: Swin's blocks, then pixels attend to words before and after merging.

Names are the official ones: what a stage holds lies in its `layers`, and its norm is called
`norm0` in the first stage, `norm3` in the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from tfanet.model.crossvlt.config import CrossVLTConfig
from tfanet.model.crossvlt.fusion import Fusion, Gate
from tfanet.model.layers.swin import PatchEmbed, PatchMerging, swin_blocks

__all__ = ["StageOutput", "VisionStage"]


class StageOutput(NamedTuple):
    """What a stage gives.

    Attributes:
        pixels: (B, H W, C) after Swin's blocks, which have not heard this stage's words.
        map: (B, C, H, W) of what the words say of each pixel, for the decoder.
        following: (B, H/2 W/2, 2C), the next stage's input; None after the last.
    """

    pixels: Tensor
    map: Tensor
    following: Tensor | None


class Layers(nn.Module):
    """The parts of a stage; `proj` is the alignment loss's, the last stage's gate unused."""

    def __init__(self, config: CrossVLTConfig, index: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        dim, width = config.dims[index], config.text.width
        self.blocks = swin_blocks(dim, config.heads[index], config.window, drop_paths)
        inner = max(dim, 2 * config.width)
        self.attn1 = Fusion(dim, inner, width, config.fusion_heads(inner))
        self.linear1 = Gate(dim)
        self.proj = nn.Linear(dim, config.align_dim)
        self.last = index == len(config.dims) - 1
        if not self.last:
            self.downsample = PatchMerging(dim)
            self.attn2 = Fusion(2 * dim, 2 * dim, width, config.fusion_heads(2 * dim))
            self.linear2 = Gate(2 * dim)

    def look(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The blocks: pixels x (B, H W, C) of a map of `size` (H, W) to the same."""
        for block in self.blocks:
            x = block(x, size)
        return x


class VisionStage(nn.Module):
    """Stage `index` of four."""

    def __init__(self, config: CrossVLTConfig, index: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        if index == 0:
            self.patch_embed = PatchEmbed(config.width)
        self.layers = Layers(config, index, drop_paths)
        self.norm = f"norm{index}"
        self.add_module(self.norm, nn.LayerNorm(config.dims[index]))

    def forward(self, x: Tensor, size: tuple[int, int], words: Tensor, mask: Tensor) -> StageOutput:
        """Pixels x (B, H W, C) of a map of `size` (H, W), words (B, L, T) and their `key_mask`."""
        layers = self.layers
        x = layers.look(x, size)
        heard = layers.attn1(x, words, mask)  # r
        out = getattr(self, self.norm)(heard).transpose(1, 2).unflatten(2, size)
        if layers.last:
            return StageOutput(x, out, None)
        following = layers.downsample(x + layers.linear1(heard) * heard, size)
        heard = layers.attn2(following, words, mask)
        return StageOutput(x, out, following + layers.linear2(heard) * heard)
