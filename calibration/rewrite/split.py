"""Activations in two parts, each with a range of its own, where one INT8 step must serve too much.

After PTQ4RIS, with the plain Q/DQ operators that every runtime has:

* outliers: the channels of a linear layer's input are sorted by range, and the few with the largest
  go apart: x W = x_in W_in + x_out W_out. This is the order of channels folded into the weights;
  nothing is sorted at run time. For the text encoder.
* dual region: what a GELU or a softmax gives crowds near zero and has a long tail:
  x = clip(x, -t, t) + (x - clip(x, -t, t)), and x W is the sum of both products with W. The step of
  the tail is 2^k times that of the crowd, and t (1 + 2^k) is the largest magnitude.

Both are exact in floating point: a model is rewritten first, and then quantised as any other. A
split layer runs two products; outliers cost no arithmetic, dual regions double it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tfanet.calibration.graph.placement import INT8, MOVES, Layer
from tfanet.calibration.graph.reading import Graph
from tfanet.calibration.grid import Grid
from tfanet.calibration.measure.observers import Histogram
from tfanet.calibration.ranges import GraphRanges

__all__ = ["Regions", "is_crowded", "outlier_channels", "rewrite", "split_inputs"]

WORTH = 0.5  # of the rounding noise may be left where a split is to pay
PACKED = 4  # channels that integer kernels take at a time
STEPS = 8  # k is below


def split_inputs(layers: Sequence[Layer]) -> list[str]:
    """Inputs that can be split: those of linear layers in INT8."""
    return list(
        dict.fromkeys(
            layer.inputs[0]
            for layer in layers
            if layer.precision == INT8 and layer.op == "MatMul" and layer.axis == 1
        )
    )


def is_crowded(graph: Graph, name: str) -> bool:
    """Whether a value comes from a softmax, a GELU or x sigmoid(ax), moved or not."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in MOVES:
        node = graph.producer.get(node.input[0])
    if node is None:
        return False
    if node.op_type == "Mul":
        made = [graph.producer.get(factor) for factor in node.input]
        return any(factor is not None and factor.op_type == "Sigmoid" for factor in made)
    return node.op_type in ("Gelu", "Softmax")


