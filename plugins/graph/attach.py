"""The model-local ONNX functions that let any runtime execute tfanet::SelectiveScan and 2-D scans.

A model holds the node and a function of the same name. A runtime with the operator library runs
its kernel; any other inlines the function, whose body is standard operators (SS2D's holds an
SS2DScan, and that one's a SelectiveScan in its turn). A function has one body for all nodes of the
model, so `attach` first brings them to one pattern of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

import tfanet.plugins.graph.schemas  # noqa: F401  (registers the operators with onnx)
from tfanet.errors import InputError
from tfanet.files import whole_file
from tfanet.plugins.graph.bodies import (
    Nodes,
    Pattern,
    all_graphs,
    build_function,
    softplus,
)
from tfanet.plugins.graph.ss2d import (
    is_ss2d,
    is_whole_ss2d,
    replace_ss2d,
    ss2d_body,
    ss2d_scan_body,
)
from tfanet.plugins.operands import DOMAIN, OPERATORS, SELECTIVE_SCAN, SS2D, SS2D_SCAN, VERSION

__all__ = [
    "KINDS",
    "attach",
    "attach_by_length",
    "count_scan_nodes",
    "expand_ss2d",
    "rewrite",
    "rewrite_file",
    "scan_nodes",
    "split_ss2d",
]

KINDS = ("sequential", "parallel", "none")
_LOWEST_OPSET, _IR_WITH_FUNCTIONS = 18, 8


def scan_nodes(model: ModelProto) -> list[NodeProto]:
    """The tfanet::SelectiveScan nodes in the model's graph and its subgraphs."""
    return [node for graph in all_graphs(model.graph) for node in graph.node if _is_scan(node)]


def count_scan_nodes(model: ModelProto) -> int:
    """Number of SelectiveScan, SS2D and SS2DScan nodes in the graph and its subgraphs."""
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node)
    return sum(_is_scan(node) or is_ss2d(node) for node in nodes)


def expand_ss2d(model: ModelProto) -> ModelProto:
    """A copy whose 2-D scans are the parts that they fuse, around tfanet::SelectiveScan.

    What is done first where nodes inside are to be seen: precision, engines. The functions stay of
    the kind that they are of. A model without 2-D scans comes back itself.
    """
    return _replaced(model, keep_scan=False)


def split_ss2d(model: ModelProto) -> ModelProto:
    """A copy whose tfanet::SS2D nodes are a projection and a tfanet::SS2DScan each.

    What is done first where the projection is to be quantised. Otherwise as `expand_ss2d`.
    """
    return _replaced(model, keep_scan=True)


def _replaced(model: ModelProto, keep_scan: bool) -> ModelProto:
    old = [n for n in model.graph.node if (is_whole_ss2d(n) if keep_scan else is_ss2d(n))]
    if not old:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    replace_ss2d(result, _types(model, {name for n in old for name in n.input}), keep_scan)
    body = _scan_function(model)
    if body is None:
        return attach(result, "none")
    return attach(result, "sequential" if "Scan" in {n.op_type for n in body.node} else "parallel")


