"""Which nodes become INT8, which keep floating point, and why.

INT8: convolutions, and matrix products with a constant operand. In floating point stay the scan,
the product in it that gives delta, and what feeds it directly, X-Norm and the products between its
factors, LayerNorm, softplus and the last projection. Of a layer that cannot run in INT8 the weights
are still stored so, where large.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import NodeProto

from tfanet.calibration.graph.reading import Graph, attribute
from tfanet.errors import InputError
from tfanet.plugins.operands import SELECTIVE_SCAN, SS2D_SCAN

__all__ = ["MOVES", "Layer", "find_layers", "int8_share"]

INT8, WEIGHTS, FLOAT = "int8", "weights", "float"
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
        precision: "int8"; "weights" (stored in INT8, computed in float); or "float".
        why: the rule behind a precision that is not int8.
    """

    name: str
    node: str
    op: str
    inputs: tuple[str, ...]
    weight: str
    axis: int
    output: str
    macs: int
    precision: str
    why: str = ""


def find_layers(graph: Graph) -> list[Layer]:
    """All Conv, MatMul, Gemm and embedding nodes in graph order, with their precision.

    Raises:
        InputError: where the model is quantised already.
    """
    if graph.is_quantized():
        raise InputError(
            "the model holds QuantizeLinear or DequantizeLinear nodes: it is quantised already, "
            "start from the FP32 model"
        )
    found = [layer for node in graph.model.graph.node if (layer := _layer(graph, node))]
    # Exports name nodes "module/op": the module is enough where it has one layer only.
    modules = Counter(layer.name.partition("/")[0] for layer in found)
    return [
        replace(layer, name=module)
        if modules[module := layer.name.partition("/")[0]] == 1
        else layer
        for layer in found
    ]


def int8_share(layers: list[Layer], chosen: set[str] | None = None) -> float:
    """Share of multiply-accumulates in INT8: of all layers so placed, or of those in `chosen`."""
    total = sum(layer.macs for layer in layers)
    done = sum(
        layer.macs
        for layer in layers
        if layer.precision == INT8 and (chosen is None or layer.name in chosen)
    )
    return done / total if total else 0.0


def _layer(graph: Graph, node: NodeProto) -> Layer | None:
    if node.op_type == "Gather":
        return _embedding(graph, node)
    if node.op_type == SS2D_SCAN.op_type:
        return _product_in_scan(graph, node)
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return None
    weight = next((name for name in node.input[:2] if name in graph.constants), "")
    activations = tuple(name for name in node.input[:2] if name != weight)
    output = _fused_output(graph, node) if node.op_type == "Conv" else ""
    precision, why = _precision(graph, node, weight)
    return Layer(
        name=node.name or node.output[0],
        node=node.name,
        op=node.op_type,
        inputs=activations,
        weight=weight,
        axis=_channel_axis(graph, node, weight),
        output=output if precision == INT8 else "",
        macs=graph.macs(node),
        precision=precision,
        why=why,
    )


def _embedding(graph: Graph, node: NodeProto) -> Layer | None:
    """A table of which rows are looked up: kept in INT8, only the rows in use are converted."""
    table = node.input[0]
    if table not in graph.constants or attribute(node, "axis", 0) != 0:
        return None
    shape = graph.shapes[table]
    if len(shape) != 2 or math.prod(shape) < LEAST_STORED:
        return None
    return Layer(
        node.name or node.output[0], node.name, "Gather", (), table, 1, "", 0, WEIGHTS, "a table"
    )


def _product_in_scan(graph: Graph, node: NodeProto) -> Layer:
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
        WEIGHTS if large else FLOAT,
        "its result goes into the scan",
    )


def _precision(graph: Graph, node: NodeProto, weight: str) -> tuple[str, str]:
    large = weight and math.prod(graph.shapes[weight]) >= LEAST_STORED
    stored = WEIGHTS if large else FLOAT
    if not weight:
        return FLOAT, "a product of two activations, as around X-Norm and softmax"
    if node.op_type != "Conv" and len(graph.shapes.get(node.input[0], ())) == 2:
        return stored, "a product of one vector, which is too small to gain"
    if _reaches_output(graph, node):
        return FLOAT, "the last projection"
    # An integer convolution gives 8 bits, and so would the scan's input be; a product gives FP32.
    if node.op_type == "Conv" and _feeds_scan(graph, node.output[0]):
        return stored, "its result goes into the scan"
    return INT8, ""


def _channel_axis(graph: Graph, node: NodeProto, weight: str) -> int:
    if not weight or node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    rank = len(graph.shapes[weight])
    return rank - 1 if weight == node.input[1] else max(rank - 2, 0)


def _fused_output(graph: Graph, node: NodeProto) -> str:
    """The value to quantise behind a convolution: past a Relu that runtimes fuse into it."""
    readers = graph.consumers[node.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Relu":
        return readers[0].output[0]
    return node.output[0]


def _downstream(graph: Graph, name: str, through: frozenset[str]) -> Iterator[NodeProto]:
    """Nodes that read a value, not its shape alone, directly or behind the kinds `through`."""
    for node in graph.consumers[name]:
        if node.op_type == "Shape":
            continue
        yield node
        if node.op_type in through:
            for output in node.output:
                yield from _downstream(graph, output, through)


def _feeds_scan(graph: Graph, name: str) -> bool:
    through = MOVES | {"Mul", "Sigmoid"}  # the SiLU in front of a scan
    scans = (SELECTIVE_SCAN.op_type, SS2D_SCAN.op_type)
    return any(n.op_type in scans for n in _downstream(graph, name, through))


def _reaches_output(graph: Graph, node: NodeProto) -> bool:
    through = MOVES | {"Add", "Resize"}  # the Add is the bias of a product
    behind = list(_downstream(graph, node.output[0], through))
    if any(n.op_type not in through for n in behind):
        return False
    return any(name in graph.outputs for n in (node, *behind) for name in n.output)
