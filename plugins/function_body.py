"""The model-local ONNX function that lets any runtime execute tfanet::SelectiveScan.

A model holds the node and a function of the same name. A runtime with the operator library runs
its kernel; any other inlines the function, whose body is standard operators. A function has one
body for all nodes of the model, so `attach` first brings them to one pattern of inputs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from tfanet.errors import InputError

from . import onnx_op
from .function_nodes import DOMAIN, INPUTS, OP_TYPE, Nodes, Pattern, build_function, softplus

__all__ = [
    "KINDS",
    "attach",
    "attach_by_length",
    "count_scan_nodes",
    "rewrite",
    "rewrite_file",
    "scan_nodes",
]

KINDS = ("sequential", "parallel", "none")
_LOWEST_OPSET, _IR_WITH_FUNCTIONS = 18, 8
_D, _BIAS, _Z = (INPUTS.index(name) for name in ("D", "delta_bias", "z"))


def scan_nodes(model: ModelProto) -> list[NodeProto]:
    """The tfanet::SelectiveScan nodes in the model's graph and its subgraphs."""
    return [node for graph in _graphs(model.graph) for node in graph.node if _is_scan(node)]


def count_scan_nodes(model: ModelProto) -> int:
    """Their number."""
    return len(scan_nodes(model))


