"""The ablation of TFANet's paper, counted again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tfanet.model.cost import describe
from tfanet.model.tfanet.config import TFANetConfig

__all__ = ["table4"]

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
