"""Pixels that attend to words: the multi-head cross-attention of CrossVLT's vision stages.

A map is kept as tokens (B, N, V), N pixels of V channels; words are (B, L, T); D is the inner
width, h the heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.wide import wide

__all__ = ["Fusion", "Gate", "Pointwise"]

EPS = 1e-5


class Pointwise(nn.Conv1d):
    """A convolution of size 1 with its weight (D, V, 1), on tokens (B, N, V)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(2), self.bias)


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) of each channel over all pixels, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        full = wide(x)
        centred = full - _mean(full)
        variance = _mean(centred * centred)
        return (centred * torch.rsqrt(variance + EPS)).to(x.dtype)


def _mean(x: Tensor) -> Tensor:
    """Over all pixels, (B, N, C) to (B, 1, C): of rows first, and then of these.

    Runtimes add one pixel after the other: over all 14,400 of them float32 loses two digits.
    """
    pixels = x.shape[1]
    rows = max(n for n in range(1, math.isqrt(pixels) + 1) if pixels % n == 0)
    return x.unflatten(1, (rows, -1)).mean(2).mean(1, keepdim=True)


class Fusion(nn.Module):
    """GELU(project([IN(w(attended words))] + v)), the queries IN(q(v)).

    Args:
        dim: V. inner: D. text_width: T. heads: h.
    """

    def __init__(self, dim: int, inner: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_q = nn.Sequential(Pointwise(dim, inner), InstanceNorm())
        self.l_q = nn.Linear(text_width, inner)
        self.values_l = nn.Linear(text_width, inner)
        self.w_v = nn.Sequential(Pointwise(inner, dim), InstanceNorm())
        self.project_mm = nn.Sequential(Pointwise(dim, dim), nn.GELU())

    def forward(self, v: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Pixels (B, N, V), words (B, L, T) and `key_mask` (B, 1, 1, L) to (B, N, V)."""
        q, k = self._split(self.v_q(v)), self._split(self.l_q(words))
        # The words are few: what is small is scaled.
        k = k * k.shape[-1] ** -0.5
        weights = (q @ k.transpose(2, 3) + mask).softmax(dim=-1)  # (B, h, N, L)
        out = weights @ self._split(self.values_l(words))  # (B, h, N, D / h)
        return self.project_mm(self.w_v(out.transpose(1, 2).flatten(2)) + v)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, h, N, D / h)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Gate(nn.Sequential):
    """tanh(W_2 relu(W_1 r)): how much of what the words say is added to each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()
        )
