"""The registered schema of tfanet::SelectiveScan: checker, inference, mismatches."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from onnx.shape_inference import InferenceError

from tfanet.plugins.graph import schemas
from tfanet.plugins.operands import SELECTIVE_SCAN

SHAPES: dict[str, list[Any]] = {
    "u": ["batch", 12, 30],
    "delta": ["batch", 12, 30],
    "A": [12, 4],
    "B": ["batch", 3, 4, 30],
    "C": ["batch", 3, 4, 30],
    "D": [12],
    "delta_bias": [12],
    "z": ["batch", 12, 30],
}


def bare(elem: dict[str, int] | None = None, **shapes: list[Any]) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(n, (elem or {}).get(n, TensorProto.FLOAT), shapes.get(n, s))
        for n, s in SHAPES.items()
    ]
    node = helper.make_node("SelectiveScan", list(SHAPES), ["y"], domain="tfanet")
    end = helper.make_node("Identity", ["y"], ["out"])
    result = (elem or {}).get("u", TensorProto.FLOAT)
    output = helper.make_tensor_value_info("out", result, [None] * 3)
    graph = helper.make_graph([node, end], "bare", inputs, [output])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tfanet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )


def test_schema_is_registered_once_with_the_signature() -> None:
    schema = schemas.schema(SELECTIVE_SCAN)
    assert schemas.schema(SELECTIVE_SCAN).since_version == schema.since_version == 1
    assert [i.name for i in schema.inputs] == list(SHAPES)
    assert (schema.min_input, schema.max_input, schema.max_output) == (5, 8, 1)
    assert schema.attributes["delta_softplus"].default_value.i == 0


def test_inference_gives_u_type_and_shape() -> None:
    model = inferred(bare())
    output = model.graph.output[0].type.tensor_type
    assert output.elem_type == TensorProto.FLOAT
    assert [d.dim_param or d.dim_value for d in output.shape.dim] == ["batch", 12, 30]


def test_inference_takes_what_any_input_knows() -> None:
    model = inferred(bare(u=["n", None, None], z=[2, 12, None]))
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 12, 30]


def test_weights_may_differ_in_type_from_sequences() -> None:
    half = dict.fromkeys(("u", "delta", "B", "C", "z"), TensorProto.FLOAT16)
    model = inferred(bare(half))
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("delta", ["batch", 12, 31], "L is 31 in input delta but 30 in input u"),
        ("A", [13, 4], "dim is 13 in input A"),
        ("B", ["batch", 3, 5, 30], "N is 5 in input B but 4 in input A"),
        ("B", ["batch", 4, 30], r"input B has rank 3, expected 4: \(batch, G, N, L\)"),
        ("C", ["batch", 2, 4, 30], "G is 2 in input C but 3 in input B"),
        ("D", [12, 1], "input D has rank 2, expected 1"),
        ("delta_bias", [1], "dim is 1 in input delta_bias"),
        ("z", ["batch", 12, 29], "L is 29 in input z"),
    ],
)
def test_mismatches_are_reported(name: str, shape: list[Any], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        inferred(bare(**{name: shape}))


def test_groups_must_divide_dim() -> None:
    grouped = ["batch", 5, 4, 30]
    with pytest.raises(InferenceError, match="dim 12 is not a multiple of G 5"):
        inferred(bare(B=grouped, C=grouped))


def test_mixed_element_types_are_reported() -> None:
    with pytest.raises(InferenceError, match="input delta is FLOAT16 but input u is FLOAT"):
        inferred(bare({"delta": TensorProto.FLOAT16}))


def test_full_check_reports_the_mismatch_too() -> None:
    with pytest.raises(InferenceError, match="rank 1, expected 3"):
        onnx.checker.check_model(bare(u=[12]), full_check=True)


def test_schema_needs_no_torch() -> None:
    code = (
        "import sys; import tfanet.plugins.graph.schemas, tfanet.plugins.graph.attach; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
