"""VMamba for classification, calling its entry points as the official code does ("v05_noz")."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from zoo_kernels import cross_merge_fn, cross_scan_fn, selective_scan_fn


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return super().forward(x).permute(0, 3, 1, 2)


class SS2D(nn.Module):
    def __init__(self, dim, ratio, states=1):
        super().__init__()
        self.d_inner, self.d_state, self.k_group = int(ratio * dim), states, 4
        self.dt_rank = math.ceil(dim / 16)
        inner, rank = self.d_inner, self.dt_rank
        self.in_proj = nn.Conv2d(dim, inner, 1, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.randn(4, rank + 2 * states, inner) * inner**-0.5)
        self.dt_projs_weight = nn.Parameter((torch.rand(4, inner, rank) * 2 - 1) * rank**-0.5)
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner).uniform_(-6.9, -2.3))
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)

    def forward(self, x):
        x = F.silu(self.conv2d(self.in_proj(x)))
        B, D, H, W = x.shape
        K, N, R, L = self.k_group, self.d_state, self.dt_rank, H * W
        xs = cross_scan_fn(x, in_channel_first=True, out_channel_first=True, scans=0)
        x_dbl = F.conv1d(xs.view(B, -1, L), self.x_proj_weight.view(-1, D, 1), groups=K)
        dts, Bs, Cs = torch.split(x_dbl.view(B, K, -1, L), [R, N, N], dim=2)
        dts = F.conv1d(
            dts.contiguous().view(B, -1, L), self.dt_projs_weight.view(K * D, -1, 1), groups=K
        )
        ys = selective_scan_fn(
            xs.view(B, -1, L),
            dts.contiguous().view(B, -1, L),
            -self.A_logs.to(torch.float).exp(),
            Bs.contiguous().view(B, K, N, L),
            Cs.contiguous().view(B, K, N, L),
            self.Ds.to(torch.float),
            self.dt_projs_bias.view(-1).to(torch.float),
            True,
            True,
            backend=None,
        ).view(B, K, -1, H, W)
        y = cross_merge_fn(ys, in_channel_first=True, out_channel_first=True, scans=0)
        return self.out_proj(self.out_norm(y.view(B, -1, H, W).to(x.dtype)))


class Block(nn.Module):
    def __init__(self, dim, ratio):
        super().__init__()
        self.norm, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.op = SS2D(dim, ratio)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1))

    def forward(self, x):
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


class VSSM(nn.Module):
    def __init__(self, dim, depths, ratio, classes=1000):
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, 1),
            LayerNorm2d(dim // 2),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1),
            LayerNorm2d(dim),
        )
        self.layers = nn.ModuleList()
        for index, depth in enumerate(depths):
            blocks = [Block(dim * 2**index, ratio) for _ in range(depth)]
            if index < len(depths) - 1:
                wide = dim * 2 ** (index + 1)
                blocks += [nn.Conv2d(wide // 2, wide, 3, 2, 1), LayerNorm2d(wide)]
            self.layers.append(nn.Sequential(*blocks))
        self.norm = LayerNorm2d(wide)
        self.head = nn.Linear(wide, classes)

    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean((2, 3)))


def micro():
    return VSSM(16, (1, 1, 1, 1), 1.0, classes=10)


def tiny():
    return VSSM(96, (2, 2, 8, 2), 1.0)


def small():
    return VSSM(96, (2, 2, 15, 2), 2.0)


def base():
    return VSSM(128, (2, 2, 15, 2), 2.0)
