"""The selective-scan block of VMamba (SS2D), and what it shares with the channel scan.

Glossary, used in all model files:

    B    batch                      C    channels of a feature map
    H, W height and width of a map  E    inner channels of a scan block
    K    scan directions            R    rank of the delta projection
    N    state size (1 here)        Lq   length of a scanned sequence
    L    tokens of the sentence     T    width of the text encoder
    u, delta, A, B, C, D            the scan's operands, as in the Mamba paper

Maps are channel-first, (B, C, H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.wide import wide
from tfanet.plugins import selective_scan, ss2d

__all__ = ["SS2D", "LayerNorm2d", "Linear2d", "ScanBlock"]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class Linear2d(nn.Linear):
    """A 1x1 convolution of a (B, C, H, W) map with a linear layer's (out, in) weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ScanBlock(nn.Module):
    """Parameters and the scan of a block with K directions; names as in VMamba.

    Args:
        inner: E. directions: K. rank: R. state: N.
    """

    def __init__(self, inner: int, directions: int, rank: int, state: int = 1) -> None:
        super().__init__()
        self.inner, self.directions, self.rank, self.state = inner, directions, rank, state
        self.x_proj_weight = nn.Parameter(torch.empty(directions, rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_logs = nn.Parameter(torch.empty(directions * inner, state))
        self.Ds = nn.Parameter(torch.empty(directions * inner))
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """VMamba's "v0": delta from log-uniform [1e-3, 0.1], A = -1..-N, D = 1."""
        for weight in self.x_proj_weight:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        nn.init.uniform_(self.dt_projs_weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(1e-3), math.log(0.1)
        delta = torch.exp(torch.empty_like(self.dt_projs_bias).uniform_(low, high))
        self.dt_projs_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus^-1
        self.A_logs.copy_(torch.log(torch.arange(1, self.state + 1, dtype=torch.float32)))
        nn.init.ones_(self.Ds)

    def projection_weight(self) -> Tensor:
        """x_proj of all directions as one 1x1 convolution: (K * (R + 2N), E)."""
        return self.x_proj_weight.flatten(0, 1)

    def scan(self, u: Tensor, projected: Tensor) -> Tensor:
        """Scan all directions at once.

        Args:
            u: (B, K, E, Lq). projected: (B, K, R + 2N, Lq), rows of delta, then B, then C.

        Returns:
            y: (B, K, E, Lq).
        """
        dt, b, c = projected.split([self.rank, self.state, self.state], dim=2)
        delta = F.conv1d(  # (B, K*E, Lq): one product per direction
            dt.flatten(1, 2),
            self.dt_projs_weight.flatten(0, 1).unsqueeze(-1),
            groups=self.directions,
        )
        y = selective_scan(
            u.flatten(1, 2),
            delta,
            -torch.exp(wide(self.A_logs)),
            b,
            c,
            D=wide(self.Ds),
            delta_bias=wide(self.dt_projs_bias.flatten()),
            delta_softplus=True,
        )
        return y.unflatten(1, (self.directions, self.inner))


class SS2D(ScanBlock):
    """2-D selective scan: (B, C, H, W) to (B, C, H, W); VMamba's v05_noz.

    Args:
        dim: C. ratio: E / C. state: N.
    """

    def __init__(self, dim: int, ratio: float = 2.0, state: int = 1) -> None:
        inner = int(ratio * dim)
        super().__init__(inner, directions=4, rank=math.ceil(dim / 16), state=state)
        self.in_proj = Linear2d(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = Linear2d(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.conv2d(self.in_proj(x)))  # (B, E, H, W)
        y = ss2d(
            u,
            wide(self.x_proj_weight),
            wide(self.dt_projs_weight),
            wide(self.dt_projs_bias),
            -torch.exp(wide(self.A_logs)),
            wide(self.Ds),
        )
        return self.out_proj(self.out_norm(y))
