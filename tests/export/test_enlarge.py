"""Convolutions moved before an enlargement: the same numbers, and what must stay as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tfanet.export.enlarge import convolve_before_enlarging

RNG = np.random.default_rng(0)


def graph(
    *,
    resize: dict[str, Any] | None = None,
    conv: dict[str, Any] | None = None,
    scales: tuple[float, ...] = (1, 1, 2, 2),
    kernel: int = 3,
    both: bool = False,
    size: tuple[int, int] = (5, 3),
) -> onnx.ModelProto:
    """Enlarge, convolve, norm, activation, and a 1 x 1 convolution behind them."""
    nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    facts = {"mode": "nearest"} | nearest | (resize or {})
    pads = {"pads": [kernel // 2] * 4} | (conv or {})
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["big"], "up", **facts),
        helper.make_node("Conv", ["big", "w", "b"], ["c"], "conv", **pads),
        helper.make_node("BatchNormalization", ["c", "g", "b", "b", "v"], ["n"], "norm"),
        helper.make_node("LeakyRelu", ["n"], ["r"], "act", alpha=0.1),
        helper.make_node("Conv", ["r", "last"], ["y"], "last"),
    ]
    weights = {
        "scales": np.array(scales, np.float32),
        "w": RNG.standard_normal((4, 6, kernel, kernel)).astype(np.float32),
        "b": RNG.standard_normal(4).astype(np.float32),
        "g": RNG.standard_normal(4).astype(np.float32),
        "v": RNG.random(4).astype(np.float32) + 1,
        "last": RNG.standard_normal((2, 4, 1, 1)).astype(np.float32),
    }
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, "h", "w"])]
    if both:
        outputs.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, *size])]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2, 8)])
def test_the_numbers_are_the_same(size):
    model = graph(size=size)
    x = RNG.standard_normal((3, 6, *size)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    convolve_before_enlarging(model)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert "Resize" not in kinds and kinds.count("Conv") == 5 and "DepthToSpace" in kinds
    assert {tuple(t.dims) for t in model.graph.initializer if t.name[:2] == "w_"} == {(4, 6, 2, 2)}
    assert not [t.name for t in model.graph.initializer if t.name in ("w", "scales")]
    got = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": {"nearest_mode": "ceil"}},
        {"resize": {"mode": "linear"}},
        {"resize": {"coordinate_transformation_mode": "half_pixel"}},
        {"scales": (1, 1, 3, 2)},
        {"kernel": 5},
        {"conv": {"strides": [2, 2]}},
        {"conv": {"pads": [0, 0, 0, 0]}},
        {"conv": {"dilations": [2, 2]}},
        {"both": True},
    ],
)
def test_anything_else_stays(changes):
    model = graph(**changes)
    before = model.SerializeToString()
    convolve_before_enlarging(model)
    assert model.SerializeToString() == before
