"""Mamba's block and its norms as mamba-ssm and Vim define them, for the stand-ins.

Parameters have the official names and shapes, so checkpoints fit. Glossary, in the official names:
d_inner = expand * d_model channels of the scan, d_state states, dt_rank of delta; L steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.plugins.compat.entry_points import inner, rms_norm

__all__ = ["Block", "Mamba", "MixerBlock", "RMSNorm", "layer_norm_fn", "rms_norm_fn"]


# The ways of reading a sequence, by the suffix of their parameters.
_WAYS = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}


class Mamba(nn.Module):
    """Mamba's block: (batch, L, d_model) to the same. Whole sequences only, no decoding.

    Args:
        dt_rank: "auto" for ceil(d_model / 16). bimamba_type: "none", Vim's "v1" (a second A for
            the way back) and "v2" (a second set of everything behind the input projection), or
            SegMamba's "v3" (a third set, for the steps in turn from each of `nslices` slices).
        if_divide_out, if_devide_out: the mean of both ways instead of their sum, in v2.
        init_layer_scale: start of a factor per channel on the result.
        nslices: of v3; L must be divisible by it. bimamba: VideoMamba's choice of v2 by a bool.
            Others as in mamba-ssm.

    Raises:
        InputError: for an unknown bimamba_type or dt_init, for choices that exclude each other, and
            for an argument of a fork that is none of these.
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
        *,
        if_devide_out: bool = False,
        nslices: int | None = None,
        bimamba: bool | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if_divide_out = if_divide_out or if_devide_out
        bimamba_type = _which_ways(bimamba_type, bimamba, nslices, if_divide_out, use_fast_path)
        if others:
            raise InputError(
                f"the stand-in of Mamba has no argument {next(iter(others))!r}: it is of a "
                "project's own mamba_ssm; put that package on PYTHONPATH, and it is used instead"
            )
        if dt_init not in ("random", "constant"):
            raise InputError(f"dt_init is {dt_init!r}, expected 'random' or 'constant'")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out = bimamba_type, if_divide_out
        self.nslices = 5 if nslices is None else nslices
        place = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=bias, **place)
        for way in _WAYS[bimamba_type]:
            self._add_way(way, conv_bias, place)
            self._reset_way(way, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        if bimamba_type == "v1":
            self.A_b_log = nn.Parameter(self.get_parameter("A_log").detach().clone())
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **place)
        gamma = None if init_layer_scale is None else torch.full((d_model,), init_layer_scale)
        self.gamma = None if gamma is None else nn.Parameter(gamma.to(device))

    def _add_way(self, way: str, conv_bias: bool, place: dict[str, Any]) -> None:
        """Convolution, projections, A and D of one way: "", "_b" or "_s"."""
        d_inner, rank, states = self.d_inner, self.dt_rank, self.d_state
        convolution = nn.Conv1d(
            d_inner,
            d_inner,
            self.d_conv,
            groups=d_inner,
            padding=self.d_conv - 1,
            bias=conv_bias,
            **place,
        )
        self.add_module(f"conv1d{way}", convolution)
        x_proj = nn.Linear(d_inner, rank + 2 * states, bias=False, **place)
        self.add_module(f"x_proj{way}", x_proj)
        self.add_module(f"dt_proj{way}", nn.Linear(rank, d_inner, **place))
        A = torch.arange(1, states + 1, dtype=torch.float32, device=place["device"])
        A_log = nn.Parameter(A.log().repeat(d_inner, 1))
        self.register_parameter(f"A{way}_log", A_log)
        self.register_parameter(f"D{way}", nn.Parameter(torch.ones(d_inner, device=A.device)))

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

    def forward(self, hidden_states: Tensor, inference_params: Any = None, T: int = 1) -> Tensor:
        """(batch, L, d_model) to (batch, L, d_model). T is VideoMamba's, which does not use it.

        Raises:
            InputError: with `inference_params`, which would decode step by step, and for an L that
                `nslices` does not divide.
        """
        if inference_params is not None:
            raise InputError(
                "inference_params is given, and this stand-in of Mamba runs whole sequences only: "
                "leave it out"
            )
        xz = self.in_proj(hidden_states).transpose(1, 2)
        y = self._way("", xz)
        if self.bimamba_type in ("v2", "v3"):
            y = y + self._way("_b", xz.flip(-1)).flip(-1)
        if self.bimamba_type == "v3":
            y = y + self._in_turn(self._way("_s", self._in_turn(xz, self.nslices)), None)
        y = (y / 2 if self.if_divide_out and self.bimamba_type == "v2" else y).transpose(1, 2)
        out = F.linear(y, self.out_proj.weight, self.out_proj.bias)
        return out if self.gamma is None else out * self.gamma

    def _in_turn(self, x: Tensor, slices: int | None) -> Tensor:
        """(batch, channels, L): the first step of each slice, then the second, ...; None: back."""
        length = x.shape[-1]
        if isinstance(length, int) and length % self.nslices:
            raise InputError(
                f"the sequence has {length} steps, which nslices = {self.nslices} does not divide: "
                "give nslices that does, or another input size"
            )
        parts = (-1, self.nslices) if slices is None else (slices, -1)
        return x.unflatten(-1, parts).transpose(-1, -2).flatten(-2)

    def _way(self, way: str, xz: Tensor) -> Tensor:
        """The gated scan (batch, d_inner, L) of one way."""
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


