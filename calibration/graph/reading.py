"""Small tools on ONNX graphs: weights made constant, who reads what, sizes, arithmetic counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tfanet.errors import InputError
from tfanet.plugins.graph.attach import split_ss2d

__all__ = ["Graph", "fold_weights", "load"]

# Data movement that exporters leave between a stored weight and the node that reads it.
_FOLDED = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
LARGE = 1024  # elements: a constant that shapes depend on is smaller
_QDQ = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")


def load(path: str | Path, content: bytes | None = None) -> ModelProto:
    """Read an ONNX file; of 2-D scans the projection stands apart, which can be quantised.

    Args:
        content: the file's bytes, where they were read and compared already.

    Raises:
        InputError: where it cannot be read.
    """
    try:
        model = onnx.load(path) if content is None else onnx.load_from_string(content)
        return split_ss2d(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} can't be read as an ONNX model: {error}") from error


def fold_weights(model: ModelProto) -> ModelProto:
    """A copy in which data movement of constants is done: every weight feeds its layer directly.

    Nodes of other kinds stay, and so does the arithmetic: outputs are bit-identical.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    origin = {name: name for name in values}
    kept: list[NodeProto] = []
    for node in graph.node:
        constant = node.op_type in _FOLDED and all(n in values for n in node.input if n)
        if not constant:
            kept.append(node)
            continue
        inputs = [values[name] for name in node.input if name]
        values[node.output[0]] = _compute(node, inputs, result)
        origin[node.output[0]] = origin[node.input[0]]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    used = Graph.readers(result)
    graph.initializer.extend(tensor for name, tensor in values.items() if name in used)
    _restore_names(result, origin)
    return result


def _restore_names(model: ModelProto, origin: dict[str, str]) -> None:
    """Give a folded weight the name of the parameter that it was made from, if that is free."""
    uses = Counter(origin[tensor.name] for tensor in model.graph.initializer)
    outputs = {value.name for value in model.graph.output}
    names = {
        tensor.name: origin[tensor.name]
        for tensor in model.graph.initializer
        if uses[origin[tensor.name]] == 1 and tensor.name not in outputs
    }
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        _rename(node, names)
    # Constants carry their own shape; a note of an old one would contradict it.
    constants = {tensor.name for tensor in model.graph.initializer}
    noted = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(noted)


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for entry in node.attribute:
        for inner in (entry.g, *entry.graphs):
            for child in inner.node:
                _rename(child, names)


def _compute(
    node: NodeProto, inputs: list[onnx.TensorProto], model: ModelProto
) -> onnx.TensorProto:
    output = onnx.helper.make_tensor_value_info(node.output[0], inputs[0].data_type, None)
    graph = onnx.helper.make_graph([node], "fold", [], [output], inputs)
    single = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    results: Any = ReferenceEvaluator(single).run(None, {})
    return numpy_helper.from_array(np.ascontiguousarray(results[0]), node.output[0])


def _read(node: NodeProto) -> set[str]:
    """Names that a node reads, those of its subgraphs included."""
    names = set(node.input)
    for entry in node.attribute:
        for inner in (entry.g, *entry.graphs):
            names |= {name for child in inner.node for name in _read(child)}
            names |= {value.name for value in inner.output}
    return names


class Graph:
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

    @staticmethod
    def readers(model: ModelProto) -> set[str]:
        """Names of all values that a node or the graph's caller reads."""
        names = {value.name for value in model.graph.output}
        return names.union(*(_read(node) for node in model.graph.node))

    def array(self, name: str) -> np.ndarray:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def is_quantized(self) -> bool:
        """Whether the graph holds a Q, DQ or integer node already."""
        kinds = {node.op_type for node in self.model.graph.node}
        return any(kind in _QDQ or kind.startswith("QLinear") for kind in kinds)

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


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    fixed = _without_weights(model)
    graph = fixed.graph
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
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if _known(value):
            found[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return found


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy in which large constants are inputs: their sizes tell shapes, their values do not."""
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > LARGE:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.append(tensor)
    return copy


def _known(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
