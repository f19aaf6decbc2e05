"""Pointwise convolutions and Gemm nodes as matrix products, the form that integer kernels like.

A 1x1 convolution in NCHW is a matrix product over channels. As a MatMul on channels-last data it
needs no integer output: ONNX Runtime has an INT8 product with a float result for MatMul alone, and
for a Conv would also quantise what comes out, on its way into a scan, a norm or a residual add.
TensorRT takes either form. The transposes around it meet those of the neighbouring LayerNorms.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tfanet.calibration.graph.index import GraphIndex, attribute, names_read, replace_nodes

__all__ = ["to_linear"]


def to_linear(model: ModelProto) -> ModelProto:
    """A copy with every pointwise Conv of one group, and every plain Gemm, as MatMul and Add.

    The product is the same in exact arithmetic; weights that are shared are written once for each
    use. Weights must be initializers that feed their node directly (`fold_weights`).
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = GraphIndex(result)
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        if node.op_type == "Conv" and _is_pointwise(graph, node):
            nodes.extend(_expand_conv(graph, node))
        elif node.op_type == "Gemm" and _is_plain(graph, node):
            nodes.extend(_expand_gemm(graph, node))
        else:
            nodes.append(node)
    replace_nodes(result, nodes)
    _cancel_transposes(result)
    _drop_dead_transposes(result)
    return result


def _is_pointwise(graph: GraphIndex, node: NodeProto) -> bool:
    shape = graph.shapes.get(node.input[1], ())
    unit = all(
        all(value == (0 if a.name == "pads" else 1) for value in a.ints)
        for a in node.attribute
        if a.name in ("pads", "strides")
    )
    return (
        node.input[1] in graph.constants
        and set(shape[2:]) == {1}
        and attribute(node, "group", 1) == 1
        and unit
        and not any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute)
    )


def _is_plain(graph: GraphIndex, node: NodeProto) -> bool:
    factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
    return (
        node.input[1] in graph.constants
        and not attribute(node, "transA", 0)
        and all(factor == 1.0 for factor in factors)
    )


def _expand_conv(graph: GraphIndex, node: NodeProto) -> list[NodeProto]:
    weight = graph.array(node.input[1])
    rank = weight.ndim
    last = [0, *range(2, rank), 1]  # NC... to N...C
    back = [0, rank - 1, *range(1, rank - 1)]
    y = node.output[0]
    nodes = [helper.make_node("Transpose", [node.input[0]], [f"{y}_in"], f"{y}_in", perm=last)]
    nodes += _product(graph, node, f"{y}_in", weight.reshape(weight.shape[:2]).T, f"{y}_last")
    nodes.append(helper.make_node("Transpose", [f"{y}_last"], [y], f"{y}_back", perm=back))
    return nodes


def _expand_gemm(graph: GraphIndex, node: NodeProto) -> list[NodeProto]:
    weight = graph.array(node.input[1])
    if attribute(node, "transB", 0):
        weight = weight.T
    return _product(graph, node, node.input[0], weight, node.output[0])


def _product(
    graph: GraphIndex, node: NodeProto, x: str, weight: np.ndarray, y: str
) -> list[NodeProto]:
    """x @ weight + bias; weight (in, out) under the name of the one that it replaces."""
    name = f"{node.input[1]}.columns"
    while name in graph.constants:
        name += "_"  # a weight with several readers
    tensor = numpy_helper.from_array(np.ascontiguousarray(weight), name)
    graph.model.graph.initializer.append(tensor)
    graph.constants[name] = tensor
    bias = node.input[2] if len(node.input) > 2 else ""
    product = f"{y}_product" if bias else y
    nodes = [helper.make_node("MatMul", [x, name], [product], node.name)]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [y], f"{node.name}_bias"))
    return nodes


def _cancel_transposes(model: ModelProto) -> None:
    """A transpose of a transpose that puts all axes back reads the first one's source instead."""
    perms = {
        node.output[0]: (node.input[0], [list(a.ints) for a in node.attribute if a.name == "perm"])
        for node in model.graph.node
        if node.op_type == "Transpose"
    }
    same: dict[str, str] = {}
    for name, (source, perm) in perms.items():
        first = perms.get(source)
        if first and perm and first[1]:
            composed = [first[1][0][axis] for axis in perm[0]]
            if composed == list(range(len(composed))):
                same[name] = first[0]
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in same and name not in outputs:
                node.input[index] = same[name]


def _drop_dead_transposes(model: ModelProto) -> None:
    """Remove transposes that nobody reads any more."""
    while True:
        read = names_read(model)
        dead = [
            node
            for node in model.graph.node
            if node.op_type == "Transpose" and node.output[0] not in read
        ]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)
