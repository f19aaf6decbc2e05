"""Deformable attention over several maps, in operators that every runtime computes right.

"Deformable DETR" (Zhu et al., 2021), as in Mask2Former's pixel decoder. In graphs there is no
GridSample: some runtimes take its mode for another without a word. A bilinear value is one lookup
in a table that holds, for each place, the four pixels around it side by side.

S are the pixels of all maps together, row by row, map after map; h the heads, of d channels each; n
= h x maps x points, in this order, the values that a query reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.wide import wide

__all__ = ["DeformableAttention", "pixel_centres", "sample_maps"]

Sizes = Sequence[tuple[int, int]]  # (H, W) of each map

# What is looked up of so many queries is in memory at a time: 50 MB with 8 heads, 3 maps, 4 points.
QUERIES_AT_ONCE = 1024


def pixel_centres(sizes: Sizes, heads: int, points: int) -> tuple[Tensor, Tensor]:
    """Where the centre of each pixel of all maps lies on each of them: x and y, (S, n) float32.

    In pixels, of which the first has its centre at 0. At fixed sizes both are constants.
    """
    x, y = [], []
    for height, width in sizes:
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        y.append(rows[:, None].expand(height, width).flatten())
        x.append(columns.expand(height, width).flatten())
    widths = torch.tensor([float(width) for _, width in sizes])
    heights = torch.tensor([float(height) for height, _ in sizes])
    return (
        _per_value(torch.cat(x)[:, None] * widths - 0.5, heads, points),
        _per_value(torch.cat(y)[:, None] * heights - 0.5, heads, points),
    )


def _per_value(per_map: Tensor, heads: int, points: int) -> Tensor:
    """(..., maps) to (..., n)."""
    shape = (*per_map.shape[:-1], heads, per_map.shape[-1], points)
    return per_map[..., None, :, None].expand(shape).flatten(-3)


def sample_maps(value: Tensor, sizes: Sizes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of what each query reads, bilinear, zero outside of a map.

    Equal to PyTorch's grid_sample with half-pixel centres (align_corners False) and zeros outside.

    Args:
        value: (B, S, h, d). sizes: of the maps.
        x, y: (B, Q, n) float32, in pixels of the map that each value is read from.
        weights: (B, Q, n).

    Returns:
        (B, Q, h d).
    """
    batch, _, heads, dim = value.shape
    queries, count = x.shape[1:]
    points = count // (heads * len(sizes))
    table, starts, per_sample = _table(value, sizes)
    width = _per_value(torch.tensor([float(w) for _, w in sizes]), heads, points).to(x.device)
    height = _per_value(torch.tensor([float(h) for h, _ in sizes]), heads, points).to(x.device)

    # From -1 to the side, where the ring of zeros around a map is read alone.
    x = torch.minimum(x.clamp_min(-1), width)
    y = torch.minimum(y.clamp_min(-1), height)
    left, top = torch.minimum(x.floor(), width - 1), torch.minimum(y.floor(), height - 1)
    to_right, to_bottom = x - left, y - top
    weights = wide(weights)
    low = weights * to_bottom
    high = weights - low
    corners = (high - high * to_right, high * to_right, low - low * to_right, low * to_right)
    share = torch.stack(corners, 2).transpose(2, 3)  # (B, Q, n, 4)
    share = share.reshape(-1, queries, heads, 1, 4 * count // heads).to(value.dtype)

    # Row of the table: ((sample, place), head).
    head = torch.arange(heads, device=x.device).repeat_interleave(count // heads)
    fixed = _per_value(torch.tensor(starts), heads, points).to(x.device) * heads + head  # (n)
    sample = torch.arange(batch, device=x.device) * per_sample
    place = (top * (width + 1) + left).to(torch.int64)
    rows = (place * heads + (sample[:, None, None] + fixed)).unflatten(2, (heads, -1))

    parts = []
    for first in range(0, queries, QUERIES_AT_ONCE):
        some = slice(first, min(first + QUERIES_AT_ONCE, queries))
        read = F.embedding(rows[:, some], table)  # (B, q, h, n / h, 4 d)
        read = read.reshape(-1, read.shape[1], heads, 4 * count // heads, dim)
        parts.append((share[:, some] @ read).reshape(-1, read.shape[1], heads * dim))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _table(value: Tensor, sizes: Sizes) -> tuple[Tensor, list[int], int]:
    """Rows (B T h, 4 d) of four pixels: left above, right above, left below, right below.

    A map of H x W has (H + 1)(W + 1) such places, since a ring of zeros is put around it; T are
    those of all maps. Also gives, for each map, the place whose left upper pixel is its first one,
    and T h.
    """
    heads, dim = value.shape[2:]
    tables, starts, places = [], [], 0
    for one, (height, width) in zip(value.split([h * w for h, w in sizes], 1), sizes, strict=True):
        padded = F.pad(one.reshape(-1, height, width, heads, dim), (0, 0, 0, 0, 1, 1, 1, 1))
        above, below = padded[:, :-1], padded[:, 1:]
        four = (above[:, :, :-1], above[:, :, 1:], below[:, :, :-1], below[:, :, 1:])
        count = (height + 1) * (width + 1)
        tables.append(torch.cat(four, -1).reshape(-1, count, heads * 4 * dim))
        starts.append(places + (width + 1) + 1)
        places += count
    return torch.cat(tables, 1).reshape(-1, 4 * dim), starts, places * heads


class DeformableAttention(nn.Module):
    """Multi-scale deformable self-attention: each pixel reads a few places of each map.

    A place is the pixel's own centre plus an offset, in pixels of the map that is read. Names and
    shapes are Mask2Former's.

    Args:
        dim: C. heads: h. maps: how many. points: read of each map by each head.
    """

    def __init__(self, dim: int, heads: int, maps: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.sampling_offsets = nn.Linear(dim, heads * maps * points * 2)
        self.attention_weights = nn.Linear(dim, heads * maps * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        # At first the heads look into directions all around, their points one pixel further each.
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1.0, points + 1)
        start = direction[:, None, None] * steps[:, None]  # (h, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(start.expand(heads, maps, points, 2).flatten())

    def forward(
        self, query: Tensor, value: Tensor, sizes: Sizes, centres: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Query (B, S, C), value (B, S, C) and `pixel_centres` of the sizes to (B, S, C)."""
        pixels = query.shape[1]
        offset = wide(self.sampling_offsets(query)).unflatten(2, (-1, 2))  # (B, S, n, 2)
        weights = self.attention_weights(query).unflatten(2, (self.heads, -1))
        weights = weights.softmax(dim=-1).flatten(2)  # over all that a head reads, (B, S, n)
        heads = self.value_proj(value).reshape(-1, pixels, self.heads, query.shape[2] // self.heads)
        x, y = offset[..., 0] + centres[0], offset[..., 1] + centres[1]
        return self.output_proj(sample_maps(heads, sizes, x, y, weights))
