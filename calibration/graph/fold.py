"""Weights made constant: what an export computes of them in every run is computed once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tfanet.calibration.graph.index import replace_nodes

__all__ = ["fold_weights"]

# Data movement that exporters leave between a stored weight and the node that reads it.
_FOLDED = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def fold_weights(model: ModelProto) -> ModelProto:
    """A copy in which data movement of constants is done: every weight feeds its layer directly.

    Nodes of other kinds stay, and so does the arithmetic: outputs are bit-identical.
    """
    result = ModelProto()
    result.CopyFrom(model)
    values = {tensor.name: tensor for tensor in result.graph.initializer}
    origin = {name: name for name in values}
    kept: list[NodeProto] = []
    for node in result.graph.node:
        if node.op_type not in _FOLDED or not all(name in values for name in node.input if name):
            kept.append(node)
            continue
        folded = _compute(node, [values[name] for name in node.input if name], result)
        values[folded.name] = folded
        origin[folded.name] = origin[node.input[0]]
    stored = {tensor.name for tensor in result.graph.initializer}
    result.graph.initializer.extend(t for name, t in values.items() if name not in stored)
    replace_nodes(result, kept)
    _restore_names(result, origin)
    return result


def _compute(node: NodeProto, inputs: list[TensorProto], model: ModelProto) -> TensorProto:
    output = helper.make_tensor_value_info(node.output[0], inputs[0].data_type, None)
    graph = helper.make_graph([node], "fold", [], [output], inputs)
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    results: Any = ReferenceEvaluator(single).run(None, {})
    return numpy_helper.from_array(np.ascontiguousarray(results[0]), node.output[0])


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
