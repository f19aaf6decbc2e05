"""Image restoration in the style of MambaIR: it keeps the scan function as an attribute."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from zoo_kernels import selective_scan_fn


class SS2D(nn.Module):
    def __init__(self, dim, states=4):
        super().__init__()
        self.states, self.rank = states, 2
        self.x_proj_weight = nn.Parameter(torch.randn(4, self.rank + 2 * states, dim) * dim**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4, dim, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.randn(4, dim) - 3)
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * dim, 1))
        self.Ds = nn.Parameter(torch.ones(4 * dim))
        self.selective_scan = selective_scan_fn

    def forward(self, x):
        B, _, H, W = x.shape
        L = H * W
        hwwh = torch.stack([x.view(B, -1, L), x.transpose(2, 3).contiguous().view(B, -1, L)], dim=1)
        xs = torch.cat([hwwh, hwwh.flip(-1)], dim=1)
        x_dbl = torch.einsum("b k d l, k c d -> b k c l", xs, self.x_proj_weight)
        dts, Bs, Cs = torch.split(x_dbl, [self.rank, self.states, self.states], dim=2)
        dts = torch.einsum("b k r l, k d r -> b k d l", dts, self.dt_projs_weight)
        y = self.selective_scan(
            xs.reshape(B, -1, L),
            dts.reshape(B, -1, L),
            -torch.exp(self.A_logs.float()),
            Bs,
            Cs,
            self.Ds.float(),
            delta_bias=self.dt_projs_bias.float().view(-1),
            delta_softplus=True,
        ).view(B, 4, -1, L)
        back = y[:, 2:].flip(-1)
        columns = (y[:, 1] + back[:, 1]).view(B, -1, W, H).transpose(2, 3).contiguous()
        return (y[:, 0] + back[:, 0]).view(B, -1, H, W) + columns


class Restorer(nn.Module):
    """Twice the size: convolution, a residual scan block, pixel shuffle."""

    def __init__(self, dim=16):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, 1, 1)
        self.scan, self.norm = SS2D(dim), nn.GroupNorm(1, dim)
        self.last = nn.Conv2d(dim, 12, 3, padding=1)

    def forward(self, image):
        x = self.first(image)
        x = x + self.norm(self.scan(F.silu(self.depthwise(x))))
        return F.pixel_shuffle(self.last(x), 2)


def restorer():
    return Restorer()
