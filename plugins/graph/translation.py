"""PyTorch's operators as ONNX nodes, for `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

import tfanet.plugins.pytorch.ss2d  # noqa: F401  (registers torch.ops.tfanet.ss2d, selective_scan)
from tfanet.plugins.graph.schemas import schema
from tfanet.plugins.operands import DOMAIN, SELECTIVE_SCAN, SS2D, VERSION

__all__ = ["custom_translation_table"]


def custom_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(dynamo=True, custom_translation_table=...)`: one node per scan.

    The model that comes out holds bare nodes; `tfanet.plugins.attach` adds the function that lets
    runtimes without the operator library run them.
    """
    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    operator, fused = (
        onnxscript.values.Op(opset, x.op_type, schema(x)) for x in (SELECTIVE_SCAN, SS2D)
    )

    def selective_scan(
        u: Any,
        delta: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any = None,
        z: Any = None,
        delta_bias: Any = None,
        delta_softplus: bool = False,
    ) -> Any:
        return operator(u, delta, A, B, C, D, delta_bias, z, delta_softplus=int(delta_softplus))

    def ss2d(u: Any, x_proj_weight: Any, dt_weight: Any, dt_bias: Any, A: Any, D: Any) -> Any:
        return fused(u, x_proj_weight, dt_weight, dt_bias, A, D)

    return {
        torch.ops.tfanet.selective_scan.default: selective_scan,
        torch.ops.tfanet.ss2d.default: ss2d,
    }