def attach(model: ModelProto, kind: str) -> ModelProto:
    """A copy of `model` whose function tfanet::SelectiveScan is of `kind`.

    "sequential" is made of ONNX Scans (plain ONNX Runtime, any length); "parallel" has no control
    flow (TensorRT-RTX; OpenVINO after `onnx.inliner`) and needs a fixed length L at every node;
    "none" takes the function away. A model without scans comes back unchanged.

    Where nodes differ, D and delta_bias are given as zeros to those without, and softplus and z
    move into standard operators around those with. This is done for every `kind`: afterwards no
    node leaves out an input before one that it has, where ONNX Runtime 1.20 would crash.

    Raises InputError for an unknown `kind`, an opset below 18, a scan inside another local
    function, or L not fixed ("parallel").
    """
    if kind not in KINDS:
        raise InputError(f"scan function {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    result = ModelProto()
    result.CopyFrom(model)
    kept = [f for f in result.functions if (f.domain, f.name) != (DOMAIN, OP_TYPE)]
    del result.functions[:]
    result.functions.extend(kept)
    if not count_scan_nodes(result):
        return result

    inside = [f.name for f in kept if any(map(_is_scan, f.node))]
    if inside:
        raise InputError(
            f"the local function {inside[0]!r} holds a {OP_TYPE} node; inline it first "
            "(onnx.inliner.inline_selected_functions)"
        )
    opset = next((o.version for o in result.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _LOWEST_OPSET:
        raise InputError(
            f"the model has opset {opset}, the scan function needs {_LOWEST_OPSET} or newer; "
            "export again with a newer opset"
        )
    if DOMAIN not in {o.domain for o in result.opset_import}:
        result.opset_import.append(helper.make_opsetid(DOMAIN, onnx_op.OP_VERSION))
    result.ir_version = max(result.ir_version, _IR_WITH_FUNCTIONS)
    pattern = _unify(result, kind)
    if kind != "none":
        result.functions.append(build_function(kind, pattern, opset))
    return result


def attach_by_length(model: ModelProto) -> ModelProto:
    """A copy of `model` that has a parallel function for every length L, tfanet::SelectiveScan_L.

    What an engine builder is given: no node keeps the operator's name, so none is taken for a
    plugin, and a body whose L is known folds to a third of the nodes (`onnx_ir` passes, after
    inlining). Raises InputError as `attach` does.
    """
    result = attach(model, "parallel")
    shared = next((f for f in result.functions if (f.domain, f.name) == (DOMAIN, OP_TYPE)), None)
    if shared is None:
        return result
    result.functions.remove(shared)
    opset = next(o.version for o in shared.opset_import if o.domain == "")
    scans = scan_nodes(result)
    pattern = replace(
        _measure(result, scans, "parallel"),
        one_length=True,
        delta_softplus=_softplus(scans[0]),
        **{name: _given(scans[0], INPUTS.index(name)) for name in ("D", "delta_bias", "z")},
    )
    made = set()
    measured = [_measure(result, [scan], "parallel") for scan in scans]  # before names change
    for scan, own in zip(scans, measured, strict=True):
        scan.op_type = f"{OP_TYPE}_{own.max_length}" + ("" if own.single_state else "_N")
        if scan.op_type not in made:
            made.add(scan.op_type)
            own = replace(
                pattern, max_length=own.max_length, single_state=own.single_state, casts=own.casts
            )
            result.functions.append(build_function("parallel", own, opset, scan.op_type))
    return result


def rewrite(path_in: str | Path, path_out: str | Path, kind: str) -> None:
    """`attach` from file to file; see `rewrite_file`."""
    rewrite_file(path_in, path_out, lambda model: attach(model, kind))


def rewrite_file(
    path_in: str | Path, path_out: str | Path, change: Callable[[ModelProto], ModelProto]
) -> None:
    """What `change` makes of a model; weights stored beside `path_in` move into `path_out`.

    The file appears whole or not at all. Raises InputError where `path_in` can't be read.
    """
    target = Path(path_out)
    try:
        model = onnx.load(path_in)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path_in} can't be read as an ONNX model: {error}") from error
    payload = change(model).SerializeToString(deterministic=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
        os.chmod(part, 0o644)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _is_scan(node: NodeProto) -> bool:
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner) if inner.node else ()


def _given(node: NodeProto, index: int) -> bool:
    return index < len(node.input) and bool(node.input[index])


def _softplus(node: NodeProto) -> bool:
    return any(a.name == "delta_softplus" and a.i for a in node.attribute)


def _unify(model: ModelProto, kind: str) -> Pattern:
    """Brings all scan nodes to one pattern, in place, and returns it."""
    scans = scan_nodes(model)
    smooth, gate = all(map(_softplus, scans)), all(_given(n, _Z) for n in scans)
    bias = gate or any(_given(n, _BIAS) and _softplus(n) == smooth for n in scans)
    pattern = replace(
        _measure(model, scans, kind),
        D=bias or any(_given(n, _D) for n in scans),
        delta_bias=bias,
        z=gate,
        delta_softplus=smooth,
    )
    for graph in _graphs(model.graph):
        if any(map(_is_scan, graph.node)):
            nodes = [
                new for n in graph.node for new in (_expand(n, pattern) if _is_scan(n) else [n])
            ]
            del graph.node[:]
            graph.node.extend(nodes)
    return pattern


def _expand(node: NodeProto, pattern: Pattern) -> list[NodeProto]:
    """A scan node brought to `pattern`, between the nodes that do what the pattern leaves out."""
    scan = NodeProto()
    scan.CopyFrom(node)
    inputs = [*scan.input, *[""] * (len(INPUTS) - len(scan.input))]
    y = scan.output[0]
    before, after = Nodes(f"{y}_scan_in_"), Nodes(f"{y}_scan_out_")

    if _softplus(scan) and not pattern.delta_softplus:
        delta = before("Cast", inputs[1], to=pattern.compute)
        if inputs[_BIAS]:
            bias = before("Unsqueeze", inputs[_BIAS], before.constant([1]))
            delta = before("Add", delta, before("Cast", bias, to=pattern.compute))
        dtype = helper.tensor_dtype_to_np_dtype(pattern.compute)
        inputs[1] = before("CastLike", softplus(before, delta, dtype, False), inputs[1])
        inputs[_BIAS] = ""
    if inputs[_Z] and not pattern.z:
        scan.output[0] = f"{y}_scan_ungated"
        gate = after("Mul", inputs[_Z], after("Sigmoid", inputs[_Z]))
        after("Mul", scan.output[0], gate, out=[y])
        inputs[_Z] = ""
    for index, wanted in ((_D, pattern.D), (_BIAS, pattern.delta_bias)):
        if wanted and not inputs[index]:
            size = before("Shape", inputs[2], start=0, end=1)
            inputs[index] = before("CastLike", before("ConstantOfShape", size), inputs[2])

    del scan.input[:], scan.attribute[:]
    scan.input.extend(inputs[: len(pattern.inputs())])
    scan.attribute.append(helper.make_attribute("delta_softplus", int(pattern.delta_softplus)))
    return [*before.nodes, scan, *after.nodes]


def _measure(model: ModelProto, scans: list[NodeProto], kind: str) -> Pattern:
    """What element types, N and L tell: arithmetic, casts, single state, longest L."""
    wanted = {name for n in scans for name in (n.input[0], n.input[2])}
    types = _types(model)
    if any(not _known(types.get(name)) for name in wanted):
        types = _types(onnx.shape_inference.infer_shapes(model, data_prop=True))

    def element(name: str) -> int:
        return types[name].tensor_type.elem_type if name in types else TensorProto.UNDEFINED

    def size(name: str, axis: int) -> int:
        dims = types[name].tensor_type.shape.dim if name in types else ()
        return dims[axis].dim_value if axis < len(dims) else 0

    if kind == "parallel":
        for n in scans:
            if not size(n.input[0], 2):
                raise InputError(
                    f"{OP_TYPE} node {n.name or n.output[0]!r} has no fixed length L; the parallel "
                    "function needs one: export with a fixed image size, or choose sequential"
                )
    real = TensorProto.FLOAT
    if any(element(n.input[0]) == TensorProto.DOUBLE for n in scans):
        real = TensorProto.DOUBLE
    return Pattern(
        compute=real,
        casts=any(element(name) != real for name in wanted),
        single_state=all(size(n.input[2], 1) == 1 for n in scans),
        max_length=max(size(n.input[0], 2) for n in scans),
    )


def _known(value: TypeProto | None) -> bool:
    return (
        value is not None
        and value.tensor_type.elem_type != 0
        and all(d.HasField("dim_value") for d in value.tensor_type.shape.dim[1:])
    )


def _types(model: ModelProto) -> dict[str, TypeProto]:
    types: dict[str, TypeProto] = {}
    for graph in _graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            types[value.name] = value.type
        for tensor in graph.initializer:
            types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types
