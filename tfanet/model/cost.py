"""Parameters, FLOPs and scan calls of a configuration, counted without allocating its weights.

FLOPs are 2 x multiply-accumulates of convolutions and matrix products, text tower included, plus
9 N + 1 per channel and step of every selective scan (VMamba's convention). At batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tfanet.model.config import check_image_size
from tfanet.model.tfanet.config import TFANetConfig
from tfanet.model.tfanet.network import TFANet
from tfanet.plugins.pytorch.ss2d import ss2d_flops

__all__ = ["describe", "table4"]


class _ScanCounter(FlopCounterMode):
    """Also notes the shape of every selective scan."""

    def __init__(self) -> None:
        self.scans: list[tuple[str, int, int, int, int]] = []
        scan, fused = torch.ops.tfanet.selective_scan, torch.ops.tfanet.ss2d
        mapping = {scan: self._count_scan, fused: self._count_ss2d}
        super().__init__(display=False, custom_mapping=mapping)

    def _count_scan(
        self,
        u: Sequence[int],
        delta: Sequence[int],
        A: Sequence[int],
        B: Sequence[int],
        *_: Any,
        **__: Any,
    ) -> int:
        groups, state, channels, length = B[1], A[1], u[1] // B[1], u[2]
        self.scans.append(("CSSM", groups, channels, state, length))
        return u[0] * u[1] * u[2] * (9 * state + 1)

    def _count_ss2d(
        self, u: Sequence[int], x_proj: Sequence[int], dt: Sequence[int], *_: Any, **__: Any
    ) -> int:
        state = (x_proj[1] - dt[2]) // 2
        self.scans.append(("SS2D", x_proj[0], u[1], state, u[2] * u[3]))
        return ss2d_flops(u, x_proj, dt)


def describe(config: TFANetConfig, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts of one forward pass.

    Returns:
        name, image_size, params, flops, and scans: for each distinct shape, in the order of the
        first call, where (SS2D: over pixels, CSSM: over channels), calls, groups K, channels D per
        group, state N and length L.

    Raises:
        InputError: for an image size that is not a multiple of 32.
    """
    size = image_size or config.image_size
    check_image_size(size)
    with torch.device("meta"):
        model = TFANet(replace(config, text=replace(config.text, pretrained=None))).eval()
        image = torch.empty(1, 3, *size)
        token_ids = torch.empty(1, config.text_length, dtype=torch.int64)
        mask = torch.empty(1, config.text_length)
    counter = _ScanCounter()
    with counter, torch.no_grad():
        model(image, token_ids, mask)
    calls: dict[tuple[str, int, int, int, int], int] = {}
    for scan in counter.scans:
        calls[scan] = calls.get(scan, 0) + 1
    keys = ("where", "groups", "channels", "state", "length")
    return {
        "name": config.name,
        "image_size": list(size),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "flops": counter.get_total_flops(),
        "scans": [
            {**dict(zip(keys, scan, strict=True)), "calls": count} for scan, count in calls.items()
        ],
    }


# The paper's Table 4: row, switches, M parameters, GFLOPs.
_TABLE4: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    ("baseline + CFSM", {"alignment": "gate", "wfdm": False}, 248.00, 201.55),
    ("+ MLAM", {"wfdm": False}, 262.98, 207.60),
    ("+ WFDM (TFANet)", {}, 268.46, 311.30),
)


def table4(config: TFANetConfig) -> list[dict[str, Any]]:
    """The ablation rows of `config` beside those of the paper's Table 4 (its 480x480 model).

    Returns:
        One dict per row: name, params, paper_params, flops, paper_flops.
    """
    rows = []
    for name, switches, params, flops in _TABLE4:
        counted = describe(replace(config, **switches))
        rows.append(
            {
                "name": name,
                "params": counted["params"],
                "paper_params": params * 1e6,
                "flops": counted["flops"],
                "paper_flops": flops * 1e9,
            }
        )
    return rows
