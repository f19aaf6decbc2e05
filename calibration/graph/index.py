"""`GraphIndex`: who gives and who reads a value, its shape, and what a node costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from tfanet.errors import InputError

__all__ = [
    "GraphIndex",
    "attribute",
    "names_read",
    "replace_nodes",
    "without_constants",
]

LARGE = 1024  # elements: a constant that shapes depend on is smaller
_QDQ = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")


class GraphIndex:
    """A model's main graph, indexed.

    Attributes:
        model: the indexed model; an index holds until nodes are added or removed.
        producer: node by the name of an output. consumers: nodes by the name of an input.
        constants: initializers by name. outputs: names of the graph's outputs.
        shapes: of values at batch 1, as far as shape inference knows them all.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in _read(node):
                self.consumers[name].append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.shapes = _shapes(model)

    def array(self, name: str) -> np.ndarray:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def check_not_quantised(self) -> None:
        """Raises InputError where the graph holds a Q, DQ or integer node already."""
        kinds = {node.op_type for node in self.model.graph.node}
        if any(kind in _QDQ or kind.startswith("QLinear") for kind in kinds):
            raise InputError(
                "the model holds QuantizeLinear or DequantizeLinear nodes: it is quantised "
                "already, start from the FP32 model"
            )

    def macs(self, node: NodeProto) -> int:
        """Multiply-accumulates at batch 1 of a Conv, MatMul or Gemm.

        Raises:
            InputError: where a shape is open.
        """
        out = math.prod(self.shape(node.output[0]))
        if node.op_type == "Conv":
            return out * math.prod(self.shape(node.input[1])[1:])
        inner = self.shape(node.input[0])
        transposed = node.op_type == "Gemm" and attribute(node, "transA", 0)
        return out * (inner[-2] if transposed else inner[-1])

    def shape(self, name: str) -> tuple[int, ...]:
        """A value's shape at batch 1. Raises InputError where it is open."""
        if name not in self.shapes:
            raise InputError(
                f"the shape of '{name}' is not fixed: export the model again with a fixed image "
                "size"
            )
        return self.shapes[name]


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((a.i for a in node.attribute if a.name == name), default)


def names_read(model: ModelProto) -> set[str]:
    """Names of all values that a node or the graph's caller reads."""
    names = {value.name for value in model.graph.output}
    return names.union(*(_read(node) for node in model.graph.node))


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give the model these nodes instead of its own, and drop constants that nobody reads now."""
    copies = GraphProto(node=nodes)  # some may be the model's own, which go first
    del model.graph.node[:]
    model.graph.node.extend(copies.node)
    read, constants = names_read(model), model.graph.initializer
    for place in reversed(range(len(constants))):
        if constants[place].name not in read:
            del constants[place]


def without_constants(model: ModelProto) -> ModelProto:
    """A copy without initializers, which are most of a model's bytes."""
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    return copy


def _read(node: NodeProto) -> set[str]:
    """Names that a node reads, those of its subgraphs included."""
    names = set(node.input)
    for entry in node.attribute:
        for inner in (entry.g, *entry.graphs):
            names |= {name for child in inner.node for name in _read(child)}
            names |= {value.name for value in inner.output}
    return names


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    fixed = without_constants(model)
    graph = fixed.graph
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > LARGE:  # its size tells shapes, its values do not
            kind, dims = tensor.data_type, tensor.dims
            graph.input.append(helper.make_tensor_value_info(tensor.name, kind, dims))
        else:
            graph.initializer.append(tensor)
    batch = {
        dim.dim_param
        for value in graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    # What the exporter noted stays, since inference cannot see through the custom operator; names
    # of sizes that it made up on the way are inferred again.
    noted = list(graph.value_info)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *noted):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in batch:
                dim.dim_value = 1
    graph.value_info.extend(value for value in noted if _known(value))
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if _known(value):
            found[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return found


def _known(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
