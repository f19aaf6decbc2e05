"""Mamba's block and its norms as mamba-ssm and Vim define them, for the stand-ins.

Parameters have the official names and shapes, so checkpoints fit. Glossary: E = expand * d_model
inner channels, N states, R = rank of delta, L steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError

from .entry_points import inner, rms_norm

__all__ = ["Mamba", "RMSNorm", "layer_norm_fn", "rms_norm_fn"]


class Mamba(nn.Module):
    """Mamba's block: (batch, L, d_model) to the same. Whole sequences only, no decoding.

    Args:
        dt_rank: R, "auto" for ceil(d_model / 16). bimamba_type: "none", or Vim's "v1" (a second A
            for the way back) and "v2" (a second set of everything behind the input projection).
        if_divide_out: the mean of both ways instead of their sum. init_layer_scale: start of a
            factor per channel on the result. Others as in mamba-ssm.

    Raises:
        InputError: for an unknown bimamba_type or dt_init.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if bimamba_type not in ("none", "v1", "v2"):
            raise InputError(f"bimamba_type is {bimamba_type!r}, expected 'none', 'v1' or 'v2'")
        if dt_init not in ("random", "constant"):
            raise InputError(f"dt_init is {dt_init!r}, expected 'random' or 'constant'")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out = bimamba_type, if_divide_out
        place = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=bias, **place)
        for way in ("", "_b") if bimamba_type == "v2" else ("",):
            self._add_way(way, conv_bias, place)
            self._reset_way(way, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        if bimamba_type == "v1":
            self.A_b_log = nn.Parameter(self.get_parameter("A_log").detach().clone())
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **place)
        gamma = None if init_layer_scale is None else torch.full((d_model,), init_layer_scale)
        self.gamma = None if gamma is None else nn.Parameter(gamma.to(device))

    def _add_way(self, way: str, conv_bias: bool, place: dict[str, Any]) -> None:
        """Convolution, projections, A and D of the way forwards ("") or back ("_b")."""
        inner_dim, rank, states = self.d_inner, self.dt_rank, self.d_state
        convolution = nn.Conv1d(
            inner_dim,
            inner_dim,
            self.d_conv,
            groups=inner_dim,
            padding=self.d_conv - 1,
            bias=conv_bias,
            **place,
        )
        self.add_module(f"conv1d{way}", convolution)
        x_proj = nn.Linear(inner_dim, rank + 2 * states, bias=False, **place)
        self.add_module(f"x_proj{way}", x_proj)
        self.add_module(f"dt_proj{way}", nn.Linear(rank, inner_dim, **place))
        A = torch.arange(1, states + 1, dtype=torch.float32, device=place["device"])
        A_log = nn.Parameter(A.log().repeat(inner_dim, 1))
        self.register_parameter(f"A{way}_log", A_log)
        self.register_parameter(f"D{way}", nn.Parameter(torch.ones(inner_dim, device=A.device)))

    @torch.no_grad()
    def _reset_way(
        self, way: str, low: float, high: float, init: str, scale: float, floor: float
    ) -> None:
        """delta log-uniform in [low, high], at least `floor`; its weights of order rank^-1/2."""
        projection = getattr(self, f"dt_proj{way}")
        spread = self.dt_rank**-0.5 * scale
        if init == "constant":
            nn.init.constant_(projection.weight, spread)
        else:
            nn.init.uniform_(projection.weight, -spread, spread)
        drawn = torch.empty_like(projection.bias).uniform_(math.log(low), math.log(high))
        delta = drawn.exp().clamp(min=floor)
        projection.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus^-1

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(batch, L, d_model) to (batch, L, d_model).

        Raises:
            InputError: with `inference_params`, which would decode step by step.
        """
        if inference_params is not None:
            raise InputError(
                "inference_params is given, and this stand-in of Mamba runs whole sequences only: "
                "leave it out"
            )
        xz = self.in_proj(hidden_states).transpose(1, 2)
        if self.bimamba_type == "v2":
            y = self._way("", xz) + self._way("_b", xz.flip(-1)).flip(-1)
        else:
            y = self._way("", xz)
        y = (y / 2 if self.if_divide_out and self.bimamba_type == "v2" else y).transpose(1, 2)
        out = F.linear(y, self.out_proj.weight, self.out_proj.bias)
        return out if self.gamma is None else out * self.gamma

    def _way(self, way: str, xz: Tensor) -> Tensor:
        """The gated scan (batch, E, L) of one way."""
        conv1d, x_proj, dt_proj, A_log, D = (
            getattr(self, name)
            for name in (f"conv1d{way}", f"x_proj{way}", f"dt_proj{way}", f"A{way}_log", f"D{way}")
        )
        return inner(
            xz,
            conv1d.weight,
            conv1d.bias,
            x_proj.weight,
            dt_proj.weight,
            -torch.exp(A_log.float()),
            A_b=-torch.exp(self.A_b_log.float()) if self.bimamba_type == "v1" else None,
            D=D.float(),
            delta_bias=dt_proj.bias.float(),
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) weight over the last axis."""

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.bias: nn.Parameter | None = None

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Any:
        return rms_norm_fn(x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    """RMS norm of x + residual; with `prenorm` also that sum, which is the next residual."""
    total, residual = _add(x, residual, residual_in_fp32)
    y = rms_norm(total, weight, eps, bias).to(x.dtype)
    return (y, residual) if prenorm else y


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """Layer norm of x + residual, else as `rms_norm_fn`."""
    if is_rms_norm:
        return rms_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32)
    total, residual = _add(x, residual, residual_in_fp32)
    y = F.layer_norm(total.to(weight.dtype), weight.shape, weight, bias, eps).to(x.dtype)
    return (y, residual) if prenorm else y


def _add(x: Tensor, residual: Tensor | None, in_fp32: bool) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    return total, total.to(torch.float32) if in_fp32 else total