def outlier_channels(amax: np.ndarray) -> list[int]:
    """The channels to keep apart, ascending; none where that is not worth it.

    With steps of amax / 127 for each group, the noise of n channels is proportional to n amax^2.
    The cut through the sorted channels with the least sum is taken, at a whole number of packs.

    Args:
        amax: largest magnitude of each channel, (channels,).
    """
    order = np.argsort(-amax, kind="stable")
    ranges = amax[order].astype(np.float64)
    apart = np.arange(PACKED, amax.size // 2 + 1, PACKED)
    if not apart.size or ranges[0] == 0:
        return []
    noise = apart * ranges[0] ** 2 + (amax.size - apart) * ranges[apart] ** 2
    best = int(np.argmin(noise))
    if noise[best] > WORTH * amax.size * ranges[0] ** 2:
        return []
    return sorted(int(channel) for channel in order[: apart[best]])


class Regions(Histogram):
    """Finds the two regions of a value, from a histogram that resolves the steps of both."""

    bins = 1 << 15

    def split(self, grid: Grid, amax: float) -> tuple[float, int] | None:
        """(t, k) with the least squared error, None where one range of `amax` is nearly as good."""
        seen = np.flatnonzero(self.counts)
        values, counts = self.centers[seen], self.counts[seen]

        def error(t: float, factor: float) -> float:
            step = t / grid.largest
            inner = np.minimum(values, t)
            rounded = grid.nearest(inner / step) * step
            if factor:
                outer = grid.nearest((values - inner) / (factor * step)) * factor * step
                rounded = rounded + outer
            return float(((rounded - values) ** 2 * counts).sum())

        if not seen.size:
            return None
        tried = [(error(self.largest / (1 + 2**k), 2**k), k) for k in range(STEPS)]
        least, k = min(tried)
        if least > WORTH * error(amax, 0):
            return None
        return float(np.float32(self.largest / (1 + 2**k))), k


def rewrite(
    model: ModelProto, layers: Sequence[Layer], ranges: GraphRanges
) -> tuple[ModelProto, list[Layer], dict[str, float]]:
    """A copy of `model` with the split layers written as two products.

    Args:
        layers: of the model, to be quantised. ranges: outliers and regions by value.

    Returns:
        The model, which computes the same; its layers, two for a split one; and amax by value,
        those of the new values included.
    """
    values = ranges.outliers.keys() | ranges.regions.keys()
    split = {layer.node: layer for layer in layers if values & set(split_inputs([layer]))}
    result = ModelProto()
    result.CopyFrom(model)
    splitter = _Splitter(result, ranges)
    found = [layer for layer in layers if layer.node not in split]
    for node in model.graph.node:
        layer = split.get(node.name)
        if layer is not None and node.op_type == layer.op:
            found.extend(splitter.write(node, layer))
        else:
            splitter.nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(splitter.nodes)
    used = Graph.readers(result)
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result, found, splitter.amax


class _Splitter:
    """The nodes of a graph in order, those that split a value in front of its first reader."""

    def __init__(self, model: ModelProto, ranges: GraphRanges) -> None:
        self.graph, self.ranges = Graph(model), ranges
        self.nodes: list[NodeProto] = []
        self.amax = dict(ranges.amax)

    def add(
        self, op: str, inputs: Sequence[str], output: str, name: str, **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.graph.constants:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.graph.constants[name] = tensor
            self.graph.model.graph.initializer.append(tensor)
        return name

    def write(self, node: NodeProto, layer: Layer) -> list[Layer]:
        """Append a layer as the sum of two products, and give these."""
        value, y = layer.inputs[0], node.output[0]
        inner, outer = f"{value}.inner", f"{value}.outer"
        if inner not in self.amax:
            if value in self.ranges.regions:
                self.clip(value, inner, outer)
            else:
                self.gather(value, inner, outer)
        products = []
        for part, weight, name in (
            (inner, self.weight(layer, 0), node.name),
            (outer, self.weight(layer, 1), f"{node.name}.outer"),
        ):
            output = f"{y}.{part.rpartition('.')[2]}"
            self.add("MatMul", [part, weight], output, name)
            products.append(replace(layer, node=name, inputs=(part,), weight=weight))
        self.add("Add", [f"{y}.inner", f"{y}.outer"], y, f"{node.name}.sum")
        return products

    def clip(self, value: str, inner: str, outer: str) -> None:
        t, k = self.ranges.regions[value]
        low = self.constant(f"{value}.low", np.array(-t, np.float32))
        high = self.constant(f"{value}.high", np.array(t, np.float32))
        self.add("Clip", [value, low, high], inner, inner)
        self.add("Sub", [value, inner], outer, outer)
        self.amax |= {inner: t, outer: t * 2**k}

    def gather(self, value: str, inner: str, outer: str) -> None:
        _, ends = self.ranges.outliers[value]
        for part, channels, amax in zip((inner, outer), self.groups(value), ends, strict=True):
            index = self.constant(f"{part}.channels", np.array(channels, np.int64))
            self.add("Gather", [value, index], part, part, axis=-1)
            self.amax[part] = amax

    def weight(self, layer: Layer, part: int) -> str:
        """The layer's weight, or its rows for the inner (0) or the outer (1) channels."""
        value = layer.inputs[0]
        if value in self.ranges.regions:
            return layer.weight
        rows = self.graph.array(layer.weight)[self.groups(value)[part]]
        return self.constant(f"{layer.weight}.{('inner', 'outer')[part]}", rows)

    def groups(self, value: str) -> tuple[list[int], list[int]]:
        """The channels that stay together, and those that go apart."""
        outer, _ = self.ranges.outliers[value]
        channels = self.graph.shape(value)[-1]
        return sorted(set(range(channels)) - set(outer)), list(outer)
