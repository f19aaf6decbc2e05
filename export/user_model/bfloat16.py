"""A bfloat16 graph in float32: the same numbers with less rounding, where there are no kernels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

__all__ = ["widened"]

_TYPE_ATTRIBUTES = ("to", "dtype")


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place: every bfloat16 of it is float32."""
    _graph(model.graph)
    for function in model.functions:
        _nodes(function.node)
        _values(function.value_info)
    return model


def _graph(graph: GraphProto) -> None:
    _values((*graph.input, *graph.output, *graph.value_info))
    for tensor in graph.initializer:
        _tensor(tensor)
    _nodes(graph.node)


def _values(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _tensor(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                _graph(attribute.g)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
