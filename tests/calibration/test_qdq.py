"""The Q/DQ graph: its arithmetic against NumPy, and the pattern that runtimes fuse."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper, numpy_helper
from saturation import fake, fake_weight

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import QUANTISED, find_layers
from tfanet.calibration.rewrite.qdq import quantize, quantize_weight, ranged_values
from tfanet.errors import InputError

RNG = np.random.default_rng(5)


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with padding 1, place by place."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((x.shape[0], w.shape[0], *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", padded[:, :, i : i + 3, j : j + 3], w)
    return out + b[None, :, None, None]


@pytest.fixture
def residual():
    """ReLU(x + conv(ReLU(conv(x)))), then a projection of each pixel and a softplus."""
    constants = {
        "w1": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "b1": RNG.standard_normal(4).astype(np.float32),
        "w2": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "b2": RNG.standard_normal(4).astype(np.float32),
        "w3": RNG.standard_normal((4, 6)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sigmoid", ["image"], ["x"], "sigmoid"),
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "a/conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "b/conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["x", "c2"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["r2"], "relu2"),
        helper.make_node("Transpose", ["r2"], ["t"], "t", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "w3"], ["p"], "c/matmul"),
        helper.make_node("Softplus", ["p"], ["y"], "softplus"),
    ]
    model = small_models.make_model(
        nodes, {"image": ["batch", 4, 6, 5]}, {"y": ["batch", 6, 5, 6]}, constants
    )
    return model, constants


AMAX = {"x": 1.0, "r1": 9.0, "c2": 25.0, "t": 20.0}


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


@pytest.mark.parametrize("unsigned", [False, True])
def test_the_graph_computes_what_numpy_does_with_rounded_values(residual, unsigned):
    model, w = residual
    layers = find_layers(GraphIndex(model))
    got = quantize(model, layers, AMAX, unsigned=unsigned)
    onnx.checker.check_model(got, full_check=True)
    image = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)

    x = fake(1 / (1 + np.exp(-image)), 1.0, unsigned)
    r1 = np.maximum(convolve(x, fake_weight(w["w1"], 0, pairs=unsigned), w["b1"]), 0)
    c2 = convolve(fake(r1, 9.0, unsigned), fake_weight(w["w2"], 0, pairs=unsigned), w["b2"])
    r2 = np.maximum(x + fake(c2, 25.0), 0)
    t = fake(r2.transpose(0, 2, 3, 1), 20.0)
    expected = np.log1p(np.exp(t @ fake_weight(w["w3"], 1, pairs=unsigned)))

    step = 9.0 / 127  # a value at the middle of two steps may fall either way
    actual = small_models.run(got, image=image)[0]
    far = np.abs(actual - expected) > 1e-3 * np.abs(expected).max()
    assert far.mean() < 0.03
    assert np.abs(actual - expected).max() < 10 * step
    exact = small_models.run(model, image=image)[0]
    assert np.abs(exact - expected).max() > 1e-2  # the test would see a graph left in float


def test_the_pattern_is_the_one_that_runtimes_fuse(residual):
    model, _ = residual
    got = quantize(model, find_layers(GraphIndex(model)), AMAX)
    constants = {tensor.name: tensor for tensor in got.graph.initializer}
    for name in ("a/conv", "b/conv", "c/matmul"):
        node = next(n for n in got.graph.node if n.name == name)
        assert [producer(got, i).op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
        weight = producer(got, node.input[1])
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert axis == (0 if node.op_type == "Conv" else 1)
        q, scale = (numpy_helper.to_array(constants[i]) for i in weight.input[:2])
        assert q.dtype == np.int8 and scale.shape == (q.shape[axis],)
        assert all(constants[i].data_type == onnx.TensorProto.FLOAT for i in node.input[2:])
    # Behind a convolution: its Relu, then Q, and nothing else.
    (relu,) = readers(got, "c1")
    assert relu.op_type == "Relu"
    assert [n.op_type for n in readers(got, "r1")] == ["QuantizeLinear"]
    assert [n.op_type for n in readers(got, "c2")] == ["QuantizeLinear"]
    # Both sides of the residual add, from one quantisation of x.
    add = next(n for n in got.graph.node if n.name == "add")
    assert [producer(got, i).op_type for i in add.input] == ["DequantizeLinear"] * 2
    assert [n.op_type for n in readers(got, "x")] == ["QuantizeLinear"]
    # What a product gives stays in floating point.
    assert [n.op_type for n in readers(got, "p")] == ["Softplus"]
    for node in got.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = numpy_helper.to_array(constants[node.input[2]])
            assert zero.dtype == np.int8 and zero == 0


def test_every_weight_step_is_that_of_its_largest_value():
    w = RNG.standard_normal((5, 3, 2)).astype(np.float32)
    w[2] = 0
    for axis in range(3):
        q, scale = quantize_weight(w, axis)
        for channel in range(w.shape[axis]):
            row, levels = np.take(w, channel, axis), np.take(q, channel, axis)
            if not row.any():
                assert not levels.any()
                continue
            assert np.abs(levels).max() == 127
            assert np.abs(levels * scale[channel] - row).max() <= 0.5001 * scale[channel]


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_table_is_stored_in_int8_and_looked_up_before_dq_where_that_is_possible(unsigned):
    table = RNG.standard_normal((300, 16)).astype(np.float32)
    model = small_models.make_model(
        [helper.make_node("Gather", ["table", "ids"], ["rows"], "e/embedding")],
        {"ids": ["batch", 7]},
        {"rows": ["batch", 7, 16]},
        {"table": table},
    )
    got = quantize(model, find_layers(GraphIndex(model)), {}, unsigned=unsigned)
    ids = RNG.integers(0, 300, (2, 7))
    np.testing.assert_allclose(
        small_models.run(got, ids=ids)[0], fake_weight(table, 1)[ids], rtol=1e-6, atol=1e-7
    )
    assert got.ByteSize() < 0.35 * model.ByteSize()
    order = ["DequantizeLinear", "Gather"]
    assert [n.op_type for n in got.graph.node] == (order[::-1] if unsigned else order)


def test_what_is_quantised_already_is_refused(residual):
    model, _ = residual
    layers = find_layers(GraphIndex(model))
    got = quantize(model, layers, AMAX)
    with pytest.raises(InputError, match="quantised already"):
        quantize(got, layers, AMAX)
    with pytest.raises(InputError, match="quantised already"):
        find_layers(GraphIndex(got))


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -1.0])
def test_a_missing_or_broken_range_is_named(residual, bad):
    model, _ = residual
    amax = {**AMAX, "r1": bad}
    if bad is None:
        del amax["r1"]
    with pytest.raises(InputError, match="'r1'"):
        quantize(model, find_layers(GraphIndex(model)), amax)


def test_only_what_is_asked_for_is_quantised_and_the_original_stays(residual):
    model, _ = residual
    before = model.SerializeToString(deterministic=True)
    graph = GraphIndex(model)
    chosen = [layer for layer in find_layers(graph) if layer.node == "c/matmul"]
    assert ranged_values(graph, chosen) == ["t"]
    got = quantize(model, chosen, AMAX)
    assert sum(n.op_type == "QuantizeLinear" for n in got.graph.node) == 1
    assert model.SerializeToString(deterministic=True) == before


def test_onnx_runtime_runs_integer_kernels(prepared, calibration, tmp_path):
    """Every layer that counts as INT8 is an integer node in the graph that ONNX Runtime runs."""
    from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
    from tfanet.plugins import ort_library_path

    import onnxruntime

    moved, _ = move_channels(prepared, calibration)
    models = quantize_graphs(moved, calibration, unsigned=True)
    counts: Counter[str] = Counter()
    for name, model in models.items():
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(ort_library_path()))
        options.optimized_model_filepath = str(tmp_path / name)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        ran = onnx.load(tmp_path / name)
        counts += Counter(node.op_type for node in ran.graph.node)
    wanted = Counter(layer.op for layer in moved.all_layers() if layer.placement == QUANTISED)
    products = counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"]
    assert products == wanted["MatMul"] > 20
    # ONNX Runtime fuses Conv and Relu before it looks for Q/DQ; the decoder has one such pair.
    assert counts["FusedConv"] <= 1
    assert counts["QLinearConv"] == wanted["Conv"] - counts["FusedConv"] > 5
