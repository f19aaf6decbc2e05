"""What the two decoders share: attention, MLPs and fixed positions, all [Mask2Former]."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "Attention", "sine_positions"]

BLOCKED = -10_000.0  # finite, so that float16 stays defined


def sine_positions(size: tuple[int, int], dim: int) -> Tensor:
    """Position of each pixel of a map (H, W), row by row: (H W, C), C / 2 for y, then for x.

    Of a coordinate t in (0, 2 pi], at j: sin(t / 10000^(2 floor(j / 2) / (C / 2))) where j is even,
    the cosine of it where it is odd.
    """
    height, width = size
    frequency = 10_000.0 ** -(2 * torch.arange(dim // 4) / (dim // 2))

    def along(side: int) -> Tensor:  # (side, C / 2)
        place = torch.arange(1, side + 1) / (side + 1e-6) * (2 * math.pi)
        angle = place[:, None] * frequency
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    rows = along(height)[:, None].expand(height, width, dim // 2)
    return torch.cat([rows, along(width).expand(height, width, dim // 2)], -1).flatten(0, 1)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(C / h), none where blocked) v, with the names of `MultiheadAttention`.

    Args:
        dim: C. heads: h.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        for weight in (*self.in_proj_weight.chunk(3), self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """Query (B, Q, C), key and value (B, N, C) to (B, Q, C).

        Args:
            blocked: (B, Q or 1, N) bool, what is not to be seen; for each query something is left.
        """
        q, k, v = (self._project(x, n) for n, x in enumerate((query, key, value)))
        logits = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)  # (B, h, Q, N)
        if blocked is not None:
            logits = torch.where(blocked.unsqueeze(1), BLOCKED, logits)
        out = logits.softmax(dim=-1) @ v  # (B, h, Q, C / h)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, part: int) -> Tensor:
        """(B, N, C) to (B, h, N, C / h), by part 0 (query), 1 (key) or 2 (value) of the weights."""
        dim = x.shape[2]
        rows = slice(part * dim, (part + 1) * dim)  # which a graph folds, as it doesn't chunks
        x = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return x.reshape(-1, x.shape[1], self.heads, dim // self.heads).transpose(1, 2)


class MLP(nn.Module):
    """Linear layers with ReLU between them, through the given widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
