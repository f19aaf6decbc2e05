"""What stands in for mamba_ssm, causal_conv1d and their CUDA extensions: names and what they do.

They hold the names that vision models import at their top, with the official signatures, and
compute with `selective_scan`. `standin_import` makes them importable where the real ones are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.compat import entry_points, mamba_block
from tfanet.plugins.pytorch.reference import last_state

__all__ = ["OTHER_SCANS", "PACKAGES", "in_extension", "is_other_module", "unknown_extension"]

_IN_EXTENSION: ContextVar[bool] = ContextVar("_IN_EXTENSION", default=False)


def in_extension() -> bool:
    """Whether a CUDA extension's stand-in is computing, under a project's own code."""
    return _IN_EXTENSION.get()


@contextmanager
def _extension() -> Iterator[None]:
    token = _IN_EXTENSION.set(True)
    try:
        yield
    finally:
        _IN_EXTENSION.reset(token)


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """mamba-ssm's; see `tfanet.plugins.compat.entry_points.scan`."""
    return entry_points.scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """mamba-ssm's; see `tfanet.plugins.compat.entry_points.inner`."""
    leading = (xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    given = _inner_arguments(args, kwargs)
    return entry_points.inner(*leading, A, out_proj_weight, out_proj_bias, **given)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Vim's, both ways through one set of projections."""
    leading = (xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    given = _inner_arguments(args, kwargs)
    return entry_points.inner(*leading, A, out_proj_weight, out_proj_bias, A_b, **given)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Vim's: the gated scan, without the output projection."""
    leading = (xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    return entry_points.inner(*leading, A, **_inner_arguments(args, kwargs))


_INNER_TAIL = (
    *("B", "C", "D", "delta_bias", "B_proj_bias", "C_proj_bias", "delta_softplus"),
    *("checkpoint_lvl", "b_rms_weight", "c_rms_weight", "dt_rms_weight", "b_c_dt_rms_eps"),
)


def _inner_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    given = {**dict(zip(_INNER_TAIL, args, strict=False)), **kwargs}
    given.pop("checkpoint_lvl", None)  # what the backward pass keeps
    return given


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """causal-conv1d's, without packed sequences.

    The activation was the fourth argument in its first releases and the fifth in those after:
    a text in these places is one.
    """
    for value in (seq_idx, initial_states):
        if isinstance(value, str):
            if activation is not None:
                raise InputError(
                    f"causal_conv1d_fn: the activation is given twice, {value!r} by its place and "
                    f"{activation!r} by name; give it once"
                )
            activation = value
    seq_idx, initial_states = (
        None if isinstance(value, str) else value for value in (seq_idx, initial_states)
    )
    if seq_idx is not None or final_states_out is not None:
        raise InputError(
            "causal_conv1d_fn: seq_idx and final_states_out have no meaning for a standard "
            "convolution; pass one sequence per batch entry"
        )
    return entry_points.causal_conv1d(
        x, weight, bias, activation, initial_states, return_final_states
    )


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """causal-conv1d's, without a circular state."""
    return entry_points.causal_conv1d_update(x, conv_state, weight, bias, activation)


# Places of the arguments behind `residual`, in mamba-ssm 1 and since 2, whose first is a tensor.
_NORM_1 = ("prenorm", "residual_in_fp32", "eps")
_NORM_2 = ("x1", "weight1", "bias1", "eps", "dropout_p", "rowscale", "prenorm", "residual_in_fp32")
_NORM_ORDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rms_norm_fn": (_NORM_1, (*_NORM_2, "return_dropout_mask")),
    "layer_norm_fn": (
        ("eps", "prenorm", "residual_in_fp32", "is_rms_norm"),
        (*_NORM_2, "is_rms_norm", "return_dropout_mask"),
    ),
}


def _norm(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """mamba-ssm's fused norm of that name, whose arguments changed places between releases."""
    older, newer = _NORM_ORDERS[name]
    meaningless = {*newer} - {*older}

    def norm(
        x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        order = older if args and isinstance(args[0], bool | int | float) else newer
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        for key in meaningless & {*given}:
            value = given.pop(key)
            if isinstance(value, Tensor) or value not in (None, False, 0.0):
                raise InputError(
                    f"{name}: the argument {key!r} has no meaning for this stand-in; leave it out"
                )
        return implementation(x, weight, bias, residual, **given)

    norm.__name__ = norm.__qualname__ = name
    return norm


def _cuda_fwd(has_z: bool, has_oflex: bool) -> Callable[..., list[Tensor]]:
    """`fwd` of a selective_scan_cuda extension: [y, states] or, with z, [y, states, gated y]."""

    def fwd(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        *rest: Any,
    ) -> list[Tensor]:
        z, rest = (rest[0], rest[1:]) if has_z else (None, rest)
        bias, softplus = rest[:2]
        oflex = bool(rest[3]) if has_oflex and len(rest) > 3 else False
        operands = (u, delta, A, B, C, D)
        with _extension():
            y = entry_points.scan(*operands, None, bias, softplus, oflex=oflex)
            gated = None if z is None else entry_points.scan(*operands, z, bias, softplus)
        # Callers read the last state from the odd places of the states of the last chunk.
        state = last_state(u, delta, A, B, bias, softplus)
        states = state.repeat_interleave(2, dim=-1).unsqueeze(2)
        return [y, states] if gated is None else [y, states, gated]

    return fwd


# What stands between the bias and the choice of SiLU, by the number of such arguments.
_CONV_PLACES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("seq_idx",),
    3: ("seq_idx", "initial_states", "final_states_out"),
    4: ("seq_idx", "initial_states", "out", "final_states_out"),
}


def _cuda_conv_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """`causal_conv1d_fwd` of every release of the extension, which took more arguments in each."""
    places = _CONV_PLACES.get(len(rest) - 1)
    if places is None:
        raise InputError(
            f"causal_conv1d_cuda.causal_conv1d_fwd: {3 + len(rest)} arguments are given, expected "
            "4, 5, 7 or 8 as in causal-conv1d's releases"
        )
    given = dict(zip(places, rest[:-1], strict=True))
    out = given.pop("out", None)
    activation = "silu" if rest[-1] else None
    y: Tensor = causal_conv1d_fn(x, weight, bias, **given, activation=activation)
    return y if out is None else out.copy_(y)


def _refusing(name: str, why: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError(f"{name}: {why}")

    return refuse


_no_backward = _refusing(
    "a CUDA extension's stand-in",
    "it has no backward pass: train inside tfanet.plugins.exportable(), whose operator has one",
)
_ONE_STEP = "a stand-in runs whole sequences only, not one step after the other: install mamba-ssm"


def _no_download(*_: Any, **__: Any) -> None:
    raise MissingDependencyError(
        "the stand-in of mamba_ssm downloads nothing: load a checkpoint with torch.load, or "
        "install mamba-ssm"
    )


class GenerationMixin:
    """Base class of language models that generate text; a vision model only inherits it."""


_SCANS: dict[str, Any] = {
    "selective_scan_fn": selective_scan_fn,
    "selective_scan_ref": selective_scan_fn,
    "mamba_inner_fn": mamba_inner_fn,
    "mamba_inner_ref": mamba_inner_fn,
    "bimamba_inner_fn": bimamba_inner_fn,
    "mamba_inner_fn_no_out_proj": mamba_inner_fn_no_out_proj,
}
_CONVOLUTIONS: dict[str, Any] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
}
_NORMS: dict[str, Any] = {
    "RMSNorm": mamba_block.RMSNorm,
    "layer_norm_fn": _norm("layer_norm_fn", mamba_block.layer_norm_fn),
    "rms_norm_fn": _norm("rms_norm_fn", mamba_block.rms_norm_fn),
}
# Packages, each with its modules and their names; what others of them import comes first.
PACKAGES: dict[str, dict[str, dict[str, Any]]] = {
    **{
        name: {name: {"fwd": _cuda_fwd(has_z, has_oflex), "bwd": _no_backward}}
        for name, has_z, has_oflex in (
            ("selective_scan_cuda", True, False),
            ("selective_scan_cuda_core", False, False),
            ("selective_scan_cuda_oflex", False, True),
        )
    },
    "causal_conv1d_cuda": {
        "causal_conv1d_cuda": {
            "causal_conv1d_fwd": _cuda_conv_fwd,
            "causal_conv1d_bwd": _no_backward,
            "causal_conv1d_update": _refusing("causal_conv1d_cuda.causal_conv1d_update", _ONE_STEP),
        }
    },
    "causal_conv1d": {
        "causal_conv1d": _CONVOLUTIONS,
        "causal_conv1d.causal_conv1d_interface": _CONVOLUTIONS,
    },
    "mamba_ssm": {
        "mamba_ssm": {
            "Mamba": mamba_block.Mamba,
            "selective_scan_fn": selective_scan_fn,
            "mamba_inner_fn": mamba_inner_fn,
        },
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {
            "Mamba": mamba_block.Mamba,
            "Block": mamba_block.MixerBlock,
        },
        "mamba_ssm.modules.block": {"Block": mamba_block.Block},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": _SCANS,
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.layer_norm": _NORMS,
        "mamba_ssm.ops.triton.layernorm": _NORMS,
        "mamba_ssm.ops.triton.selective_state_update": {
            "selective_state_update": _refusing("selective_state_update", _ONE_STEP)
        },
        "mamba_ssm.utils": {},
        "mamba_ssm.utils.generation": {"GenerationMixin": GenerationMixin},
        "mamba_ssm.utils.hf": {
            "load_config_hf": _no_download,
            "load_state_dict_hf": _no_download,
        },
    },
}
# What belongs to Mamba-2 and Mamba-3, wherever it is imported from.
OTHER_SCANS = (
    *("Mamba2", "Mamba2Simple", "Mamba3", "ssd_minimal_discrete", "ssd_selective_scan"),
    *("mamba_chunk_scan", "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    *("mamba_conv1d_scan_ref", "mamba_split_conv1d_scan_ref", "ssd_chunk_scan_combined_ref"),
)
_OTHER_MODULES = re.compile(
    r"mamba_ssm\.(modules\.(mamba[23]\w*|ssd_minimal)"
    r"|ops\.(cute|tilelang|triton\.(ssd_\w+|mamba3\w*|layernorm_gated))(\..*)?)"
)


def is_other_module(name: str) -> bool:
    """Whether mamba-ssm's module of that name is of Mamba-2 or Mamba-3."""
    return _OTHER_MODULES.fullmatch(name) is not None


def unknown_extension(name: str) -> dict[str, Any] | None:
    """`fwd` and `bwd` of a variant of selective_scan_cuda that we don't know; None for other names.

    A project that wraps one is loaded; its entry points are ours, or refused when they call it.
    """
    if not re.fullmatch(r"selective_scan_cuda_\w+", name):
        return None
    why = (
        "this variant of selective_scan_cuda is not known, and it was called outside the known "
        "entry points: call tfanet.plugins.selective_scan there"
    )
    return {part: _refusing(f"{name}.{part}", why) for part in ("fwd", "bwd")}
