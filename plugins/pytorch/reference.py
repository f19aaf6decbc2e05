"""The scans in plain PyTorch: the sequential definition, and a parallel form.

`selective_scan_ref` and `ss2d_ref` are the oracles of the tests; `selective_scan_parallel` is what
one writes without a kernel, and the baseline of the benchmarks; `selective_scan_gradients` and
`ss2d_gradients` are the gradients, which can be differentiated again; `last_state` is the state
that a scan ends in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tfanet.plugins.operands import DIRECTIONS
from tfanet.plugins.pytorch.cross_scan import cross_merge, cross_scan

__all__ = [
    "last_state",
    "selective_scan_gradients",
    "selective_scan_parallel",
    "selective_scan_ref",
    "ss2d_composed",
    "ss2d_gradients",
    "ss2d_ref",
]

CHUNK = 16


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The definition, one step at a time in float64; arguments as in `selective_scan`.

    Returns:
        y (batch, dim, L) in float64.
    """
    u, delta, a, b, c = _prepare(u, delta, A, B, C, delta_bias, delta_softplus, torch.float64)
    h = torch.zeros_like(a[..., 0])  # (batch, dim, N)
    steps = []
    for t in range(u.shape[2]):
        h = a[..., t] * h + b[..., t]
        steps.append((h * c[..., t]).sum(2))
    y = torch.stack(steps, 2) if steps else torch.zeros_like(u)
    return _finish(y, u, D, z)


def selective_scan_parallel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The same by a two-level scan: steps inside chunks side by side, then the chunks' carries.

    Uses (a1, b1) o (a2, b2) = (a1 a2, a2 b1 + b2) only, so nothing is divided and nothing
    overflows. Differentiable; returns y in u's dtype, the state is at least float32.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    length, kind = u.shape[2], u.dtype
    u, delta, a, b, c = _prepare(u, delta, A, B, C, delta_bias, delta_softplus, dtype)
    h = _scan(a, b)[..., :length]
    y = (h * c).sum(2)
    return _finish(y, u, D, z).to(kind)


