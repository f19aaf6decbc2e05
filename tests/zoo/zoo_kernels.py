"""Entry points with the official names and parameters of VMamba, written from their definition.

The PyTorch forms are slow loops; what stands for CUDA and Triton kernels fails, as on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

WITH_CUDA = False


def selective_scan_torch(
    u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, oflex=True, *args, **kwargs
):
    kind = u.dtype
    if delta_bias is not None:
        delta = delta + delta_bias[..., None]
    if delta_softplus:
        delta = F.softplus(delta)
    u, delta, A, B, C = (v.float() for v in (u, delta, A, B, C))
    per_group = u.shape[1] // B.shape[1]
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    steps = []
    for t in range(u.shape[2]):
        b, c = (v[..., t].repeat_interleave(per_group, dim=1) for v in (B, C))
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * b * u[:, :, t, None]
        steps.append((h * c).sum(-1))
    y = torch.stack(steps, dim=2)
    y = y if D is None else y + u * D[:, None]
    return y if oflex else y.to(kind)


class SelectiveScanCuda(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, oflex=True,
        backend=None,
    ):  # fmt: skip
        raise RuntimeError("this kernel needs a CUDA device")


def selective_scan_fn(
    u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, oflex=True, backend=None
):
    run = SelectiveScanCuda.apply if WITH_CUDA and backend != "torch" else selective_scan_torch
    return run(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex, backend)


def _order(x, direction, backwards_from):
    """(B, C, H, W) flattened by rows (even direction) or columns, reversed in the second half."""
    x = x.transpose(2, 3) if direction % 2 else x
    x = x.flatten(2)
    return x.flip(-1) if direction >= backwards_from else x


class CrossScanF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0
    ):
        assert in_channel_first and out_channel_first and not one_by_one and scans == 0
        return torch.stack([_order(x, k, 2) for k in range(4)], dim=1)


class CrossMergeF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ys, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0
    ):
        assert in_channel_first and out_channel_first and not one_by_one and scans == 0
        batch, _, channels, height, width = ys.shape
        y = ys.reshape(batch, 4, channels, -1)
        y = y[:, :2] + y[:, 2:].flip(-1)
        columns = y[:, 1].reshape(batch, channels, width, height).transpose(2, 3).flatten(2)
        return y[:, 0] + columns


class CrossScanTritonF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0
    ):
        raise RuntimeError("0 active drivers")


class CrossMergeTritonF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0
    ):
        raise RuntimeError("0 active drivers")


def cross_scan_fn(
    x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0, force_torch=False
):
    run = CrossScanTritonF if WITH_CUDA and not force_torch else CrossScanF
    return run.apply(x, in_channel_first, out_channel_first, one_by_one, scans)


def cross_merge_fn(
    y, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0, force_torch=False
):
    run = CrossMergeTritonF if WITH_CUDA and not force_torch else CrossMergeF
    return run.apply(y, in_channel_first, out_channel_first, one_by_one, scans)
