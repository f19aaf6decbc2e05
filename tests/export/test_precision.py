"""Strongly typed graphs: what stays in FP32, and that the masks survive."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tfanet.errors import InputError
from tfanet.export.engines.magnitudes import measure_magnitudes
from tfanet.export.engines.precision import POLICY, cast_graph
from tfanet.plugins import ort_library_path
from tfanet.plugins.graph.attach import count_scan_nodes

import onnxruntime

F = TensorProto.FLOAT


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.register_custom_ops_library(str(ort_library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def chain(*ops: str, weight: float = 1.0) -> ModelProto:
    """x (2, 8) through MatMuls and unary operators, a MatMul last."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for index, op in enumerate((*ops, "MatMul")):
        inputs = [name]
        if op == "MatMul":
            w = (weight * rng.standard_normal((8, 8)) / 3).astype(np.float32)
            weights.append(numpy_helper.from_array(w, f"w{index}"))
            inputs.append(f"w{index}")
        name = f"v{index}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"layer{index}/{op}"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", F, [2, 8])],
        [helper.make_tensor_value_info(name, F, [2, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_graph_is_typed_as_the_table_says(precision):
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    model = chain("MatMul", "Relu", "MatMul", "Exp", "Sqrt", "MatMul")
    typed, kept = cast_graph(model, precision)
    onnx.checker.check_model(typed, full_check=True)
    assert {(row.node, row.why) for row in kept} == {
        ("layer3/Exp", POLICY["Exp"]),
        ("layer4/Sqrt", POLICY["Sqrt"]),
        ("layer6/MatMul", "output"),
    }
    found = types(typed)
    assert [found[f"v{i}"] for i in range(6)] == [low, low, low, F, F, low]
    assert typed.graph.input[0].type.tensor_type.elem_type == F
    assert typed.graph.output[0].type.tensor_type.elem_type == F
    kinds = [tensor.data_type for tensor in typed.graph.initializer]
    assert kinds.count(low) == 3 and kinds.count(F) == 1
    # One cast down at the input, up before Exp, down after Sqrt, up before the last layer.
    assert sum(node.op_type == "Cast" for node in typed.graph.node) == 4


def test_fp16_computes_what_rounding_by_hand_gives():
    model = chain("MatMul", "Relu", "MatMul")
    typed, _ = cast_graph(model, "fp16")
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    w = [numpy_helper.to_array(t) for t in model.graph.initializer]

    def low(a):
        return a.astype(np.float16).astype(np.float32)

    expected = low(low(np.maximum(low(low(x) @ low(w[0])), 0)) @ low(w[1])) @ w[2]
    for emulate in (False, True):
        graph, _ = cast_graph(model, "fp16", emulate=emulate)
        np.testing.assert_allclose(run(graph, {"x": x}), expected, rtol=2e-3, atol=2e-3)
    emulated, _ = cast_graph(model, "fp16", emulate=True)
    np.testing.assert_allclose(run(emulated, {"x": x}), expected, rtol=1e-6, atol=1e-6)
    assert typed.ByteSize() < model.ByteSize()


def test_a_value_that_would_overflow_keeps_its_nodes_in_fp32(tmp_path):
    model = chain("MatMul", "MatMul", "Relu", "MatMul", weight=300)
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    ranges = measure_magnitudes(model, [{"x": x}], library=None, folder=tmp_path)
    w = [numpy_helper.to_array(t) for t in model.graph.initializer]
    assert ranges["v0"] == pytest.approx(np.abs(x @ w[0]).max())
    assert ranges["v1"] == pytest.approx(np.abs(x @ w[0] @ w[1]).max())
    assert list(tmp_path.iterdir()) == []
    # ONNX Runtime takes casts out on a CPU: only the graph that rounds shows what FP16 would do.
    careless, _ = cast_graph(model, "fp16", emulate=True)
    assert not np.isfinite(run(careless, {"x": x})).all()
    careful, kept = cast_graph(model, "fp16", ranges=ranges, emulate=True)
    reasons = {row.node: row for row in kept}
    assert reasons["layer2/Relu"].why == "values beyond 3.28e+04"
    assert reasons["layer2/Relu"].value == max(ranges["v1"], ranges["v2"])
    result, expected = run(careful, {"x": x}), run(model, {"x": x})
    np.testing.assert_allclose(result, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())
    # BF16 has FP32's range: nothing is kept for that.
    assert all(row.value is None for row in cast_graph(model, "bf16", ranges=ranges)[1])


def test_infinite_values_and_weights_stay_in_fp32(tmp_path):
    model = chain("Exp", "Exp", "Relu", "MatMul")
    ranges = measure_magnitudes(
        model, [{"x": np.full((2, 8), 9, np.float32)}], library=None, folder=tmp_path
    )
    assert ranges["v1"] == np.inf
    kept = {row.node for row in cast_graph(model, "fp16", ranges=ranges)[1]}
    assert "layer2/Relu" in kept
    heavy = {row.node: row.why for row in cast_graph(chain("MatMul", weight=1e6), "fp16")[1]}
    assert heavy["layer0/MatMul"].startswith("weights beyond")


def model_of(
    nodes: list[NodeProto], weights: dict[str, np.ndarray], output: list[int]
) -> ModelProto:
    """x (4, 8) through nodes, of which the last makes y."""
    graph = helper.make_graph(
        nodes,
        "decides",
        [helper.make_tensor_value_info("x", F, [4, 8])],
        [helper.make_tensor_value_info("y", F, output)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_an_index_that_a_layer_computes_is_exact():
    """As in deformable attention: a place of thousands, looked up in a table, and a share of it."""
    node = helper.make_node
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((8, 3)).astype(np.float32),
        "wide": np.float32(900),
        "table": rng.standard_normal((9000, 5)).astype(np.float32),
        "last": np.eye(5, dtype=np.float32),
        "highest": np.float32(8999),
        "zero": np.float32(0),
    }
    model = model_of(
        [
            node("MatMul", ["x", "w"], ["offsets"]),
            node("Mul", ["offsets", "wide"], ["wider"]),
            node("Abs", ["wider"], ["distance"]),
            node("Clip", ["distance", "zero", "highest"], ["place"]),
            node("Floor", ["place"], ["left"]),
            node("Sub", ["place", "left"], ["right_share"]),
            node("Cast", ["left"], ["row"], to=TensorProto.INT64),
            node("Gather", ["table", "row"], ["read"]),
            node("Unsqueeze", ["right_share", "axis"], ["share"]),
            node("Mul", ["read", "share"], ["shared"]),
            node("MatMul", ["shared", "last"], ["y"]),
        ],
        weights | {"axis": np.array([-1])},
        [4, 3, 5],
    )
    x = rng.standard_normal((4, 8)).astype(np.float32)
    exact = run(model, {"x": x})
    for emulate in (False, True):
        typed, kept = cast_graph(onnx.shape_inference.infer_shapes(model), "fp16", emulate=emulate)
        assert {"MatMul", "Clip", "Floor", "Sub"} <= {row.op for row in kept}
        assert not {"Gather"} & {row.op for row in kept}
        np.testing.assert_allclose(run(typed, {"x": x}), exact, rtol=0, atol=4e-3)


def test_what_a_comparison_decides_is_decided_in_fp32():
    """The sum of a few large numbers is a small one: FP16 would take it for 0."""
    node = helper.make_node
    weights = {
        "w": np.array([[1.0], [1.0], [-1.0], *5 * [[0.0]]], np.float32),
        "zero": np.float32(0),
        "last": np.ones((8, 8), np.float32),
    }
    model = model_of(
        [
            node("MatMul", ["x", "w"], ["score"]),
            node("Less", ["zero", "score"], ["meant"]),
            node("Where", ["meant", "x", "zero"], ["chosen"]),
            node("MatMul", ["chosen", "last"], ["y"]),
        ],
        weights,
        [4, 8],
    )
    x = np.ones((4, 8), np.float32)
    x[:, :3] = [1000.0, 0.01, 1000.0]
    x[2:, 1] = -0.01
    exact = run(model, {"x": x})
    assert (exact[:2] != 0).all() and (exact[2:] == 0).all()
    typed, _ = cast_graph(onnx.shape_inference.infer_shapes(model), "fp16")
    np.testing.assert_allclose(run(typed, {"x": x}), exact, rtol=1e-3)


def test_patterns_keep_nodes_and_must_fit_one():
    model = chain("MatMul", "Relu", "MatMul")
    kept = {row.node: row.why for row in cast_graph(model, "fp16", keep=["layer0/*"])[1]}
    assert kept["layer0/MatMul"] == "asked for by 'layer0/*'"
    with pytest.raises(InputError, match=r"no node's name fits 'decoder\.x': names are such as"):
        cast_graph(model, "fp16", keep=["decoder.x"])


def test_bad_requests():
    model = chain("MatMul")
    with pytest.raises(InputError, match="precision is 'fp8': choose one of fp16, bf16"):
        cast_graph(model, "fp8")
    with pytest.raises(InputError, match="not FP32: cast the FP32 export instead"):
        cast_graph(cast_graph(chain("MatMul", "MatMul"), "fp16")[0], "fp16")
    old = chain("MatMul")
    old.opset_import[0].version = 18
    with pytest.raises(InputError, match="bf16 needs opset 20 or newer, the model has 18"):
        cast_graph(old, "bf16")


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 3e-3), ("bf16", 3e-2)])
def test_a_network_keeps_its_masks(bundle, precision, limit):
    model = onnx.load(bundle.file("image.onnx"))
    rng = np.random.default_rng(2)
    shapes = {
        v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in model.graph.input
    }
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    feeds["word_mask"] = np.ones_like(feeds["word_mask"])
    expected = run(model, feeds)
    typed, kept = cast_graph(model, precision)
    rounded, _ = cast_graph(model, precision, emulate=True)
    onnx.checker.check_model(typed, full_check=True)
    onnx.shape_inference.infer_shapes(typed, strict_mode=True)
    assert count_scan_nodes(typed) == count_scan_nodes(model)
    assert {row.op for row in kept if row.why == POLICY["SelectiveScan"]} == {"SelectiveScan"}
    for graph in (rounded, typed) if precision == "fp16" else (rounded,):
        result = run(graph, feeds)
        assert np.abs(result - expected).max() < limit * np.abs(expected).max()
    # Most of the work is in the low type, or the engine would be no faster.
    floats = {row.node for row in kept}
    heavy = [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert sum(name not in floats for name in heavy) > 0.95 * len(heavy)
