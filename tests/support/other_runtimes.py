"""Models in runtimes that need a process of their own: the lowest ONNX Runtime, TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from built import need_lowest_onnxruntime
from onnx import ModelProto

needs_tensorrt_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13",
)
RUN = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime

folder, library = map(Path, sys.argv[1:])
feeds = dict(np.load(folder / "feeds.npz"))
for path in folder.glob("*.onnx"):
    for way in ("library", "ENABLE_ALL", "ENABLE_BASIC", "DISABLE_ALL"):
        if path.stem == "none" and way != "library":
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if way == "library":
            for _ in range(2):  # once more is no error
                options.register_custom_ops_library(str(library))
        else:
            level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{way}")
            options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(str(path), options)
        np.save(folder / f"{path.stem}-{way}.npy", session.run(None, feeds)[0])
print(onnxruntime.__version__)
"""
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


def run_in_lowest(
    models: Mapping[str, ModelProto],
    feeds: Mapping[str, np.ndarray],
    library: Path,
    folder: Path,
) -> list[np.ndarray]:
    """First outputs of models by their kind of function, with the library and without.

    Without it at each level of optimisation, since a body may run at some only. The kind "none"
    runs with the library alone. Skips where that runtime is not installed.
    """
    lowest = need_lowest_onnxruntime()
    np.savez(folder / "feeds.npz", **feeds)
    for kind, model in models.items():
        onnx.save(model, folder / f"{kind}.onnx")
    done = subprocess.run(
        [sys.executable, "-c", RUN, folder, library],
        env={**os.environ, "PYTHONPATH": str(lowest)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1.20.")
    return [np.load(path) for path in sorted(folder.glob("*.npy"))]


def build_in_tensorrt_rtx(model: ModelProto, folder: Path) -> int:
    """Bytes of the engine. In a child process: the parser aborts its process on some mistakes."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    command = [sys.executable, "-c", BUILD, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])
