"""Importable stand-ins of mamba_ssm, causal_conv1d and the selective_scan_cuda extensions.

They hold the names that vision models import at their top, with the official signatures, and
compute with `selective_scan`. A package that is installed and can be imported is left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor

from tfanet.errors import InputError, MissingDependencyError

from . import entry_points, mamba_block
from .reference import last_state

__all__ = ["Standins"]


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
    """mamba-ssm's; see `tfanet.plugins.entry_points.scan`."""
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
    """mamba-ssm's; see `tfanet.plugins.entry_points.inner`."""
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
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """causal-conv1d's, without packed sequences."""
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
        y = entry_points.scan(*operands, None, bias, softplus, oflex=oflex)
        # Callers read the last state from the odd places of the states of the last chunk.
        state = last_state(u, delta, A, B, bias, softplus)
        states = state.repeat_interleave(2, dim=-1).unsqueeze(2)
        if z is None:
            return [y, states]
        gated = entry_points.scan(*operands, z, bias, softplus)
        return [y, states, gated]

    return fwd


def _no_backward(*_: Any, **__: Any) -> None:
    raise InputError(
        "the stand-in of selective_scan_cuda has no backward pass: train inside "
        "tfanet.plugins.exportable(), whose operator has gradients"
    )


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
    "layer_norm_fn": mamba_block.layer_norm_fn,
    "rms_norm_fn": mamba_block.rms_norm_fn,
}
_OTHER_SCANS = ("Mamba2", "Mamba2Simple", "Mamba3")
# Packages, each with its modules and their names.
_PACKAGES: dict[str, dict[str, dict[str, Any]]] = {
    "mamba_ssm": {
        "mamba_ssm": {
            "Mamba": mamba_block.Mamba,
            "selective_scan_fn": selective_scan_fn,
            "mamba_inner_fn": mamba_inner_fn,
        },
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {"Mamba": mamba_block.Mamba},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": _SCANS,
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.layer_norm": _NORMS,
        "mamba_ssm.ops.triton.layernorm": _NORMS,
        "mamba_ssm.utils": {},
        "mamba_ssm.utils.generation": {"GenerationMixin": GenerationMixin},
        "mamba_ssm.utils.hf": {
            "load_config_hf": _no_download,
            "load_state_dict_hf": _no_download,
        },
    },
    "causal_conv1d": {
        "causal_conv1d": _CONVOLUTIONS,
        "causal_conv1d.causal_conv1d_interface": _CONVOLUTIONS,
    },
    "selective_scan_cuda": {
        "selective_scan_cuda": {"fwd": _cuda_fwd(True, False), "bwd": _no_backward}
    },
    "selective_scan_cuda_core": {
        "selective_scan_cuda_core": {"fwd": _cuda_fwd(False, False), "bwd": _no_backward}
    },
    "selective_scan_cuda_oflex": {
        "selective_scan_cuda_oflex": {"fwd": _cuda_fwd(False, True), "bwd": _no_backward}
    },
}


def _missing(name: str) -> Any:
    """`__getattr__` of the stand-in modules."""
    if name in _OTHER_SCANS:
        raise ImportError(
            f"the stand-in of mamba_ssm has no {name}: Mamba-2 and Mamba-3 use other scans than "
            "tfanet::SelectiveScan; install mamba-ssm to run it"
        )
    raise AttributeError(name)


class Standins:
    """The stand-in modules that are in `sys.modules`."""

    def __init__(self) -> None:
        self._added: dict[str, ModuleType] = {}

    def add(self) -> tuple[str, ...]:
        """Add what can't be imported; returns the names of the packages that are stand-ins."""
        for package, modules in _PACKAGES.items():
            if package not in self._added and not _can_import(package):
                self._add(modules)
        return tuple(name for name in self._added if name in _PACKAGES)

    def remove(self) -> None:
        for name, module in self._added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        self._added = {}

    def _add(self, modules: dict[str, dict[str, Any]]) -> None:
        for name, members in modules.items():
            module = ModuleType(name, f"Stand-in of {name} by tfanet.")
            module.__dict__.update(members, __getattr__=_missing)
            # A spec, so that importlib.util.find_spec answers; a path, so that parts are found.
            module.__spec__ = ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            sys.modules[name] = self._added[name] = module
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)


def _can_import(package: str) -> bool:
    """Whether it is there and loads; a package that needs Triton or CUDA may be there and not."""
    if package in sys.modules:
        return True
    if importlib.util.find_spec(package) is None:
        return False
    before = set(sys.modules)
    try:
        importlib.import_module(package)
    except Exception:  # whatever a half-installed extension raises
        for name in set(sys.modules) - before:
            if name.split(".")[0] == package:
                del sys.modules[name]
        return False
    return True
