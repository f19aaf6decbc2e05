"""KIS, the third stage of fusion: WFDM turns words into kernels and decodes the mask (eqs. 23-26).

The decoder goes from the coarsest stage to the finest: level j = 1..4 is backbone stage 4..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.wide import wide

__all__ = ["Decoder", "WordKernel"]

MIXED_WORDS = 9  # N of eq. 23, viewed as 3 x 3


class WordKernel(nn.Module):
    """Dynamic kernel K_j of eq. 23: F_LV (B, C, L) to an image-shaped map (B, D, H, W).

    Args:
        dim: C. decoder_dim: D. length: L.
    """

    def __init__(self, dim: int, decoder_dim: int, length: int) -> None:
        super().__init__()
        self.delta = nn.Conv1d(dim, decoder_dim, 1)
        self.mixing = nn.Parameter(torch.ones(length, MIXED_WORDS))
        # K starts near 1, the identity: near 0 it would starve the encoder of gradient.
        nn.init.trunc_normal_(self.delta.weight, std=0.02)
        nn.init.ones_(self.delta.bias)  # type: ignore[arg-type]

    def forward(self, f_lv: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
        words = wide(self.delta(f_lv) * mask)  # (B, D, L)
        count = wide(mask).sum(2, keepdim=True).clamp_min(1)
        kernel = ((words @ wide(self.mixing)) / count).to(f_lv.dtype)  # (B, D, 9)
        kernel = kernel.unflatten(2, (3, 3))
        return F.interpolate(kernel, size, mode="bilinear", align_corners=False)


class ResidualPair(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x))))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Decoder(nn.Module):
    """Stage features F_F,i and words F_LV,i to the mask logit at stride 4.

    Args:
        dims: C_1..C_4. decoder_dim: D. length: L. refine: residual pairs at strides 16, 8, 4.
        wfdm: off leaves lateral convolutions and weighted sums, without kernels and pairs.
    """

    def __init__(
        self,
        dims: Sequence[int],
        decoder_dim: int,
        length: int,
        refine: Sequence[int],
        wfdm: bool = True,
    ) -> None:
        super().__init__()
        coarse_first = list(reversed(dims))
        self.lateral = nn.ModuleList(nn.Conv2d(dim, decoder_dim, 1) for dim in coarse_first)
        self.kernels = nn.ModuleList(
            WordKernel(dim, decoder_dim, length) for dim in coarse_first if wfdm
        )
        self.alpha = nn.Parameter(torch.zeros(len(dims) - 1))
        self.refine = nn.ModuleList(
            nn.Sequential(*(ResidualPair(decoder_dim) for _ in range(pairs if wfdm else 0)))
            for pairs in refine
        )
        self.classify = nn.Conv2d(decoder_dim, 2, 1)
        for layer in (*self.lateral, self.classify):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, features: Sequence[Tensor], words: Sequence[Tensor], mask: Tensor) -> Tensor:
        """F_F,1..4, F_LV,1..4 (finest first), m (B, 1, L) to z = logit_1 - logit_0 (B, 1, h, w)."""
        merged: Tensor | None = None
        for level, (feature, word) in enumerate(
            zip(reversed(features), reversed(words), strict=True)
        ):
            x = self.lateral[level](feature)
            size = (x.shape[2], x.shape[3])
            if len(self.kernels):
                x = self.kernels[level](word, mask, size) * x  # eqs. 23, 24
            if merged is None:
                merged = x  # eq. 25
                continue
            alpha = torch.sigmoid(self.alpha[level - 1])
            up = F.interpolate(merged, size, mode="bilinear", align_corners=False)
            merged = self.refine[level - 1](alpha * up + (1 - alpha) * x)  # eq. 26
        assert merged is not None
        # The mask is where class 1 beats class 0, so only the difference of the rows is needed.
        weight, bias = self.classify.weight, self.classify.bias
        assert bias is not None
        return F.conv2d(merged, weight[1:] - weight[:1], bias[1:] - bias[:1])
