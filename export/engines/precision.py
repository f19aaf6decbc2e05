"""Strongly typed graphs: which nodes of an ONNX graph compute in FP16 or BF16, which stay in FP32.

TensorRT and TensorRT-RTX take a graph's types literally, so precision is decided here, node by
node, by a table that can be read (`POLICY`), changed (`keep`) and is written into the manifest.
The graph's own inputs and outputs stay FP32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tfanet.errors import InputError, check_choice

__all__ = ["LOW_PRECISIONS", "MARGIN", "POLICY", "Kept", "cast_graph", "floats_of"]

LOW_PRECISIONS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

# Operators that stay in FP32, and why.
POLICY = {
    "SelectiveScan": "state, exp and softplus of the scan",
    "LayerNormalization": "statistics",
    "BatchNormalization": "statistics",
    "InstanceNormalization": "statistics",
    "GroupNormalization": "statistics",
    "ReduceSum": "long sums",
    "ReduceMean": "long sums",
    "GlobalAveragePool": "long sums",
    "CumSum": "long sums",
    "Pow": "squares of X-Norm",
    "Sqrt": "X-Norm",
    "Reciprocal": "X-Norm",
    "Exp": "exponentials",
    "Log": "exponentials",
    "Softplus": "exponentials",
    "Softmax": "exponentials",
}
COORDINATES = "coordinates"  # why those that a layer computes stay
# Operators that decide: next to the threshold a rounded value takes the other way, and a rounded
# index, such as every second integer above 2048 in FP16, is another place.
_COMPARES = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "ArgMax", "ArgMin", "TopK")
_ROUNDS = ("Floor", "Ceil", "Round")
_INTEGERS = {
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}
# Where the time goes: these stay only for a reason of their own.
_WORK = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPED_BY_ATTRIBUTE = ("Cast", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform")
# A value may come this near to the largest FP16 number on calibration pictures.
MARGIN = 0.5
_LARGEST = {"fp16": 65504.0, "bf16": 3.38e38}


@dataclass(frozen=True)
class Kept:
    """A node that stays in FP32, and why; `value` is the largest magnitude that decided it."""

    node: str
    op: str
    why: str
    value: float | None = None


class _TypedGraph:
    """Who makes and reads each value of the main graph, and which values are FP32."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.opset = next((o.version for o in model.opset_import if o.domain == ""), 0)
        self.initializers = {i.name: i for i in graph.initializer}
        typed = [*graph.input, *graph.output, *graph.value_info]
        types = {v.name: v.type.tensor_type.elem_type for v in typed}
        made = [name for node in self.nodes for name in node.output if name]
        if any(name not in types for name in made):
            inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
            types |= {v.name: v.type.tensor_type.elem_type for v in inferred}
        types |= {name: tensor.data_type for name, tensor in self.initializers.items()}
        unknown = [name for name in made if name not in types]
        if unknown:
            raise InputError(f"the type of value {unknown[0]!r} is unknown: export the model again")
        self.floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.maker = {name: n for n, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for n, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(n)

    def makers(self, node: NodeProto) -> set[int]:
        """Indices of the nodes that make FP32 inputs of this one."""
        return {self.maker[i] for i in node.input if i in self.floats and i in self.maker}

    def castable(self, node: NodeProto, kind: int) -> tuple[list[int], list[int]] | None:
        """Indices of the inputs and outputs that take `kind`; None where ONNX has no such form.

        All of one type variable of the operator's schema change together; others, such as the
        scales of a Resize, keep theirs.
        """
        if node.op_type in _TYPED_BY_ATTRIBUTE or node.domain not in ("", "ai.onnx"):
            return None
        if not onnx.defs.has(node.op_type, self.opset):
            return None
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        floats = [
            formal[min(i, len(formal) - 1)].type_str
            for names, formal in ((node.output, schema.outputs), (node.input, schema.inputs))
            for i, name in enumerate(names)
            if name in self.floats
        ]
        if not floats:
            return None
        variable = floats[0]  # an output's, if there is one
        wanted: dict[int, str] = {
            TensorProto.FLOAT16: "tensor(float16)",
            TensorProto.BFLOAT16: "tensor(bfloat16)",
        }
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        if wanted[kind] not in allowed.get(variable, ()):
            return None

        def indices(names: Sequence[str], formal: Sequence[onnx.defs.OpSchema.FormalParameter]):  # type: ignore[no-untyped-def]
            return [
                i
                for i, name in enumerate(names)
                if name in self.floats and formal[min(i, len(formal) - 1)].type_str == variable
            ]

        return indices(node.input, schema.inputs), indices(node.output, schema.outputs)


def floats_of(model: ModelProto) -> list[str]:
    """The FP32 values that nodes of the graph make, in order: what a range pass observes."""
    graph = _TypedGraph(model)
    return [name for node in graph.nodes for name in node.output if name in graph.floats]


def cast_graph(
    model: ModelProto,
    precision: str,
    *,
    keep: Iterable[str] = (),
    ranges: Mapping[str, float] | None = None,
    emulate: bool = False,
) -> tuple[ModelProto, list[Kept]]:
    """A strongly typed copy of an FP32 model, and the list of nodes that stay in FP32.

    Args:
        precision: "fp16" or "bf16". keep: patterns of node names, such as "decoder.*", that stay
            in FP32 beside what `POLICY` names. ranges: largest magnitude of values by name, as
            measured on calibration pictures; a node that makes one above `MARGIN` of the largest
            number of the type stays.
        emulate: compute in FP32 and round what would be stored in the low type, so that runtimes
            without kernels of that type give its masks.

    Raises InputError for an unknown precision, a pattern that fits no node, or a model that is
    not in FP32.
    """
    check_choice("precision", precision, LOW_PRECISIONS)
    if precision == "bf16":
        model = _with_bf16_operators(model)
    graph = _TypedGraph(model)
    others = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    if any(tensor.data_type in others for tensor in model.graph.initializer):
        raise InputError("the model has weights that are not FP32: cast the FP32 export instead")
    kept = _keep(graph, model, precision, list(keep), ranges or {})
    result = ModelProto()
    result.CopyFrom(model)
    _Writer(graph, result, LOW_PRECISIONS[precision], set(kept), emulate).write()
    table = [
        Kept(graph.nodes[n].name, graph.nodes[n].op_type, why, value)
        for n, (why, value) in sorted(kept.items())
    ]
    return result, table


def _with_bf16_operators(model: ModelProto) -> ModelProto:
    """Opset 22, where ONNX first allows BF16 in Conv, Resize and the activations.

    From 20 on the versions only add types to the operators of an exported graph, but for
    GroupNormalization.
    """
    opset = next((o for o in model.opset_import if o.domain == ""), None)
    if opset is None or opset.version >= 22:
        return model
    if opset.version < 20 or any(n.op_type == "GroupNormalization" for n in model.graph.node):
        raise InputError(f"bf16 needs opset 20 or newer, the model has {opset.version}")
    result = ModelProto()
    result.CopyFrom(model)
    for place in (result, *result.functions):
        for entry in place.opset_import:
            entry.version = 22 if entry.domain == "" else entry.version
    return result


_Reasons = dict[int, tuple[str, float | None]]


def _keep(
    graph: _TypedGraph,
    model: ModelProto,
    precision: str,
    keep: list[str],
    ranges: Mapping[str, float],
) -> _Reasons:
    """Nodes that stay in FP32, by index, with the reason."""
    unused = set(keep)
    limit = MARGIN * _LARGEST[precision]
    reasons: _Reasons = {}
    for n, node in enumerate(graph.nodes):
        values = [*node.input, *node.output]
        if not any(name in graph.floats for name in values):
            continue
        patterns = [p for p in keep if fnmatchcase(node.name, p)]
        unused -= set(patterns)
        size = max((ranges.get(name, 0.0) for name in values), default=0.0)
        if patterns:
            reasons[n] = (f"asked for by {patterns[0]!r}", None)
        elif node.op_type in POLICY:
            reasons[n] = (POLICY[node.op_type], None)
        elif graph.castable(node, LOW_PRECISIONS[precision]) is None:
            reasons[n] = (f"no {precision} form of the operator", None)
        elif size > limit or not math.isfinite(size):
            reasons[n] = (f"values beyond {limit:.3g}", size)
        else:
            largest = max((_magnitude(graph, name) for name in node.input), default=0.0)
            if largest > limit:
                reasons[n] = (f"weights beyond {limit:.3g}", largest)
    if unused:
        raise InputError(
            f"no node's name fits {sorted(unused)[0]!r}: names are such as "
            f"{graph.nodes[len(graph.nodes) // 2].name!r}"
        )
    for value in model.graph.output:
        _keep_logits(graph, value.name, reasons)
    _keep_decisions(graph, reasons)
    _keep_between(graph, reasons)
    return reasons


def _magnitude(graph: _TypedGraph, name: str) -> float:
    tensor = graph.initializers.get(name)
    if tensor is None or name not in graph.floats:
        return 0.0
    array = numpy_helper.to_array(tensor)
    return float(np.abs(array).max()) if array.size else 0.0


def _keep_logits(graph: _TypedGraph, name: str, reasons: _Reasons) -> None:
    """From an output back to the last layer with weights."""
    while name in graph.maker and name in graph.floats:
        n = graph.maker[name]
        reasons.setdefault(n, ("output", None))
        node = graph.nodes[n]
        if any(i in graph.initializers and i in graph.floats for i in node.input):
            return
        name = node.input[0]


def _keep_decisions(graph: _TypedGraph, reasons: _Reasons) -> None:
    """From each node that decides back to the last layers, those of its operands included.

    Of coordinates also what is computed from them alone, such as where between two pixels one lies.
    """
    coordinates = set()
    for n, node in enumerate(graph.nodes):
        why = _decision(node)
        if why is None or not any(name in graph.floats for name in node.input):
            continue
        waiting = [n]
        while waiting:
            one = waiting.pop()
            if one in reasons and one != n:
                continue
            reasons.setdefault(one, (why, None))
            if graph.nodes[one].op_type not in _WORK:
                waiting += graph.makers(graph.nodes[one])
        if why == COORDINATES:
            coordinates.add(n)
    for n, node in enumerate(graph.nodes):  # each behind what it reads
        makers = graph.makers(node)
        if makers & coordinates and makers <= reasons.keys() and node.op_type not in _WORK:
            reasons.setdefault(n, (COORDINATES, None))
            coordinates.add(n)


def _decision(node: NodeProto) -> str | None:
    """What a node decides, if it does."""
    if node.op_type in _COMPARES:
        return "a comparison decides"
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        return "indices" if to in _INTEGERS else None
    return COORDINATES if node.op_type in _ROUNDS else None


def _keep_between(graph: _TypedGraph, reasons: _Reasons) -> None:
    """Light nodes between nodes that stay, stay: casts there and back would only lose digits."""
    changed = True
    while changed:
        changed = False
        for n, node in enumerate(graph.nodes):
            makers = graph.makers(node)
            readers = {r for o in node.output if o in graph.floats for r in graph.readers[o]}
            if n in reasons or not makers or not readers or node.op_type in _WORK:
                continue
            if makers | readers <= reasons.keys():
                reasons[n] = ("between nodes that stay", None)
                changed = True


class _Writer:
    """Rewrites a model's main graph in place, given the nodes that stay in FP32."""

    def __init__(
        self, graph: _TypedGraph, model: ModelProto, kind: int, kept: set[int], emulate: bool
    ) -> None:
        self.graph, self.model, self.kind, self.kept = graph, model, kind, kept
        self.emulate = emulate
        self.suffix = next(name for name, value in LOW_PRECISIONS.items() if value == kind)
        self.low: set[str] = set()  # values that are of the low type, under their own name
        self.cast: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}

    def write(self) -> None:
        nodes = list(self.model.graph.node)
        for n, node in enumerate(nodes):
            places = None if n in self.kept else self.graph.castable(node, self.kind)
            inputs, outputs = places or ([], [])
            if places and self.emulate:
                self._write_emulated(node, inputs, outputs)
                continue
            for i, name in enumerate(node.input):
                if name in self.graph.floats:
                    node.input[i] = self._as(name, self.kind if i in inputs else TensorProto.FLOAT)
            self.low |= {node.output[i] for i in outputs}
            self.nodes.append(node)
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        weights = [t for t in graph.initializer if t.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*weights, *self.weights.values()])
        for value in graph.value_info:
            if value.name in self.low:
                value.type.tensor_type.elem_type = self.kind

    def _write_emulated(self, node: NodeProto, inputs: list[int], outputs: list[int]) -> None:
        for i in inputs:
            node.input[i] = self._rounded(node.input[i])
        self.nodes.append(node)
        for i in outputs:
            name, raw = node.output[i], f"{node.output[i]}_unrounded"
            node.output[i] = raw
            self._round(raw, name)

    def _as(self, name: str, kind: int) -> str:
        """`name` in the type `kind`: itself, a weight of that type, or a cast made once."""
        is_low = name in self.low
        if is_low == (kind == self.kind):
            return name
        if name in self.graph.initializers:
            return self._weight(name)
        key = (name, kind)
        if key not in self.cast:
            target = f"{name}_{self.suffix if kind == self.kind else 'fp32'}"
            self.nodes.append(helper.make_node("Cast", [name], [target], f"{target}/cast", to=kind))
            self.cast[key] = target
        return self.cast[key]

    def _rounded(self, name: str) -> str:
        """For `emulate`: an FP32 value that holds only numbers of the low type."""
        maker = self.graph.maker.get(name)
        if name in self.graph.initializers:
            return self._weight(name)
        if maker is not None and maker not in self.kept:
            return name
        key = (name, self.kind)
        if key not in self.cast:
            self.cast[key] = f"{name}_{self.suffix}"
            self._round(name, self.cast[key])
        return self.cast[key]

    def _round(self, source: str, target: str) -> None:
        low = f"{target}_low"
        self.nodes.append(helper.make_node("Cast", [source], [low], f"{low}/cast", to=self.kind))
        self.nodes.append(
            helper.make_node("Cast", [low], [target], f"{target}/cast", to=TensorProto.FLOAT)
        )

    def _weight(self, name: str) -> str:
        target = f"{name}_{self.suffix}"
        if target not in self.weights:
            dtype = helper.tensor_dtype_to_np_dtype(self.kind)
            low = numpy_helper.to_array(self.graph.initializers[name]).astype(dtype)
            self.weights[target] = numpy_helper.from_array(
                low.astype(np.float32) if self.emulate else low, target
            )
        return target
