"""KFS, the second stage of fusion: CSSM scans the channels, SCSM scans the pixels (eqs. 20-22)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.tfanet.ss2d import SS2D, ScanBlock

__all__ = ["CFSM", "CSSM", "pool_matrix"]


def pool_matrix(size: int, grid: int) -> Tensor:
    """Adaptive average pooling of `size` cells to `grid` as a matrix (grid, size)."""
    matrix = torch.zeros(grid, size)
    for cell in range(grid):
        start, stop = cell * size // grid, -(-(cell + 1) * size // grid)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


class CSSM(ScanBlock):
    """Channel scan (eq. 20): a sequence of 3C channels, each a map pooled to g x g.

    Args:
        grid: g.
    """

    def __init__(self, grid: int) -> None:
        width = grid * grid
        inner = 1 << (2 * width - 1).bit_length()
        super().__init__(inner, directions=2, rank=math.ceil(width / 16))
        self.grid = grid
        self.in_proj = nn.Linear(width, inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        for layer in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """F_Block (B, 3C, H, W) to F_Channel (B, 3C, H, W)."""
        height, width = x.shape[2:]
        z = self.in_proj(self.pool(x).flatten(2))  # (B, 3C, E)
        u = F.silu(self.conv1d(z.transpose(1, 2)))  # (B, E, 3C)
        projected = F.conv1d(u, self.projection_weight().unsqueeze(-1))  # (B, 2 (R + 2N), 3C)
        forth, back = projected.chunk(2, dim=1)
        y = self.scan(
            torch.stack([u, u.flip(-1)], dim=1), torch.stack([forth, back.flip(-1)], dim=1)
        )  # (B, 2, E, 3C)
        y = y[:, 0] + y[:, 1].flip(-1)
        z = self.out_proj(self.out_norm(y.transpose(1, 2)))  # (B, 3C, g^2)
        z = z.unflatten(2, (self.grid, self.grid))
        if (height, width) == (self.grid, self.grid):
            return z
        return F.interpolate(z, (height, width), mode="bilinear", align_corners=False)

    def pool(self, x: Tensor) -> Tensor:
        """Average over the cells of a g x g grid: (B, c, H, W) to (B, c, g, g)."""
        height, width = x.shape[2:]
        if height % self.grid == 0 and width % self.grid == 0:
            return F.avg_pool2d(x, (height // self.grid, width // self.grid))
        rows = pool_matrix(height, self.grid).to(x)
        columns = pool_matrix(width, self.grid).to(x)
        return rows @ x @ columns.T


class CFSM(nn.Module):
    """F_F = Conv1x1(F_Space + F_Channel), with F_Space the 2-D scan of F_Block + F_Channel.

    Args:
        dim: C. grid: g of CSSM. enabled: off leaves the 1x1 convolution of F_Block (ablation).
    """

    def __init__(self, dim: int, grid: int, enabled: bool = True) -> None:
        super().__init__()
        self.cssm = CSSM(grid) if enabled else None
        self.scsm = SS2D(3 * dim, ratio=1.0) if enabled else None
        if self.scsm is not None:
            for layer in (self.scsm.in_proj, self.scsm.out_proj):
                nn.init.trunc_normal_(layer.weight, std=0.02)
        self.out = nn.Conv2d(3 * dim, dim, 1)
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, block: Tensor) -> Tensor:
        """F_Block (B, 3C, H, W) to F_F (B, C, H, W)."""
        if self.cssm is None or self.scsm is None:
            return self.out(block)
        channel = self.cssm(block)  # eq. 20
        space = self.scsm(block + channel)  # eq. 21
        return self.out(space + channel)  # eq. 22
