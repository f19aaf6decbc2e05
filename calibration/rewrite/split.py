"""Activations in two parts, each with a range of its own, where one INT8 step must serve too much.

After PTQ4RIS, with the plain Q/DQ operators that every runtime has:

* outliers: the channels of a linear layer's input are sorted by range, and the few with the largest
  go apart: x W = x_in W_in + x_out W_out. The order is folded into the weights, and nothing is
  sorted at run time. For the text encoder.
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

from tfanet.calibration.graph.index import GraphIndex, replace_nodes
from tfanet.calibration.graph.layers import QUANTISED, Layer
from tfanet.calibration.ranges import GraphRanges

__all__ = ["split_inputs", "split_layers"]


def split_inputs(layers: Sequence[Layer]) -> list[str]:
    """Inputs that can be split: those of quantised linear layers."""
    return list(
        dict.fromkeys(
            layer.inputs[0]
            for layer in layers
            if layer.placement == QUANTISED and layer.op == "MatMul" and layer.axis == 1
        )
    )


def split_layers(
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
    replace_nodes(result, splitter.nodes)
    return result, found, splitter.amax


class _Splitter:
    """The nodes of a graph in order, those that split a value in front of its first reader."""

    def __init__(self, model: ModelProto, ranges: GraphRanges) -> None:
        self.graph, self.ranges = GraphIndex(model), ranges
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