def attach(model: ModelProto, kind: str) -> ModelProto:
    """A copy of `model` whose functions of tfanet operators are of `kind`.

    "sequential" is made of ONNX Scans (plain ONNX Runtime, any length); "parallel" has no control
    flow (TensorRT-RTX; OpenVINO after `onnx.inliner`) and needs a fixed length L at every node;
    "none" takes the functions away. A model without scans comes back unchanged.

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
    ours = {(DOMAIN, operator.op_type) for operator in OPERATORS}
    kept = [f for f in result.functions if (f.domain, f.name) not in ours]
    del result.functions[:]
    result.functions.extend(kept)
    if not count_scan_nodes(result):
        return result

    inside = [f.name for f in kept if any(_is_scan(n) or is_ss2d(n) for n in f.node)]
    if inside:
        raise InputError(
            f"the local function {inside[0]!r} holds a {SELECTIVE_SCAN.op_type} node; inline it "
            "first (onnx.inliner.inline_selected_functions)"
        )
    opset = next((o.version for o in result.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _LOWEST_OPSET:
        raise InputError(
            f"the model has opset {opset}, the scan function needs {_LOWEST_OPSET} or newer; "
            "export again with a newer opset"
        )
    if DOMAIN not in {o.domain for o in result.opset_import}:
        result.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    result.ir_version = max(result.ir_version, _IR_WITH_FUNCTIONS)
    pattern, bodies = _unify(result, kind)
    if kind != "none":
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
        result.functions.append(build_function(kind, pattern, opset))
        result.functions.extend(
            helper.make_function(DOMAIN, name, inputs, ["y"], nodes, opsets)
            for name, inputs, nodes in bodies
        )
    return result


def attach_by_length(model: ModelProto) -> ModelProto:
    """A copy of `model` that has a parallel function for every length L, tfanet::SelectiveScan_L.

    What an engine builder is given: no node keeps the operator's name, so none is taken for a
    plugin, and a body whose L is known folds to a third of the nodes (`onnx_ir` passes, after
    inlining). Raises InputError as `attach` does.
    """
    result = attach(expand_ss2d(model), "parallel")
    shared = _scan_function(result)
    if shared is None:
        return result
    result.functions.remove(shared)
    opset = next(o.version for o in shared.opset_import if o.domain == "")
    scans = scan_nodes(result)
    pattern = replace(
        _measure(result, scans, "parallel")[0],
        one_length=True,
        delta_softplus=_softplus(scans[0]),
        **{name: _given(scans[0], name) for name in SELECTIVE_SCAN.optional},
    )
    made = set()
    measured = [_measure(result, [scan], "parallel")[0] for scan in scans]  # before names change
    for scan, own in zip(scans, measured, strict=True):
        states = "" if own.single_state else "_N"
        scan.op_type = f"{SELECTIVE_SCAN.op_type}_{own.max_length}{states}"
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
    try:
        model = onnx.load(path_in)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path_in} can't be read as an ONNX model: {error}") from error
    payload = change(model).SerializeToString(deterministic=True)
    with whole_file(Path(path_out)) as part:
        part.write_bytes(payload)


def _is_scan(node: NodeProto) -> bool:
    return node.op_type == SELECTIVE_SCAN.op_type and node.domain == DOMAIN


def _scan_function(model: ModelProto) -> FunctionProto | None:
    """The model's function SelectiveScan."""
    name = (DOMAIN, SELECTIVE_SCAN.op_type)
    return next((f for f in model.functions if (f.domain, f.name) == name), None)


def _given(node: NodeProto, name: str) -> bool:
    index = SELECTIVE_SCAN.inputs.index(name)
    return index < len(node.input) and bool(node.input[index])


def _softplus(node: NodeProto) -> bool:
    return any(a.name == "delta_softplus" and a.i for a in node.attribute)


_Bodies = list[tuple[str, tuple[str, ...], list[NodeProto]]]


def _unify(model: ModelProto, kind: str) -> tuple[Pattern, _Bodies]:
    """Brings all scan nodes to one pattern, in place.

    Returns the pattern, and name, inputs and nodes of the functions of 2-D scans that are there.
    """
    everything = [n for graph in all_graphs(model.graph) for n in graph.node]
    scans, fused = list(filter(_is_scan, everything)), list(filter(is_ss2d, everything))
    measured, casts = _measure(model, [*scans, *fused], kind)
    body = ss2d_scan_body(casts).nodes if fused else []
    scans += filter(_is_scan, body)
    smooth, gate = all(map(_softplus, scans)), all(_given(n, "z") for n in scans)
    bias = gate or any(_given(n, "delta_bias") and _softplus(n) == smooth for n in scans)
    pattern = replace(
        measured,
        casts=True,  # other tools may change the element types of what is around a node
        D=bias or any(_given(n, "D") for n in scans),
        delta_bias=bias,
        z=gate,
        delta_softplus=smooth,
    )

    def unified(nodes: Iterable[NodeProto]) -> list[NodeProto]:
        return [new for n in nodes for new in (_expand(n, pattern) if _is_scan(n) else [n])]

    for graph in all_graphs(model.graph):
        if any(map(_is_scan, graph.node)):
            nodes = unified(graph.node)
            del graph.node[:]
            graph.node.extend(nodes)
    bodies: _Bodies = []
    if fused:
        bodies.append((SS2D_SCAN.op_type, SS2D_SCAN.inputs, unified(body)))
    if any(map(is_whole_ss2d, fused)):
        bodies.append((SS2D.op_type, SS2D.inputs, ss2d_body(casts).nodes))
    return pattern, bodies


