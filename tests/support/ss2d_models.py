"""What the tests of 2-D scans in ONNX share: operands, models, a run, the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from tfanet.plugins import ss2d_ref

import onnxruntime

NAMES = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
Arrays = dict[str, np.ndarray]


def arrays(
    batch: int = 2,
    channels: int = 8,
    height: int = 6,
    width: int = 5,
    rank: int = 3,
    states: int = 1,
) -> Arrays:
    """Random operands of SS2D, float32."""
    rng = np.random.default_rng([batch, channels, height, width, rank, states])
    values = (
        rng.standard_normal((batch, channels, height, width)),
        rng.standard_normal((4, rank + 2 * states, channels)) * channels**-0.5,
        rng.standard_normal((4, channels, rank)) * rank**-0.5,
        rng.standard_normal((4, channels)) - 2,
        -rng.uniform(0.1, 8, (4 * channels, states)),
        rng.standard_normal(4 * channels),
    )
    return {name: value.astype(np.float32) for name, value in zip(NAMES, values, strict=True)}


def model_of(
    node: NodeProto,
    inputs: Sequence[ValueInfoProto],
    constants: Sequence[TensorProto] = (),
    opset: int = 20,
) -> ModelProto:
    """One node, whose y is of the type and shape of the first input."""
    y = onnx.ValueInfoProto()
    y.CopyFrom(inputs[0])
    y.name = "y"
    graph = helper.make_graph([node], "g", inputs, [y], constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("tfanet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def options_with(library: Path | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return options


def run(model: ModelProto, x: Arrays, library: Path | None) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), options_with(library))
    return session.run(None, {i.name: x[i.name] for i in session.get_inputs()})[0]


def expected(x: Arrays) -> np.ndarray:
    return ss2d_ref(*(torch.from_numpy(x[name]) for name in NAMES)).numpy()


def error(result: np.ndarray, reference: np.ndarray) -> float:
    assert result.shape == reference.shape
    return float(np.abs(result - reference).max() / np.abs(reference).max())


def check(model: ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
