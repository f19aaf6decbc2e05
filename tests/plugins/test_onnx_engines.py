"""The parallel body outside ONNX Runtime: TensorRT-RTX builds it, OpenVINO runs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest

from tfanet.plugins.function_body import attach

BUILD = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network()
parser = trt.OnnxParser(network, logger)
if not parser.parse(open(sys.argv[1], "rb").read()):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
profile = builder.create_optimization_profile()
for i in range(network.num_inputs):
    tensor = network.get_input(i)
    shape = list(tensor.shape)
    if -1 in shape:
        sizes = [[n if s == -1 else s for s in shape] for n in (1, 2, 4)]
        profile.set_shape(tensor.name, *sizes)
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print(0 if engine is None else engine.nbytes)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13",
)
@pytest.mark.parametrize("states", [1, 4])
def test_tensorrt_rtx_builds_the_parallel_body(
    onnx_scans: Any, tmp_path: Path, states: int
) -> None:
    scans = [onnx_scans.Scan(length=225, states=states, optional=o) for o in (("D",), ("z",))]
    path = tmp_path / "model.onnx"
    onnx.save(attach(onnx_scans.chain(*scans).model, "parallel"), path)
    # A child process: the parser aborts its process on some mistakes.
    command = [sys.executable, "-c", BUILD, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 10_000


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed: pip install openvino",
)
@pytest.mark.parametrize("states", [1, 4])
def test_openvino_runs_the_inlined_parallel_body(onnx_scans: Any, states: int) -> None:
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