def selective_scan_gradients(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias for the gradient dy of y.

    The formulas of csrc/cpu/selective_scan_backward.h in PyTorch's operators: H, the gradient of h,
    is a scan from the end. B and C of rank 4; other arguments as in `selective_scan`.

    Returns:
        One for each, in its dtype and shape, None for what is absent.
    """
    operands = (u, delta, A, B, C, D, z, delta_bias)
    dtype, groups, length = torch.promote_types(u.dtype, torch.float32), B.shape[1], u.shape[2]
    dy, A, x = dy.to(dtype), A.to(dtype), delta.to(dtype)
    x = x if delta_bias is None else x + delta_bias.to(dtype)[:, None]
    B, C = (_per_channel(v.to(dtype), u.shape[1]) for v in (B, C))
    u, delta = u.to(dtype), F.softplus(x) if delta_softplus else x
    a = torch.exp(delta.unsqueeze(2) * A[:, :, None])
    h = _scan(a, (delta * u).unsqueeze(2) * B)
    g = dy if z is None else dy * F.silu(z.to(dtype))
    later = F.pad(a, (0, 1))[..., 1:]  # decay of the next step; after the last there is none
    H = _scan(later.flip(-1), (C * g.unsqueeze(2)).flip(-1)).flip(-1)
    d_exponent = H * a * F.pad(h, (1, 0))[..., :length]  # of delta' A

    du = (H * B).sum(2) * delta
    dx = (H * B).sum(2) * u + (d_exponent * A[:, :, None]).sum(2)
    dx = dx * torch.sigmoid(x) if delta_softplus else dx
    dB = (H * (delta * u).unsqueeze(2)).unflatten(1, (groups, -1)).sum(2)
    dC = (h * g.unsqueeze(2)).unflatten(1, (groups, -1)).sum(2)
    dA = (d_exponent * delta.unsqueeze(2)).sum((0, 3))
    dD = dz = None
    if D is not None:
        du, dD = du + D.to(dtype)[:, None] * g, (g * u).sum((0, 2))
    if z is not None:
        y, gate = _finish((h * C).sum(2), u, D, None), torch.sigmoid(z.to(dtype))
        dz = dy * y * gate * (1 + z.to(dtype) * (1 - gate))
    found = (du, dx, dA, dB, dC, dD, dz, None if delta_bias is None else dx.sum((0, 2)))
    return tuple(
        None if v is None or like is None else v.to(like.dtype)
        for v, like in zip(found, operands, strict=True)
    )


def last_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """h after the last step, (batch, dim, N), by the recurrence in closed form:

        h = sum_t exp(A sum_{s>t} delta'_s) delta'_t B_t u_t

    Nothing is divided and nothing is looped over, so it can be exported. Arguments as in
    `selective_scan`; the dtype is the state's, float32 or float64. Memory for (batch, dim, N, L).
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    _, delta, _, inflow, _ = _prepare(u, delta, A, B, B, delta_bias, delta_softplus, dtype)
    later = F.pad(delta[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)  # delta' of the steps after
    return (torch.exp(A.to(dtype)[:, :, None] * later.unsqueeze(2)) * inflow).sum(-1)


def _scan(a: Tensor, b: Tensor) -> Tensor:
    """Inclusive scan of h_t = a_t h_{t-1} + b_t along the last axis."""
    length = a.shape[-1]
    if length == 0:
        return b
    if length <= CHUNK:
        return _steps(a, b)[1]
    padding = -length % CHUNK
    a = F.pad(a, (0, padding), value=1.0).unflatten(-1, (-1, CHUNK))
    b = F.pad(b, (0, padding)).unflatten(-1, (-1, CHUNK))
    a, b = _steps(a, b)  # within each chunk, from a zero state
    carry = _scan(a[..., -1], b[..., -1])  # state at the end of each chunk
    before = F.pad(carry[..., :-1], (1, 0))
    return (a * before.unsqueeze(-1) + b).flatten(-2)[..., :length]


def _steps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Products and states from the start of the last axis to each step, one step at a time."""
    products, states = [a[..., 0]], [b[..., 0]]
    for t in range(1, a.shape[-1]):
        products.append(products[-1] * a[..., t])
        states.append(a[..., t] * states[-1] + b[..., t])
    return torch.stack(products, -1), torch.stack(states, -1)


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, delta' (batch, dim, L); decay exp(delta' A), input delta' B u, C (batch, dim, N, L)."""
    u, delta, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    b, c = (_per_channel(x.to(dtype), u.shape[1]) for x in (B, C))
    a = torch.exp(delta.unsqueeze(2) * A[:, :, None])
    return u, delta, a, (delta * u).unsqueeze(2) * b, c


def _per_channel(x: Tensor, dim: int) -> Tensor:
    """(batch, N, L) or (batch, G, N, L) to (batch, dim, N, L)."""
    x = x.unsqueeze(1) if x.ndim == 3 else x
    return x.repeat_interleave(dim // x.shape[1], dim=1)


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + u * D.to(y.dtype)[:, None]
    return y if z is None else y * F.silu(z.to(y.dtype))


def ss2d_composed(
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    scan: Callable[..., Tensor],
) -> Tensor:
    """The 2-D scan put together from its parts: projections, cross-scan, `scan`, cross-merge.

    Arguments as in `ss2d`, and a function with the signature of `selective_scan`. Differentiable
    where that is. The projections are in u's dtype; y (batch, E, H, W) has the scan's.
    """
    _, B, C, delta = _projected(u, x_proj_weight, dt_weight, A.shape[1])
    sequences, bias = cross_scan(u).flatten(1, 2), dt_bias.flatten()
    y = scan(sequences, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)
    return _merged(y, u)


def _projected(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt (batch, 4, R, H*W), B and C (batch, 4, N, H*W), delta (batch, 4E, H*W), as scanned."""
    # The projections work on single pixels, so they commute with the order of scanning: one 1x1
    # convolution serves all directions, and only its few rows are put in four orders.
    weight = x_proj_weight.flatten(0, 1).to(u.dtype)
    rows = F.conv2d(u, weight[:, :, None, None]).unflatten(1, (DIRECTIONS, -1))
    rows = cross_scan(rows, one_by_one=True)  # (batch, 4, R + 2N, H*W)
    dt, B, C = rows.split([dt_weight.shape[2], states, states], dim=2)
    weight = dt_weight.flatten(0, 1).to(u.dtype)
    delta = F.conv1d(dt.flatten(1, 2), weight.unsqueeze(-1), groups=DIRECTIONS)
    return dt, B, C, delta


def _merged(y: Tensor, u: Tensor) -> Tensor:
    """Four sequences (batch, 4E, H*W) to the map u, added."""
    size = u.shape[2:]
    return cross_merge(y.unflatten(1, (DIRECTIONS, -1)).unflatten(-1, size)).unflatten(-1, size)


def ss2d_gradients(
    dy: Tensor,
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    scan_gradients: Callable[..., tuple[Tensor | None, ...]],
) -> tuple[Tensor, ...]:
    """Gradients of the six operands of `ss2d` for the gradient dy of y, from the parts' own.

    Arguments as in `ss2d`, and a function like `selective_scan_gradients`. Differentiable where
    that is.
    """
    operands = (u, x_proj_weight, dt_weight, dt_bias, A, D)
    states, kind = A.shape[1], u.dtype
    dt, B, C, delta = _projected(u, x_proj_weight, dt_weight, states)
    # Merging and scanning in four directions are each other's transpose.
    found = scan_gradients(
        cross_scan(dy.to(kind)).flatten(1, 2),
        cross_scan(u).flatten(1, 2),
        *(delta, A, B, C, D, None, dt_bias.flatten(), True),
    )
    dx, d_delta, dA, dB, dC, dD, _, d_bias = found
    assert dx is not None and d_delta is not None and dB is not None and dC is not None
    assert dA is not None and dD is not None and d_bias is not None
    d_delta = d_delta.unflatten(1, (DIRECTIONS, -1))
    d_dt_weight = torch.einsum("bkel,bkrl->ker", d_delta, dt)
    d_dt = dt_weight.to(kind).transpose(1, 2) @ d_delta
    d_rows = torch.cat([d_dt, dB, dC], 2).unflatten(-1, u.shape[2:])
    d_rows = cross_merge(d_rows, one_by_one=True)  # (batch, 4, R + 2N, H*W), as in the map
    d_x_proj = torch.einsum("bkrl,bel->kre", d_rows, u.flatten(2))
    du = torch.einsum("kre,bkrl->bel", x_proj_weight.to(kind), d_rows).view_as(u) + _merged(dx, u)
    gradients = (du, d_x_proj, d_dt_weight, d_bias.view_as(dt_bias), dA, dD)
    return tuple(v.to(x.dtype) for v, x in zip(gradients, operands, strict=True))


def ss2d_ref(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """The definition in float64, arguments as in `ss2d`: y (batch, E, H, W) in float64."""
    operands = (x.double() for x in (u, x_proj_weight, dt_weight, dt_bias, A, D))
    return ss2d_composed(*operands, scan=selective_scan_ref)
