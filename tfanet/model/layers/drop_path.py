"""Stochastic depth, the regulariser of deep residual backbones (Huang et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DropPath"]


class DropPath(nn.Module):
    """Drops a residual branch of single samples, in training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Branch (B, ...) of any dtype to the same, scaled so that its mean stays."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device).bernoulli_(keep)
        return x * kept / keep
