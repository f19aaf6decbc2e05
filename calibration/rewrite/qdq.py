"""Writes the Q/DQ graph: symmetric, per tensor for activations and per channel for weights.

The pattern is what TensorRT and ONNX Runtime fuse: DQ on each input of a layer; behind an INT8
convolution Q straight after it or its fused Relu; both inputs of a residual add or neither; biases
in FP32. A value is quantised once, however many layers read it.

TensorRT takes signed activations only. ONNX Runtime's kernels for x86 take unsigned ones. It turns
signed Q/DQ pairs into unsigned ones by itself, but not where several nodes read a value: such
convolutions then run in floating point. So for ONNX Runtime the same steps are written as uint8
around 128, and what a Relu, Sigmoid or Softmax gives as uint8 from 0 up, with half the step. Its
kernels for x86 without VNNI add two products in 16 bits, so a channel's steps are as wide as its
two largest weights of one sign need together (`runtime.backends.integer`): about 7 bits, and the
same result on every processor. ONNX Runtime would also convert a whole table of embeddings in each
run, so its rows are looked up before DQ; TensorRT takes INT8 constants in front of DQ alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tfanet.calibration import grid as grids
from tfanet.calibration.graph.index import GraphIndex, replace_nodes
from tfanet.calibration.graph.layers import QUANTISED, STORED, Layer, node_of
from tfanet.calibration.grid import Grid
from tfanet.errors import InputError
from tfanet.runtime.backends.integer import pair_sums

__all__ = ["quantize", "quantize_weight", "ranged_values"]

_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax")


def quantize_weight(
    weight: np.ndarray, axis: int, grid: Grid = grids.INT8, *, pairs: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Per output channel.

    Args:
        weight: float, any rank. axis: of the output channels.
        pairs: no two products of a channel with uint8 activations leave 16 bits together.

    Returns:
        q of the grid's dtype and the same shape, and scale (channels,) float32, with
        weight ≈ q * scale along `axis`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    # Two numbers that sum to 127 steps are rounded to 128 at most, `integer.PAIR`.
    scale = grid.step(pair_sums(weight, axis) if pairs else np.abs(weight).max(axis=others))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return grid.encode(weight.astype(np.float32) / scale.reshape(shape)), scale


def ranged_values(graph: GraphIndex, layers: Iterable[Layer]) -> list[str]:
    """Names of the values that need a range when `layers` are quantised, in graph order."""
    wanted: dict[str, None] = {}
    for layer in layers:
        if layer.placement != QUANTISED:
            continue
        wanted |= dict.fromkeys(layer.inputs)
        if layer.output:
            wanted[layer.output] = None
            wanted |= dict.fromkeys(name for _, name in _residual_reads(graph, layer.output))
    return list(wanted)


def quantize(
    model: ModelProto,
    layers: Iterable[Layer],
    amax: Mapping[str, float],
    *,
    grid: Grid = grids.INT8,
    unsigned: bool = False,
) -> ModelProto:
    """A copy of `model` with Q/DQ nodes around `layers`.

    Args:
        model: float32, with weights that feed their nodes directly.
        layers: those of `find_layers` that are to be quantised; of STORED ones only the weight is,
            to INT8, and FLOAT ones are left alone.
        amax: largest magnitude by value name, for `ranged_values`.
        grid: INT8 or FP8. unsigned: write INT8 activations as uint8, and weights of which no pair
            of products leaves 16 bits, for ONNX Runtime.

    Raises:
        InputError: where the model is quantised already or its opset is too old for the grid, or a
            range is missing or not finite.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = GraphIndex(result)
    graph.check_not_quantised()
    grid.check(result)
    layers = [layer for layer in layers if layer.placement in (QUANTISED, STORED)]
    if grid != grids.INT8:  # its products have float results, and three bits are few for a sum
        layers = [replace(layer, output="") for layer in layers]
    computed = {layer.weight for layer in layers if layer.placement == QUANTISED}
    writer = _Writer(graph, amax, grid, unsigned, computed)
    for layer in layers:
        node = node_of(graph, layer)
        if layer.op == "Gather" and unsigned:
            writer.store_table(node, layer)
        elif layer.weight:
            writer.store_weight(node, layer)
        if layer.placement == QUANTISED:
            for name in layer.inputs:
                writer.read_quantized(node, name)
    for layer in layers:
        if layer.output:
            matched = _residual_reads(graph, layer.output)
            for reader in graph.consumers[layer.output]:
                writer.read_quantized(reader, layer.output)
            for reader, name in matched:
                writer.read_quantized(reader, name)
    writer.finish()
    return result


