"""Puts back the shift of each output channel's mean that rounding the weights causes.

With q the rounded weight, a linear layer's mean result moves by (q - w)^T E[x], which is a
constant: it is subtracted from the layer's bias. For a convolution E[x] of an input channel
stands for every place under the kernel, which leaves out the padded border.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import ModelProto, numpy_helper

from tfanet.calibration import grid as grids
from tfanet.calibration.graph.index import GraphIndex, attribute
from tfanet.calibration.graph.layers import QUANTISED, Layer, node_of
from tfanet.calibration.grid import Grid
from tfanet.calibration.rewrite.qdq import quantize_weight

__all__ = ["bias_of", "correct_biases", "mean_axis"]


def mean_axis(layer: Layer) -> int:
    """The channel axis of the layer's input, whose means `correct_biases` needs."""
    return 1 if layer.op == "Conv" else -1


def bias_of(graph: GraphIndex, layer: Layer) -> str:
    """The name of the layer's constant bias, "" where it has none that is its own."""
    node = node_of(graph, layer)
    name = ""
    if layer.op in ("Conv", "Gemm"):
        name = node.input[2] if len(node.input) > 2 else ""
    else:
        readers = graph.consumers[node.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Add":
            name = next((n for n in readers[0].input if n in graph.constants), "")
    own = name in graph.constants and len(graph.consumers[name]) == 1
    return name if own and len(graph.shapes[name]) == 1 else ""


def correct_biases(
    model: ModelProto,
    layers: Iterable[Layer],
    means: Mapping[str, np.ndarray],
    grid: Grid = grids.INT8,
    *,
    pairs: bool = False,
) -> ModelProto:
    """A copy of the FP32 `model` with the biases of `layers` corrected, to be quantised next.

    Args:
        layers: those that will be quantised; others and those without a bias are left alone.
        means: E[x] of each channel by value name, (channels,), along `mean_axis`.
        grid, pairs: as for `quantize_weight`.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = GraphIndex(result)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for layer in layers:
        if layer.placement != QUANTISED or not layer.weight or layer.inputs[0] not in means:
            continue
        name = bias_of(graph, layer)
        if not name:
            continue
        rounded = quantize_weight(graph.array(layer.weight), layer.axis, grid, pairs=pairs)
        shift = _shift(graph, layer, np.asarray(means[layer.inputs[0]], np.float64), *rounded)
        bias = numpy_helper.to_array(tensors[name])
        if shift.shape == bias.shape:
            corrected = (bias - shift).astype(bias.dtype)
            tensors[name].CopyFrom(numpy_helper.from_array(corrected, name))
    return result


def _shift(
    graph: GraphIndex, layer: Layer, mean: np.ndarray, q: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Mean of the quantised result minus that of the exact one, by output channel."""
    weight = graph.array(layer.weight).astype(np.float64)
    shape = [-1 if i == layer.axis else 1 for i in range(weight.ndim)]
    error = q.astype(np.float64) * scale.reshape(shape) - weight
    if layer.op != "Conv":
        return mean @ (error if layer.axis else error.T)
    kernel = error.reshape(*error.shape[:2], -1).sum(2)  # (out, in / groups)
    groups = attribute(node_of(graph, layer), "group", 1)
    of_group = np.repeat(mean.reshape(groups, -1), len(kernel) // groups, axis=0)
    return (kernel * of_group).sum(1)
