"""The layers of a graph: which of them are quantised, which keep floating point, and why.

Quantised, to INT8 or FP8: convolutions, and matrix products with a constant operand. In floating
point stay the scan, the product in it that gives delta, and what feeds it directly, X-Norm and the
products between its factors, LayerNorm, softplus and the last projection. Of a layer that computes
in floating point the weights are still stored in INT8, where they are large.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import NodeProto

from tfanet.calibration.graph.index import GraphIndex, attribute
from tfanet.errors import InputError
from tfanet.plugins.operands import SELECTIVE_SCAN, SS2D_SCAN

__all__ = [
    "FLOAT",
    "MOVES",
    "QUANTISED",
    "STORED",
    "Layer",
    "find_layers",
    "node_of",
    "quantised_share",
]

QUANTISED, STORED, FLOAT = "quantised", "weights", "float"  # where a layer is placed
# Nodes that only move or pick values: a range holds on both sides of them.
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
# A smaller weight is not worth the node that converts it back.
LEAST_STORED = 4096


@dataclass(frozen=True)
class Layer:
    """A node that can be quantised, or that a rule keeps in floating point.

    Attributes:
        name: where it is in the model. node: the ONNX node's name.
        op: Conv, MatMul, Gemm, Gather (an embedding) or SS2DScan (delta's product in it).
        inputs: activations that need a range, read by the node.
        weight: the constant operand, "" without one. axis: its axis of output channels.
        output: what the node, or the activation fused to it, gives; quantised too, since an
            integer convolution has an integer result; "" where the result is floating point.
        macs: multiply-accumulates at batch 1.
        placement: QUANTISED; STORED (its weight in INT8, computed in float); or FLOAT.
        why: the rule behind a placement that is not QUANTISED.
    """

    name: str
    node: str
    op: str
    inputs: tuple[str, ...]
    weight: str
    axis: int
    output: str
    macs: int
    placement: str
    why: str = ""


def find_layers(graph: GraphIndex) -> list[Layer]:
    """All Conv, MatMul, Gemm and embedding nodes in graph order, with their placement.

    Raises:
        InputError: where the model is quantised already.
    """
    graph.check_not_quantised()
    found = [layer for node in graph.model.graph.node if (layer := _layer(graph, node))]
    # Exports name nodes "module/op": the module is enough where it has one layer only.
    modules = Counter(layer.name.partition("/")[0] for layer in found)
    return [
        replace(layer, name=module)
        if modules[module := layer.name.partition("/")[0]] == 1
        else layer
        for layer in found
    ]


def node_of(graph: GraphIndex, layer: Layer) -> NodeProto:
    """The node of a layer that has a weight.

    Raises:
        InputError: where the graph has no such node.
    """
    for node in graph.consumers[layer.weight]:
        if node.name == layer.node and node.op_type == layer.op:
            return node
    raise InputError(
        f"the model has no {layer.op} node '{layer.node}' (layer {layer.name}): the layers are of "
        "another model"
    )


def quantised_share(layers: list[Layer], chosen: set[str] | None = None) -> float:
    """Share of multiply-accumulates in QUANTISED layers: in all, or in those named in `chosen`."""
    total = sum(layer.macs for layer in layers)
    done = sum(
        layer.macs
        for layer in layers
        if layer.placement == QUANTISED and (chosen is None or layer.name in chosen)
    )
    return done / total if total else 0.0


def _layer(graph: GraphIndex, node: NodeProto) -> Layer | None:
    if node.op_type == "Gather":
        return _embedding(graph, node)
    if node.op_type == SS2D_SCAN.op_type:
        return _product_in_scan(graph, node)
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return None
    weight = next((name for name in node.input[:2] if name in graph.constants), "")
    activations = tuple(name for name in node.input[:2] if name != weight)
    output = _fused_output(graph, node) if node.op_type == "Conv" else ""
    placement, why = _placement(graph, node, weight)
    return Layer(
        name=node.name or node.output[0],
        node=node.name,
        op=node.op_type,
        inputs=activations,
        weight=weight,
        axis=_channel_axis(graph, node, weight),
        output=output if placement == QUANTISED else "",
        macs=graph.macs(node),
        placement=placement,
        why=why,
    )


def _embedding(graph: GraphIndex, node: NodeProto) -> Layer | None:
    """A table of which rows are looked up: kept in INT8, only the rows in use are converted."""
    table = node.input[0]
    if table not in graph.constants or attribute(node, "axis", 0) != 0:
        return None
    shape = graph.shapes[table]
    if len(shape) != 2 or math.prod(shape) < LEAST_STORED:
        return None
    return Layer(
        node.name or node.output[0], node.name, "Gather", (), table, 1, "", 0, STORED, "a table"
    )


def _product_in_scan(graph: GraphIndex, node: NodeProto) -> Layer:
    """dt_weight times the rows of dt: E of R products in each direction, at every pixel."""
    weight = node.input[SS2D_SCAN.inputs.index("dt_weight")]
    constant = weight in graph.constants
    batch, _, height, width = graph.shape(node.input[0])
    macs = batch * height * width * math.prod(graph.shape(weight))
    large = constant and math.prod(graph.shapes[weight]) >= LEAST_STORED
    return Layer(
        node.name or node.output[0],
        node.name,
        node.op_type,
        (),
        weight if constant else "",
        0,
        "",
        macs,
        STORED if large else FLOAT,
        "its result goes into the scan",
    )


def _placement(graph: GraphIndex, node: NodeProto, weight: str) -> tuple[str, str]:
    large = weight and math.prod(graph.shapes[weight]) >= LEAST_STORED
    stored = STORED if large else FLOAT
    if not weight:
        return FLOAT, "a product of two activations, as around X-Norm and softmax"
    if node.op_type != "Conv" and len(graph.shapes.get(node.input[0], ())) == 2:
        return stored, "a product of one vector, which is too small to gain"
    if _reaches_output(graph, node):
        return FLOAT, "the last projection"
    # An integer convolution gives 8 bits, and so would the scan's input be; a product gives FP32.
    if node.op_type == "Conv" and _feeds_scan(graph, node.output[0]):
        return stored, "its result goes into the scan"
    return QUANTISED, ""


def _channel_axis(graph: GraphIndex, node: NodeProto, weight: str) -> int:
    if not weight or node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    rank = len(graph.shapes[weight])
    return rank - 1 if weight == node.input[1] else max(rank - 2, 0)


def _fused_output(graph: GraphIndex, node: NodeProto) -> str:
    """The value to quantise behind a convolution: past a Relu that runtimes fuse into it."""
    readers = graph.consumers[node.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return readers[0].output[0]
    return node.output[0]


def _downstream(graph: GraphIndex, name: str, through: frozenset[str]) -> Iterator[NodeProto]:
    """Nodes that read a value, not its shape alone, directly or behind the kinds `through`."""
    for node in graph.consumers[name]:
        if node.op_type == "Shape":
            continue
        yield node
        if node.op_type in through:
            for output in node.output:
                yield from _downstream(graph, output, through)


def _feeds_scan(graph: GraphIndex, name: str) -> bool:
    through = MOVES | {"Mul", "Sigmoid"}  # the SiLU in front of a scan
    scans = (SELECTIVE_SCAN.op_type, SS2D_SCAN.op_type)
    return any(n.op_type in scans for n in _downstream(graph, name, through))


def _reaches_output(graph: GraphIndex, node: NodeProto) -> bool:
    through = MOVES | {"Add", "Resize"}  # the Add is the bias of a product
    behind = list(_downstream(graph, node.output[0], through))
    if any(n.op_type not in through for n in behind):
        return False
    return any(name in graph.outputs for n in (node, *behind) for name in n.output)