class _Writer:
    """Collects new nodes and constants, and puts them in place once at the end."""

    def __init__(
        self,
        graph: GraphIndex,
        amax: Mapping[str, float],
        grid: Grid,
        unsigned: bool,
        computed: Collection[str],
    ) -> None:
        self.graph, self.amax, self.grid, self.unsigned = graph, amax, grid, unsigned
        self.computed = computed  # weights that a quantised layer reads
        self.behind: dict[str, list[NodeProto]] = {}  # by the value that they read
        self.first: list[NodeProto] = []  # read constants only
        self.stored: dict[tuple[str, int], str] = {}
        self.ranged: dict[str, str] = {}
        self.zero_points: set[str] = set()

    def constant(self, name: str, value: np.ndarray) -> str:
        self.graph.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def step(self, name: str, amax: float) -> tuple[str, str]:
        """Names of the constants scale and zero_point of an activation."""
        scale, zero = self.grid.step(amax), self.grid.encode(np.zeros(()))
        if self.unsigned:
            producer = self.graph.producer.get(name)
            positive = producer is not None and producer.op_type in _NOT_NEGATIVE
            zero = np.array(0 if positive else 128, np.uint8)
            if positive and amax > 0:
                scale = (scale * np.float32(127 / 255)).astype(np.float32)
        shared = f"zero_point.{zero}"
        if shared not in self.zero_points:
            self.zero_points.add(self.constant(shared, zero))
        return self.constant(f"{name}.scale", scale), shared

    def store_weight(self, node: NodeProto, layer: Layer) -> None:
        key = (layer.weight, layer.axis)
        if key not in self.stored:
            # What is only stored keeps the even steps, which lose less.
            computed = layer.weight in self.computed
            grid = self.grid if computed else grids.INT8
            weight, pairs = self.graph.array(layer.weight), computed and self.unsigned
            q, scale = quantize_weight(weight, layer.axis, grid, pairs=pairs)
            base = layer.weight if (layer.weight, 1 - layer.axis) not in self.stored else node.name
            inputs = [self.constant(f"{base}.q", q), self.constant(f"{base}.scale", scale)]
            self.first.append(
                helper.make_node(
                    "DequantizeLinear", inputs, [f"{base}.dq"], f"{base}.dq", axis=layer.axis
                )
            )
            self.stored[key] = f"{base}.dq"
        _replace(node, layer.weight, self.stored[key])

    def store_table(self, node: NodeProto, layer: Layer) -> None:
        """Rows are looked up in INT8, and only those in use are converted."""
        q, scale = quantize_weight(self.graph.array(layer.weight), layer.axis)
        inputs = [f"{node.output[0]}.q", self.constant(f"{layer.weight}.scale", scale)]
        _replace(node, layer.weight, self.constant(f"{layer.weight}.q", q))
        output = node.output[0]
        node.output[0] = inputs[0]
        rank = len(self.graph.shapes[node.input[1]]) + 1
        dequantize = helper.make_node(
            "DequantizeLinear", inputs, [output], f"{output}.dq", axis=rank - 1
        )
        self.behind.setdefault(inputs[0], []).append(dequantize)

    def read_quantized(self, node: NodeProto, name: str) -> None:
        if name not in self.ranged:
            amax = self.amax.get(name)
            if amax is None or not np.isfinite(amax) or amax < 0:
                raise InputError(
                    f"the range of '{name}' is {amax}: the calibration was made for another model, "
                    "calibrate this one"
                )
            if self.grid != grids.INT8:
                self.hide_relu(name)
            scale, zero = self.step(name, amax)
            q, dq = f"{name}.q", f"{name}.dq"
            self.behind.setdefault(name, []).extend(
                [
                    helper.make_node("QuantizeLinear", [name, scale, zero], [q], q),
                    helper.make_node("DequantizeLinear", [q, scale, zero], [dq], dq),
                ]
            )
            self.ranged[name] = dq
        _replace(node, name, self.ranged[name])

    def hide_relu(self, name: str) -> None:
        """Write a Relu as Max(x, 0): ONNX Runtime drops a Relu in front of Q where the zero point
        is 0, as if that could not be negative; in FP8 it can."""
        node = self.graph.producer.get(name)
        if node is not None and node.op_type == "Relu":
            node.op_type = "Max"
            node.input.append(self.constant(f"{name}.zero", np.zeros((), np.float32)))

    def finish(self) -> None:
        model = self.graph.model
        nodes = list(self.first)
        for value in model.graph.input:
            nodes.extend(self.behind.get(value.name, ()))
        for node in model.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes.extend(self.behind.get(name, ()))
        replace_nodes(model, nodes)


def _residual_reads(graph: GraphIndex, output: str) -> list[tuple[NodeProto, str]]:
    """The other activation of each Add that takes a quantised convolution's result."""
    return [
        (reader, name)
        for reader in graph.consumers[output]
        if reader.op_type == "Add"
        for name in reader.input
        if name != output and name in graph.producer
    ]


def _replace(node: NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
