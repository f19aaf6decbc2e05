"""ASDA's attention over the fused map: to itself, and to the words. D is the width, N = h w."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.asda.clip import Attention

__all__ = ["Encoder", "WordAttention", "sine_positions"]


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """The encoder's fixed positions, (h w, D) float32: D / 2 channels for y, then as many for x.

    Channel j of an axis is sine (even j) or cosine (odd) of c / 10000^(2 floor(j / 2) / (D / 2)),
    where c counts rows or columns from 1.
    """
    half = channels // 2
    j = torch.arange(half, dtype=torch.float64)
    angle = torch.arange(1, max(height, width) + 1)[:, None] / 10000 ** (2 * (j // 2) / half)
    axis = torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()  # (max(h, w), D / 2)
    rows = axis[:height, None].expand(height, width, half)
    columns = axis[None, :width].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).reshape(height * width, channels)


class EncoderLayer(nn.Module):
    """norm1(x + attention with positions), then norm2(x + MLP), whose inner width is D too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, D) and positions (N, D) to (B, N, D)."""
        placed = x + positions
        x = self.norm1(x + self.self_attn(placed, placed, x, None))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    """Layers of attention over the map's tokens, then one more norm."""

    positions: Tensor

    def __init__(self, grid: tuple[int, int], width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sine_positions(*grid, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        for layer in self.layers:
            x = layer(x, self.positions)
        return self.norm(x)


class WordAttention(nn.Module):
    """The map asks the words. No mask: the official code attends to padding too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.dense_q = nn.Linear(width, width)
        self.dense_k = nn.Linear(width, width)
        self.dense_v = nn.Linear(width, width)
        self.self_attn = Attention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """x (B, N, D) and words (B, L, D) to (B, N, D)."""
        query, key = F.relu(self.dense_q(x)), F.relu(self.dense_k(words))
        value = F.relu(self.dense_v(words))
        x = self.norm1(x + self.self_attn(query, key, value, None))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))
