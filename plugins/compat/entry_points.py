"""What known selective-scan entry points compute, by `selective_scan` and standard operators.

One function per family: the scan, Mamba's fused block taken apart, the causal convolution. Each
takes the union of the family's parameters by their official names; a caller with another order of
arguments passes them by name (`tfanet.plugins.exportable` does).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.plugins.pytorch.reference import last_state
from tfanet.plugins.pytorch.selective_scan import selective_scan

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "inner",
    "mamba_mixer",
    "rms_norm",
    "scan",
    "window_reverse",
]


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
    oflex: bool = False,
    backend: str | None = None,
) -> Any:
    """`selective_scan` with what the official entry points take beside it.

    Args:
        B, C: also (dim, N), constant over the steps. Sequences may differ in dtype: all are then
            computed in the widest.
        return_last_state: also return h after the last step, (batch, dim, N), in the state's dtype.
        oflex: 16-bit inputs give a float32 result. backend: VMamba's choice of a kernel, of which
            "mamba" and "core" know no oflex.

    Returns:
        y (batch, dim, L), or (y, last state).

    Raises:
        InputError: for a complex A, and as `selective_scan`.
    """
    if A.is_complex():
        raise InputError(
            f"selective_scan: A is {A.dtype}, and the operator is defined for a real A only: "
            "vision models use a real one; export the rest of this model around its complex scan"
        )
    result = u.dtype
    if oflex and backend not in ("mamba", "core"):
        result = torch.promote_types(result, torch.float32)
    B, C = (_per_step(x, u) if x.ndim == 2 else x for x in (B, C))
    common = result
    for x in (delta, B, C, u if z is None else z):
        common = torch.promote_types(common, x.dtype)
    u, delta, B, C = (x.to(common) for x in (u, delta, B, C))
    z = None if z is None else z.to(common)
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, bool(delta_softplus)).to(result)
    if not return_last_state:
        return y
    return y, last_state(u, delta, A, B, delta_bias, bool(delta_softplus))


def _per_step(x: Tensor, u: Tensor) -> Tensor:
    """Constant B or C, (dim, N), as a group per channel: (batch, dim, N, L)."""
    return x[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2]).to(u.dtype)


def inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    out_proj_weight: Tensor | None = None,
    out_proj_bias: Tensor | None = None,
    A_b: Tensor | None = None,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's block behind its input projection, step by step instead of fused.

        x, z = xz;  x = silu(causal convolution of x);  delta, B, C = x_proj x
        y = scan(x, dt_proj delta, A, B, C, D, z) [+ the same backwards with A_b];  out_proj y

    Args:
        xz: (batch, 2 dim, L). conv1d_weight: (dim, 1, width). x_proj_weight: (R + 2N, dim).
        delta_proj_weight: (dim, R). A, A_b: (dim, N). B, C: given only where they do not depend
            on the input. *_rms_weight: RMS norms of B, C (N) and delta (dim), as in FalconMamba.

    Returns:
        (batch, L, out), or the gated scan (batch, dim, L) without `out_proj_weight`.
    """
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    rank, states = delta_proj_weight.shape[1], A.shape[-1]
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # (batch, L, R + 2N)
    dt = projected[..., :rank]
    delta = F.linear(dt, delta_proj_weight)
    if dt_rms_weight is not None:
        delta = rms_norm(delta, dt_rms_weight, b_c_dt_rms_eps)
    delta = delta.transpose(1, 2)
    given = (
        (B, projected[..., rank : rank + states], B_proj_bias, b_rms_weight),
        (C, projected[..., -states:], C_proj_bias, c_rms_weight),
    )
    found = []
    for constant, value, bias, norm in given:
        if constant is not None:
            found.append(constant)
            continue
        value = value if bias is None else value + bias.to(value.dtype)
        value = value if norm is None else rms_norm(value, norm, b_c_dt_rms_eps)
        found.append(value.transpose(1, 2))
    B, C = found
    y = scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if A_b is not None:
        x, delta, B, C, z = (v if v.ndim == 2 else v.flip(-1) for v in (x, delta, B, C, z))
        y_b = scan(x, delta, A_b, B, C, D, z, delta_bias, delta_softplus)
        y = y + y_b.flip(-1)
    if out_proj_weight is None:
        return y
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_mixer(mixer: Any, input_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """`MambaMixer.slow_forward` of the first transformers 5, on whole sequences, without its loop.

    Args:
        mixer: the module. input_states: (batch, L, hidden). attention_mask: (batch, L).
    """
    x, gate = mixer.in_proj(input_states).transpose(1, 2).chunk(2, dim=1)
    mask = None if attention_mask is None else attention_mask.unsqueeze(1)
    x = x if mask is None else x * mask
    x = mixer.act(mixer.conv1d(x)[..., : x.shape[-1]])
    x = x if mask is None else x * mask
    parts = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    dt, B, C = mixer.x_proj(x.transpose(1, 2)).split(parts, dim=-1)
    delta = F.linear(dt, mixer.dt_proj.weight).transpose(1, 2)
    A = -torch.exp(mixer.A_log.float())
    bias = mixer.dt_proj.bias
    y = scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), mixer.D, None, bias, True)
    return mixer.out_proj((y * mixer.act(gate)).transpose(1, 2))