def _which_ways(
    kind: str, bimamba: bool | None, slices: int | None, divide: bool, fast: bool
) -> str:
    """The bimamba_type that the arguments of one family mean together."""
    if kind not in _WAYS:
        raise InputError(f"bimamba_type is {kind!r}, expected 'none', 'v1', 'v2' or 'v3'")
    if bimamba is not None:  # VideoMamba
        if kind not in ("none", "v2" if bimamba else "none"):
            raise InputError(
                f"bimamba is {bimamba} and bimamba_type {kind!r}, which exclude each other: "
                "give one of them"
            )
        kind = "v2" if bimamba else "none"
    if slices is not None and (kind != "v3" or slices < 1):
        raise InputError(
            f"nslices is {slices} with bimamba_type {kind!r}: expected at least 1 with 'v3'"
        )
    if divide and kind == "v3":
        raise InputError(
            "if_divide_out has no published meaning with bimamba_type 'v3': leave it out"
        )
    if kind != "none" and not fast:
        raise InputError(
            f"use_fast_path is False with bimamba_type {kind!r}: the published code then reads "
            "forwards only; leave use_fast_path out for both ways, or bimamba_type for one"
        )
    return kind


class Block(nn.Module):
    """mamba-ssm 2's residual block: add, norm, mixer and, unless it is nn.Identity, an MLP.

    Args:
        mixer_cls, mlp_cls, norm_cls: what makes them from `dim`. fused_add_norm: as the kernels
            do, which changes nothing but rounding. residual_in_fp32: keep the sums in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[..., nn.Module],
        mlp_cls: Callable[..., nn.Module],
        norm_cls: Callable[..., nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm, self.mixer = norm_cls(dim), mixer_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise InputError(
                f"fused_add_norm with a {type(self.norm).__name__}: expected LayerNorm or RMSNorm"
            )
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer: Any,
    ) -> tuple[Tensor, Tensor]:
        """(batch, L, dim) and the sum so far to the mixer's result and the new sum."""
        normed, residual = self._add_and_norm(self.norm, hidden_states, residual)
        y = self.mixer(normed, inference_params=inference_params, **mixer)
        if self.mlp is not None:
            y, residual = self._add_and_norm(self.norm2, y, residual)
            y = self.mlp(y)
        return y, residual

    def _add_and_norm(
        self, norm: nn.Module, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        total, kept = _add(x, residual, self.residual_in_fp32)
        weight: Any = norm.weight
        y: Tensor = norm(total.to(weight.dtype))
        return (y.to(x.dtype) if self.fused_add_norm else y), kept


class MixerBlock(Block):
    """mamba-ssm 1's, and its forks': without an MLP."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[..., nn.Module],
        norm_cls: Callable[..., nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) weight over the last axis."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
        *,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        if dropout_p:
            raise InputError(
                f"RMSNorm: dropout_p is {dropout_p}, and this stand-in only infers: give 0"
            )
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
    """RMS norm of x + residual; with `prenorm` also that sum, which is the next residual.

    By name: the places of the last three differ between releases (`standins` sorts that out).
    """
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
