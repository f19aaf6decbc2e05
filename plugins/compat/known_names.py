"""The entry points that are known, by name: what runs in their place, and how to recognise them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tfanet.plugins.compat import entry_points, mamba_block
from tfanet.plugins.pytorch.cross_scan import cross_merge, cross_scan

__all__ = ["BY_NAME", "COMMON_NAMES", "FAMILIES", "METHODS", "Family", "Function"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Family:
    """Entry points that mean the same, by the names of functions and of autograd Functions.

    `ignored` parameters choose how a thing is computed, never what. `probe`, for families whose
    names other code uses for other things, makes arguments to compare results on.
    """

    implementation: Function
    functions: tuple[str, ...]
    classes: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    probe: Callable[[], tuple[Any, ...]] | None = None


def _map(*shape: int, then: tuple[int, ...] = ()) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.arange(float(torch.Size(shape).numel())).reshape(shape), *then)


FAMILIES = (
    Family(
        entry_points.scan,
        (
            "selective_scan_fn",
            "selective_scan_ref",
            "selective_scan_torch",
            "mamba_selective_scan",
        ),
        (
            "SelectiveScan",
            "SelectiveScanCore",
            "SelectiveScanCuda",
            "SelectiveScanFn",
            "SelectiveScanMamba",
            "SelectiveScanNRow",
            "SelectiveScanOflex",
        ),
        aliases={"hidden_states": "u", "dt": "delta"},
        ignored=("nrows", "backnrows", "use_mambapy", "use_associative_scan"),
    ),
    Family(
        entry_points.inner,
        (
            "mamba_inner_fn",
            "mamba_inner_ref",
            "mamba_inner_fn_no_out_proj",
            "bimamba_inner_fn",
            "bimamba_inner_ref",
        ),
        ("MambaInnerFn", "MambaInnerFnNoOutProj", "BiMambaInnerFn"),
        ignored=("checkpoint_lvl",),
    ),
    Family(
        entry_points.causal_conv1d,
        ("causal_conv1d_fn", "causal_conv1d_ref"),
        ("CausalConv1dFn",),
    ),
    Family(mamba_block.layer_norm_fn, ("layer_norm_fn",)),
    Family(mamba_block.rms_norm_fn, ("rms_norm_fn",)),
    Family(
        cross_scan,
        ("cross_scan_fn",),
        ("CrossScan", "CrossScanF", "CrossScanTriton", "CrossScanTritonF"),
        ignored=("force_torch",),
        probe=_map(1, 2, 2, 3),
    ),
    Family(
        functools.partial(cross_scan, one_by_one=True),
        (),
        ("CrossScanTriton1b1",),
        probe=_map(1, 4, 2, 2, 3),
    ),
    Family(
        cross_merge,
        ("cross_merge_fn",),
        ("CrossMerge", "CrossMergeF", "CrossMergeTriton", "CrossMergeTritonF"),
        aliases={"ys": "y", "x": "y"},
        ignored=("force_torch",),
        probe=_map(1, 4, 2, 2, 3),
    ),
    Family(
        entry_points.window_reverse,
        ("window_reverse",),
        probe=_map(6, 4, 2, then=(2, 4, 6)),
    ),
)
# Methods, by module, class and name; each with what stands in for it where no cache is given.
METHODS = (
    (
        "transformers.models.mamba.modeling_mamba",
        "MambaMixer",
        "slow_forward",
        entry_points.mamba_mixer,
    ),
)
BY_NAME = {name: f for f in FAMILIES for name in (*f.functions, *f.classes)}
# Names that other code uses for other things: unlike parameters there mean nothing.
COMMON_NAMES = (
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "layer_norm_fn",
    "rms_norm_fn",
    "window_reverse",
)
