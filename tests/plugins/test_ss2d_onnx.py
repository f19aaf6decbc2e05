"""tfanet::SS2D in ONNX: schema, function bodies, expansion, and the kernel in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_scans
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from other_runtimes import build_in_tensorrt_rtx, needs_tensorrt_rtx, run_in_lowest
from ss2d_models import NAMES, Arrays, arrays, check, error, expected, model_of, options_with, run

from tfanet.errors import InputError
from tfanet.plugins import attach, custom_translation_table, expand_ss2d, ss2d
from tfanet.plugins.graph.attach import attach_by_length, count_scan_nodes, split_ss2d
from tfanet.plugins.tensorrt import plugin_graph

import onnxruntime


def make_model(
    x: Arrays, constant: bool = True, opset: int = 20, open_size: bool = False
) -> ModelProto:
    """u -> SS2D -> y; weights are constants, or inputs beside u."""
    channels, height, width = x["u"].shape[1:]
    shape = ["batch", channels, *(("H", "W") if open_size else (height, width))]
    elem = helper.np_dtype_to_tensor_dtype(x["u"].dtype)
    inputs = [helper.make_tensor_value_info("u", elem, shape)]
    weights = [numpy_helper.from_array(x[name], name) for name in NAMES[1:]]
    if not constant:
        inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    node = helper.make_node("SS2D", NAMES, ["y"], name="block/ss2d", domain="tfanet")
    return model_of(node, inputs, weights if constant else (), opset)


@pytest.mark.parametrize("kind", ["sequential", "parallel"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("opset", "states"), [(18, 1), (20, 3), (23, 1)])
def test_the_function_body(kind: str, constant: bool, opset: int, states: int) -> None:
    x = arrays(states=states)
    model = attach(make_model(x, constant, opset), kind)
    check(model)
    assert {f.name for f in model.functions} == {"SS2D", "SS2DScan", "SelectiveScan"}
    assert count_scan_nodes(model) == 1
    assert error(run(model, x, None), expected(x)) < 1e-6
    inlined = onnx.inliner.inline_local_functions(model)
    assert not any(node.domain == "tfanet" for node in inlined.graph.node)
    assert error(run(inlined, x, None), expected(x)) < 1e-6


def test_the_node_is_kept_and_computed_by_the_library(library: Path, tmp_path: Path) -> None:
    x = arrays(1, 40, 23, 17, 5, 2)
    options = options_with(library)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = attach(make_model(x), "sequential")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    assert error(session.run(None, {"u": x["u"]})[0], expected(x)) < 1e-6
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert [n.op_type for n in nodes] == ["SS2D"]


def test_a_session_can_ask_for_the_parts(library: Path, tmp_path: Path) -> None:
    """As sessions on a GPU do, where SS2D would go back and forth to the CPU; not where the library
    has it for the provider that they name."""
    x = arrays(1, 40, 23, 17, 5)
    model = attach(make_model(x), "sequential").SerializeToString()
    found = []
    for parts in ("1", "", "ROCMExecutionProvider", "CUDAExecutionProvider"):
        options = onnxruntime.SessionOptions()
        if parts:
            options.add_session_config_entry("tfanet.ss2d_as_parts", parts)
        options.register_custom_ops_library(str(library))
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = onnxruntime.InferenceSession(model, options)
        assert error(session.run(None, {"u": x["u"]})[0], expected(x)) < 1e-6
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        found.append({n.op_type for n in nodes if n.domain == "tfanet"})
    has_cuda = b"(on the GPU)" in library.read_bytes()
    on_cuda = {"SS2D" if has_cuda else "SelectiveScan"}
    assert found == [{"SelectiveScan"}, {"SS2D"}, {"SelectiveScan"}, on_cuda]


def test_the_plugin_library_of_tensorrt_gets_the_node_and_the_aot_plugin_its_parts() -> None:
    model = attach(make_model(arrays()), "sequential")
    (node,) = plugin_graph(model, "library").graph.node
    assert (node.op_type, node.domain) == ("SS2D", "tfanet")
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert found == {"plugin_namespace": b"tfanet", "plugin_version": b"1"}
    for graph, form, name in ((model, "aot", "aot"), (split_ss2d(model), "library", "optional")):
        parts = plugin_graph(graph, form)
        (scan,) = (n for n in parts.graph.node if n.domain == "tfanet")
        assert scan.op_type == "SelectiveScan" and not parts.functions
        assert any(a.name.startswith(name) for a in scan.attribute)
    assert not model.graph.node[0].attribute


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_types(library: Path, dtype: Any) -> None:
    x = arrays(states=2)
    x["u"] = x["u"].astype(dtype)
    if dtype == np.float64:
        x = {name: value.astype(dtype) for name, value in x.items()}
    model = attach(make_model(x), "sequential")
    check(model)
    tolerance = 1e-13 if dtype == np.float64 else 2.0**-11
    # ONNX Runtime has no convolution in double: there the library is needed.
    for runtime in (library,) if dtype == np.float64 else (library, None):
        result = run(model, x, runtime)
        assert result.dtype == dtype
        assert error(result, expected(x)) < tolerance


def test_bfloat16_maps(library: Path) -> None:
    x = arrays()
    model = make_model(x)
    cast = helper.make_node("Cast", ["u"], ["u16"], to=TensorProto.BFLOAT16)
    back = helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT)
    node = model.graph.node[0]
    node.input[0], node.output[0] = "u16", "y16"
    nodes = [cast, node, back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    check(model)
    assert error(run(model, x, library), expected(x)) < 2.0**-7


@pytest.mark.parametrize("kind", ["sequential", "parallel", "none"])
@pytest.mark.parametrize("constant", [True, False])
def test_expanded_it_computes_the_same(library: Path, kind: str, constant: bool) -> None:
    x = arrays(states=2)
    model = attach(make_model(x, constant), kind)
    parts = expand_ss2d(model)
    check(parts)
    kinds = [node.op_type for node in parts.graph.node]
    assert "SS2D" not in kinds and kinds.count("SelectiveScan") == 1
    assert [f.name for f in parts.functions] == ([] if kind == "none" else ["SelectiveScan"])
    assert error(run(parts, x, library), expected(x)) < 1e-6
    if kind != "none":
        assert error(run(parts, x, None), expected(x)) < 1e-6
    names = [node.name for node in parts.graph.node]
    assert len(set(names)) == len(names) and "block/ss2d.x_proj" in names
    types = {v.name for v in (*parts.graph.value_info, *parts.graph.output)}
    assert {name for node in parts.graph.node for name in node.output} <= types
    if constant:  # weights keep their names, and nothing but their shape is computed at run time
        assert {"x_proj_weight", "dt_weight"} <= {t.name for t in parts.graph.initializer}
        assert "Shape" not in kinds


def test_shared_weights_and_open_sizes_expand(library: Path) -> None:
    x = arrays()
    model = make_model(x, open_size=True)
    first, second = model.graph.node[0], onnx.NodeProto()
    second.CopyFrom(first)
    first.output[0], second.input[0], second.name = "between", "between", "block/ss2d_2"
    other = helper.make_node("ReduceSum", ["dt_bias"], ["total"], name="sum", keepdims=0)
    model.graph.node.extend([second, other])
    model.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    model = attach(model, "sequential")
    reference = run(model, x, library)
    parts = expand_ss2d(model)
    check(parts)
    assert error(run(parts, x, library), reference) < 1e-6
    assert error(run(parts, x, None), reference) < 1e-6


def test_a_model_without_the_node_comes_back() -> None:
    model = expand_ss2d(attach(make_model(arrays()), "sequential"))
    assert expand_ss2d(model) is model


def test_beside_other_scans(library: Path) -> None:
    """Scans of another pattern in the same model: one function body must serve all."""
    x = arrays(1)
    model, chain = make_model(x), onnx_scans.chain(onnx_scans.Scan(optional=("z",), softplus=False))
    for field in ("node", "input", "output", "initializer"):
        for value in getattr(chain.model.graph, field):
            value = type(value).FromString(value.SerializeToString())
            if field == "node":
                value.input[0] = "v"
            elif value.name == "u":
                value.name = "v"
            getattr(model.graph, field).append(value)
    feeds = {**x, **chain.feeds, "u": x["u"], "v": chain.feeds["u"]}
    for kind in ("sequential", "none"):
        both = attach(model, kind)
        check(both)
        for changed in (both, expand_ss2d(both)):
            for runtime in (library, None)[: 1 if kind == "none" else 2]:
                session = onnxruntime.InferenceSession(
                    changed.SerializeToString(), options_with(runtime)
                )
                values = {i.name: feeds[i.name] for i in session.get_inputs()}
                y, z = session.run(None, values)
                assert error(y, expected(x)) < 1e-6
                assert onnx_scans.error(z, chain.expected) < 1e-6


def test_parallel_needs_a_size() -> None:
    with pytest.raises(InputError, match="SS2D node 'block/ss2d' has no fixed length"):
        attach(make_model(arrays(), open_size=True), "parallel")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 7, 6, 5), "E is 8 in input x_proj_weight but 7 in input u"),
        ("x_proj_weight", (4, 6, 8), r"R \+ 2N is 6, expected 5"),
        ("dt_weight", (3, 8, 3), "K is 3 in input dt_weight but 4"),
        ("dt_bias", (32,), "input dt_bias has rank 1, expected 2"),
        ("A", (31, 1), "4E is 32 in input D but 31 in input A"),
    ],
)
def test_the_schema_names_what_is_wrong(name: str, shape: tuple[int, ...], message: str) -> None:
    x = arrays()
    x[name] = np.ones(shape, np.float32)
    with pytest.raises(onnx.shape_inference.InferenceError, match=message):
        check(make_model(x))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 8, 6), "input u has rank 3, expected 4"),
        ("u", (2, 7, 6, 5), "E is 8 in input x_proj_weight, but 7"),
        ("x_proj_weight", (3, 5, 8), "K is 4 in input dt_weight, but 3"),
        ("x_proj_weight", (4, 4, 8), r"R \+ 2N is 4, expected 5"),
        ("A", (8, 1), "4E is 32 in input D, but 8"),
        ("A", (32, 300), r"R \+ 2N is 5, expected 603"),
    ],
)
def test_the_operator_names_what_is_wrong(
    library: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    """In a model that declares no shapes, so that only the operator can see the mistake."""
    x = arrays()
    model = make_model(x, constant=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options_with(library))
    good = session.run(None, x)[0]
    with pytest.raises(Exception, match=f"SS2D: {message}"):
        session.run(None, {**x, name: np.ones(shape, np.float32)})
    assert (session.run(None, x)[0] == good).all()
    assert session.run(None, {**x, "u": x["u"][:0]})[0].shape == (0, 8, 6, 5)


class Block(torch.nn.Module):
    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return ss2d(*x)


def test_export_writes_one_node(library: Path) -> None:
    x = arrays(3)
    tensors = tuple(torch.from_numpy(x[name]) for name in NAMES)
    dims = {"x": ({0: torch.export.Dim("batch")}, *[None] * 5)}
    program = torch.onnx.export(
        Block().eval(), tensors, dynamo=True, dynamic_shapes=dims, input_names=list(NAMES),
        custom_translation_table=custom_translation_table(), verbose=False,
    )  # fmt: skip
    assert program is not None
    model = attach(program.model_proto, "sequential")
    check(model)
    assert [n.op_type for n in model.graph.node] == ["SS2D"]
    x["u"] = arrays(5)["u"]
    for runtime in (library, None):
        assert error(run(model, x, runtime), expected(x)) < 1e-6


@pytest.mark.parametrize(("states", "constant"), [(1, True), (2, True), (2, False)])
def test_lowest_supported_runtime(
    library: Path, tmp_path: Path, states: int, constant: bool
) -> None:
    x = arrays(2, 24, 9, 12, 4, states)
    model = make_model(x, constant)
    models = {kind: attach(model, kind) for kind in ("sequential", "parallel")}
    models["split"] = split_ss2d(models["sequential"])
    results = run_in_lowest(models, x if not constant else {"u": x["u"]}, library, tmp_path)
    assert len(results) == 12
    for result in results:
        assert error(result, expected(x)) < 1e-6


@needs_tensorrt_rtx
@pytest.mark.parametrize("form", ["function", "expanded"])
def test_tensorrt_rtx_builds_it(tmp_path: Path, form: str) -> None:
    model = attach(make_model(arrays(2, 16, 15, 15, 4)), "parallel")
    changed = model if form == "function" else attach_by_length(model)
    assert build_in_tensorrt_rtx(changed, tmp_path) > 10_000