def rms_norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) weight [+ bias] over the last axis, computed in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Any:
    """Depthwise convolution over the steps so far, as one standard Conv.

        y_t = act(bias + sum_k weight_k x_{t - width + 1 + k})

    Args:
        x: (batch, dim, L). weight: (dim, width). bias: (dim,). activation: None, "silu", "swish".
        initial_states: what stands before x, (batch, dim, width - 1); zeros by default.

    Returns:
        y (batch, dim, L) in x's dtype; with `return_final_states` also the last width - 1 steps.

    Raises:
        InputError: for another activation, or a weight that is not (dim, width).
    """
    _check_convolution(x, weight, activation)
    width = weight.shape[1]
    if initial_states is None:
        extended = F.pad(x, (width - 1, 0)) if return_final_states else x
    else:
        extended = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    # Padding by the convolution itself is one node; the surplus steps at the end are cut.
    padding = 0 if extended is not x else width - 1
    y = F.conv1d(
        extended.to(weight.dtype), weight.unsqueeze(1), bias, padding=padding, groups=x.shape[1]
    )[..., : x.shape[-1]]
    y = (y if activation is None else F.silu(y)).to(x.dtype)
    return (y, extended[..., extended.shape[-1] - width + 1 :]) if return_final_states else y


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The convolution of new steps after those in `conv_state`, which is moved on in place.

    Args:
        x: (batch, dim) or (batch, dim, L). conv_state: (batch, dim, at least width - 1). Others
            as in `causal_conv1d`.
    """
    steps = x.unsqueeze(-1) if x.ndim == 2 else x
    _check_convolution(steps, weight, activation)
    extended = torch.cat([conv_state.to(x.dtype), steps], dim=-1)
    conv_state.copy_(extended[..., extended.shape[-1] - conv_state.shape[-1] :])
    y = F.conv1d(extended.to(weight.dtype), weight.unsqueeze(1), bias, groups=weight.shape[0])
    y = y[..., y.shape[-1] - steps.shape[-1] :]
    y = (y if activation is None else F.silu(y)).to(x.dtype)
    return y.squeeze(-1) if x.ndim == 2 else y


def _check_convolution(x: Tensor, weight: Tensor, activation: str | None) -> None:
    if activation not in (None, "silu", "swish"):
        raise InputError(f"causal_conv1d: activation is {activation!r}, expected None or 'silu'")
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[1]:
        raise InputError(
            f"causal_conv1d: x is {tuple(x.shape)} and weight {tuple(weight.shape)}, expected "
            "(batch, dim, L) and (dim, width)"
        )


def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
    """Windows of tokens put together to maps, as MambaVision defines it; the batch stays symbolic.

    Args:
        windows: (batch * windows of a map, window_size^2, C), rows of windows first.

    Returns:
        (batch, C, H, W).
    """
    rows, columns = H // window_size, W // window_size
    shape = (windows.shape[0] // (rows * columns), rows, columns, window_size, window_size, -1)
    return windows.reshape(shape).permute(0, 5, 1, 3, 2, 4).reshape(shape[0], -1, H, W)
