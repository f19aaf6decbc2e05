"""The parallel body outside ONNX Runtime: TensorRT-RTX builds it, OpenVINO runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_scans
import pytest
from other_runtimes import build_in_tensorrt_rtx, needs_tensorrt_rtx

from tfanet.plugins.graph.attach import attach


@needs_tensorrt_rtx
@pytest.mark.parametrize("states", [1, 4])
def test_tensorrt_rtx_builds_the_parallel_body(tmp_path: Path, states: int) -> None:
    scans = [onnx_scans.Scan(length=225, states=states, optional=o) for o in (("D",), ("z",))]
    model = attach(onnx_scans.chain(*scans).model, "parallel")
    assert build_in_tensorrt_rtx(model, tmp_path) > 10_000


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed: pip install openvino",
)
@pytest.mark.parametrize("states", [1, 4])
def test_openvino_runs_the_inlined_parallel_body(states: int) -> None:
    import openvino

    core = openvino.Core()
    # CPUs with AMX or bfloat16 would otherwise compute in bfloat16.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for length in (15, 225, 900):
        scan = onnx_scans.Scan(length=length, states=states, optional=("D", "delta_bias", "z"))
        case = onnx_scans.chain(scan, seed=length)
        model = onnx.inliner.inline_local_functions(attach(case.model, "parallel"))
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
        result = np.asarray(compiled(case.feeds)[0])
        assert onnx_scans.error(result, case.expected) < 2e-6
