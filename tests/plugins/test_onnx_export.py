"""torch.onnx.export of torch.ops.tfanet.selective_scan: one node per call, checked and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_scans
import pytest
import torch

from tfanet.plugins import custom_translation_table, selective_scan
from tfanet.plugins.graph.attach import attach, count_scan_nodes

import onnxruntime


class TwoScans(torch.nn.Module):
    """One scan with D, delta_bias and softplus, and one on its result with the inputs given."""

    def __init__(self, second: tuple[str, ...], rank: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.A_log = torch.nn.Parameter(torch.randn(8, 3))
        self.D = torch.nn.Parameter(torch.randn(8))
        self.delta_bias = torch.nn.Parameter(torch.randn(8) - 3)
        self.second, self.rank = second, rank

    def forward(
        self, u: torch.Tensor, delta: torch.Tensor, B: torch.Tensor, C: torch.Tensor
    ) -> torch.Tensor:
        A = -torch.exp(self.A_log)
        y = selective_scan(u, delta, A, B, C, self.D, None, self.delta_bias, True)
        if self.rank == 3:
            B, C = B[:, 0], C[:, 0]
        given = {"D": self.D, "z": u, "delta_bias": self.delta_bias}
        optional = {name: given[name] for name in self.second}
        return selective_scan(y, delta, A, B, C, **optional, delta_softplus=True)


def inputs(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    sequence, grouped = (batch, 8, length), (batch, 2, 3, length)
    return (
        torch.randn(sequence),
        torch.rand(sequence) - 2,
        torch.randn(grouped),
        torch.randn(grouped),
    )


def export(module: torch.nn.Module, path: Path, opset: int, fixed_length: bool) -> onnx.ModelProto:
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=64)}
    dynamic = [
        axes if fixed_length else {**axes, x.dim() - 1: torch.export.Dim("length", min=2)}
        for x in inputs(2, 50)
    ]
    program = torch.onnx.export(
        module.eval(),
        inputs(2, 50),
        dynamo=True,
        dynamic_shapes=dynamic,
        opset_version=opset,
        custom_translation_table=custom_translation_table(),
        verbose=False,
    )
    assert program is not None
    program.save(path)
    model = onnx.load(path)
    model.ir_version = 10
    return model


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_export_has_one_node_per_call(tmp_path: Path, opset: int, kind: str) -> None:
    module = TwoScans(("D", "delta_bias"), rank=4)
    bare = export(module, tmp_path / "bare.onnx", opset, fixed_length=kind == "parallel")
    assert count_scan_nodes(bare) == 2
    assert all(all(n.input) for n in bare.graph.node if n.domain == "tfanet")
    assert next(o.version for o in bare.opset_import if not o.domain) == opset
    model = attach(bare, kind)
    assert len(model.graph.node) == len(bare.graph.node)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"

    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    shapes = ((1, 50), (5, 50)) if kind == "parallel" else ((1, 50), (3, 2), (2, 301))
    for batch, length in shapes:
        tensors = inputs(batch, length, seed=batch)
        feeds = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
        with torch.no_grad():
            expected = module(*tensors).numpy()
        assert onnx_scans.error(session.run(None, feeds)[0], expected) < 2e-6


@pytest.mark.parametrize("second", [(), ("z",), ("D", "z"), ("delta_bias",)])
@pytest.mark.parametrize("rank", [3, 4])
def test_optional_inputs_and_ranks(tmp_path: Path, second: tuple[str, ...], rank: int) -> None:
    module = TwoScans(second, rank)
    model = attach(export(module, tmp_path / "m.onnx", 20, fixed_length=False), "sequential")
    assert count_scan_nodes(model) == 2
    onnx.checker.check_model(model, full_check=True)
    tensors = inputs(3, 41, seed=7)
    feeds = {i.name: t.numpy() for i, t in zip(model.graph.input, tensors, strict=True)}
    with torch.no_grad():
        expected = module(*tensors).numpy()
    result = onnx_scans.run(model, feeds)
    assert result.dtype == np.float32
    assert onnx_scans.error(result, expected) < 2e-6
