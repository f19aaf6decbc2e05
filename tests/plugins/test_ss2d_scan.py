"""tfanet::SS2DScan: the 2-D scan whose projection is a layer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from ss2d_models import NAMES, Arrays, arrays, check, error, expected, model_of, run

from tfanet.plugins import attach, expand_ss2d
from tfanet.plugins.graph.attach import attach_by_length, count_scan_nodes, split_ss2d

INPUTS = ("u", "rows", "dt_weight", "dt_bias", "A", "D")


def with_rows(x: Arrays) -> Arrays:
    """The operands, and in "rows" what the projection of u gives, in float64."""
    rows = np.einsum("kre,behw->bkrhw", *(x[n].astype(float) for n in ("x_proj_weight", "u")))
    batch, _, height, width = x["u"].shape
    return {**x, "rows": rows.reshape(batch, -1, height, width)}


def operands(x: Arrays, weights: Any = np.float32) -> Arrays:
    """Those of SS2DScan, in the shapes that it takes."""
    flat = {"dt_weight": (-1, x["dt_weight"].shape[2]), "dt_bias": (-1,)}
    shaped = {name: x[name].reshape(flat.get(name, x[name].shape)) for name in INPUTS}
    return {name: v if name == "u" else v.astype(weights) for name, v in shaped.items()}


def value(name: str, x: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)


def whole(x: Arrays) -> ModelProto:
    """u -> SS2D -> y with constant weights."""
    node = helper.make_node("SS2D", NAMES, ["y"], name="block/ss2d", domain="tfanet")
    weights = [numpy_helper.from_array(x[name], name) for name in NAMES[1:]]
    return model_of(node, [value("u", x["u"])], weights)


def scan_only(x: Arrays) -> ModelProto:
    """All operands are inputs."""
    node = helper.make_node("SS2DScan", INPUTS, ["y"], name="block/ss2d.scan", domain="tfanet")
    return model_of(node, [value(name, x[name]) for name in INPUTS])


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 20),
        st.integers(1, 9), st.integers(1, 4),
    )
)  # fmt: skip
def test_given_rows_the_kernel_scans_them(library: Path, sizes: tuple[int, ...]) -> None:
    x = with_rows(arrays(*sizes))
    given_rows = operands(x)
    assert error(run(scan_only(given_rows), given_rows, library), expected(x)) < 2e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_types(library: Path, dtype: Any) -> None:
    x = arrays(2, 19, 7, 9, 3, 2)
    x["u"] = x["u"].astype(dtype)
    x = with_rows(x)
    weights = np.float64 if dtype == np.float64 else np.float32
    if dtype == np.float64:
        x = {name: value.astype(dtype) for name, value in x.items()}
    given_rows = operands(x, weights)
    model = attach(scan_only(given_rows), "sequential")
    check(model)
    tolerance = 1e-13 if dtype == np.float64 else 2.0**-11
    # ONNX Runtime has no convolution in double: there the library is needed.
    for runtime in (library,) if dtype == np.float64 else (library, None):
        assert error(run(model, given_rows, runtime), expected(x)) < tolerance


@pytest.mark.parametrize("kind", ["sequential", "parallel", "none"])
def test_a_split_model_computes_the_same(library: Path, kind: str) -> None:
    x = arrays(2, 24, 9, 7, 4, 2)
    model = split_ss2d(attach(whole(x), kind))
    check(model)
    assert [n.op_type for n in model.graph.node] == ["Conv", "SS2DScan"]
    assert [n.name for n in model.graph.node] == ["block/ss2d.x_proj", "block/ss2d.scan"]
    functions = [] if kind == "none" else ["SelectiveScan", "SS2DScan"]
    assert [f.name for f in model.functions] == functions
    assert count_scan_nodes(model) == 1 and split_ss2d(model) is model
    parts = expand_ss2d(model)
    check(parts)
    names = [n.name for n in parts.graph.node]
    assert len(set(names)) == len(names) and "block/ss2d.dt_proj" in names
    assert parts == expand_ss2d(attach(whole(x), kind))  # one way or two, the same parts
    for runtime in (library,) if kind == "none" else (library, None):
        assert error(run(model, x, runtime), expected(x)) < 1e-6
        assert error(run(parts, x, runtime), expected(x)) < 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_delta_weights_in_8_bits_stay_next_to_their_product(library: Path, shared: bool) -> None:
    """Their conversion feeds the convolution at once, where engine builders look for it."""
    x = arrays(1, 16, 6, 6, 4)
    model = split_ss2d(whole(x))
    weight = x["dt_weight"].reshape(-1, 4)
    scale = (np.abs(weight).max(1) / 127).astype(np.float32)
    q = np.rint(weight / scale[:, None]).astype(np.int8)
    inputs = ["dt_weight.q", "dt_weight.scale"]
    convert = helper.make_node("DequantizeLinear", inputs, ["dt"], "dt", axis=0)
    graph = model.graph
    graph.node[1].input[2] = "dt"
    graph.node.insert(0, convert)
    graph.initializer.extend(
        numpy_helper.from_array(v, n) for n, v in zip(inputs, (q, scale), strict=True)
    )
    if shared:  # then the weight keeps its shape, and is brought into another behind
        graph.node.append(helper.make_node("ReduceSum", ["dt"], ["total"], "sum", keepdims=0))
        graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    model = attach(model, "parallel")
    x["dt_weight"] = (q * scale[:, None]).reshape(x["dt_weight"].shape)
    parts = expand_ss2d(model)
    for changed in (model, parts):
        check(changed)
        assert error(run(changed, x, library), expected(x)) < 1e-6
        assert error(run(changed, x, None), expected(x)) < 1e-6
    product = next(n for n in parts.graph.node if n.name == "block/ss2d.dt_proj")
    assert (product.input[1] == "dt") == (not shared)
    engine = attach_by_length(model)
    assert not any(n.op_type in ("SelectiveScan", "SS2DScan") for n in engine.graph.node)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("rows", (2, 19, 6, 5), r"4\(R \+ 2N\) is 19, expected 20"),
        ("rows", (2, 20, 6, 4), "W is 4 in input rows but 5 in input u"),
        ("dt_weight", (4, 8, 3), "input dt_weight has rank 3, expected 2"),
        ("A", (31, 1), "4E is 31 in input A but 32"),
    ],
)
def test_the_schema_names_what_is_wrong(name: str, shape: tuple[int, ...], message: str) -> None:
    x = {**operands(with_rows(arrays())), name: np.ones(shape, np.float32)}
    with pytest.raises(onnx.shape_inference.InferenceError, match=f"SS2DScan: {message}"):
        check(scan_only(x))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("rows", (2, 5, 6, 5), r"4\(R \+ 2N\) is 5, expected 20"),
        ("rows", (2, 20, 5, 6), "H is 5 in input rows, but 6"),
        ("dt_weight", (8, 3), "4E is 32 in input dt_bias, but 8"),
        ("dt_bias", (4, 8), "input dt_bias has rank 2, expected 1"),
    ],
)
def test_the_operator_names_what_is_wrong(
    library: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    """In a model that declares no shapes, so that only the operator can see the mistake."""
    x = operands(with_rows(arrays()))
    model = scan_only(x)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=f"SS2DScan: {message}"):
        run(model, {**x, name: np.ones(shape, np.float32)}, library)
    assert error(run(model, x, library), expected(arrays())) < 1e-6