def _expand(node: NodeProto, pattern: Pattern) -> list[NodeProto]:
    """A scan node brought to `pattern`, between the nodes that do what the pattern leaves out."""
    scan = NodeProto()
    scan.CopyFrom(node)
    inputs = dict.fromkeys(SELECTIVE_SCAN.inputs, "")
    inputs.update(zip(SELECTIVE_SCAN.inputs, scan.input, strict=False))
    y = scan.output[0]
    before, after = Nodes(f"{y}_scan_in_"), Nodes(f"{y}_scan_out_")

    if _softplus(scan) and not pattern.delta_softplus:
        delta = before("Cast", inputs["delta"], to=pattern.compute)
        if inputs["delta_bias"]:
            bias = before("Unsqueeze", inputs["delta_bias"], before.constant([1]))
            delta = before("Add", delta, before("Cast", bias, to=pattern.compute))
        dtype = helper.tensor_dtype_to_np_dtype(pattern.compute)
        smooth = softplus(before, delta, dtype, False)
        inputs["delta"] = before("CastLike", smooth, inputs["delta"])
        inputs["delta_bias"] = ""
    if inputs["z"] and not pattern.z:
        scan.output[0] = f"{y}_scan_ungated"
        gate = after("Mul", inputs["z"], after("Sigmoid", inputs["z"]))
        after("Mul", scan.output[0], gate, out=[y])
        inputs["z"] = ""
    for name, wanted in (("D", pattern.D), ("delta_bias", pattern.delta_bias)):
        if wanted and not inputs[name]:
            size = before("Shape", inputs["A"], start=0, end=1)
            inputs[name] = before("CastLike", before("ConstantOfShape", size), inputs["A"])

    del scan.input[:], scan.attribute[:]
    scan.input.extend(inputs[name] for name in pattern.inputs())
    scan.attribute.append(helper.make_attribute("delta_softplus", int(pattern.delta_softplus)))
    return [*before.nodes, scan, *after.nodes]


def _measure(model: ModelProto, scans: list[NodeProto], kind: str) -> tuple[Pattern, bool]:
    """What element types, N and L tell: arithmetic, casts, single state, longest L.

    Returns that, and whether the map of a 2-D scan is of another type than its weights.
    """
    wanted = {name for n in scans for name in (n.input[0], _decay(n))}
    types = _types(model, wanted)

    def element(name: str) -> int:
        return types[name].tensor_type.elem_type if name in types else TensorProto.UNDEFINED

    def size(name: str, *axes: int) -> int:
        dims = types[name].tensor_type.shape.dim if name in types else ()
        return math.prod(dims[axis].dim_value if axis < len(dims) else 0 for axis in axes)

    lengths = [size(n.input[0], *((2, 3) if is_ss2d(n) else (2,))) for n in scans]
    for n, length in zip(scans, lengths, strict=True):
        if kind == "parallel" and not length:
            raise InputError(
                f"{n.op_type} node {n.name or n.output[0]!r} has no fixed length L; the parallel "
                "function needs one: export with a fixed image size, or choose sequential"
            )
    # Inside a 2-D scan all is of the weights' type.
    kinds = {element(_decay(n) if is_ss2d(n) else n.input[0]) for n in scans}
    real = TensorProto.DOUBLE if TensorProto.DOUBLE in kinds else TensorProto.FLOAT
    kinds |= {element(_decay(n)) for n in scans}
    pattern = Pattern(
        compute=real,
        casts=kinds != {real},
        single_state=all(size(_decay(n), 1) == 1 for n in scans),
        max_length=max(lengths),
    )
    return pattern, any(is_ss2d(n) and element(n.input[0]) != element(_decay(n)) for n in scans)


def _decay(node: NodeProto) -> str:
    """The name of A, dim by N."""
    operator = next(operator for operator in OPERATORS if operator.op_type == node.op_type)
    return node.input[operator.inputs.index("A")]


def _known(value: TypeProto | None) -> bool:
    return (
        value is not None
        and value.tensor_type.elem_type != 0
        and all(d.HasField("dim_value") for d in value.tensor_type.shape.dim[1:])
    )


def _types(model: ModelProto, wanted: Collection[str]) -> dict[str, TypeProto]:
    """Types of values: those that the model notes, or inferred if one of `wanted` is missing."""
    types = _noted(model)
    if all(_known(types.get(name)) for name in wanted):
        return types
    return _noted(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _noted(model: ModelProto) -> dict[str, TypeProto]:
    types: dict[str, TypeProto] = {}
    for graph in all_graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            types[value.name] = value.type
        for tensor in graph.initializer:
            types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types
