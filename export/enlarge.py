"""A convolution of a map enlarged twice, on the map as it was: half the work, the same numbers.

Of the nine pixels that a 3 x 3 kernel sees of a map repeated twice along each axis, several are the
same one. For each of the four places within a repeated pixel a 2 x 2 kernel, the sums of those
that fall together, gives what the large kernel would: 16 products in place of 36.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["convolve_before_enlarging"]

# Taps of the kernel that fall on the first and on the second of two pixels, by the place.
_TAPS = (((0,), (1, 2)), ((0, 1), (2,)))
# What may stand between the convolution and the end of its layer, pixel by pixel.
_POINTWISE = ("BatchNormalization", "LeakyRelu", "Relu")


def convolve_before_enlarging(model: ModelProto) -> None:
    """Rewrite, in place, each Resize to twice the nearest pixel that one 3 x 3 Conv reads.

    The four convolutions, each with the layer's norm and activation, are put together by
    DepthToSpace. What differs in anything (another stride, kernel, padding or reader) stays.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    replaced: dict[str, list[NodeProto]] = {}  # by the output that the new nodes give
    gone: set[str] = set()
    for resize in graph.node:
        conv = _only(readers, resize.output[0], outputs)
        if not _doubles(resize, weights) or conv is None or not _is_plain(conv, weights):
            continue
        layer = [conv, *_pointwise(conv, readers, outputs)]
        replaced[layer[-1].output[0]] = list(_phases(resize, layer, weights, graph.initializer))
        gone |= {node.output[0] for node in (resize, *layer)}
    if replaced:
        kept: list[NodeProto] = []
        for node in graph.node:
            if node.output[0] in replaced:
                kept += replaced[node.output[0]]
            elif node.output[0] not in gone:
                kept.append(node)
        del graph.node[:]
        graph.node.extend(kept)
        _drop_unused(model)


def _only(readers: Mapping[str, list[NodeProto]], name: str, outputs: set[str]) -> NodeProto | None:
    """The one node that reads a value."""
    found = readers.get(name, [])
    return found[0] if len(found) == 1 and name not in outputs else None


def _doubles(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type != "Resize" or len(node.input) != 3 or node.input[2] not in weights:
        return False
    nearest = facts.get("mode", b"nearest") == b"nearest"
    floor = facts.get("nearest_mode") == b"floor"
    asymmetric = facts.get("coordinate_transformation_mode") == b"asymmetric"
    scales = numpy_helper.to_array(weights[node.input[2]]).tolist()
    return nearest and floor and asymmetric and scales == [1, 1, 2, 2] and "axes" not in facts


def _is_plain(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """A 3 x 3 convolution of known weights, with a pixel of padding and nothing else."""
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Conv"
        and node.input[1] in weights
        and list(weights[node.input[1]].dims[2:]) == [3, 3]
        and facts.get("pads") == [1, 1, 1, 1]
        and facts.get("strides", [1, 1]) == facts.get("dilations", [1, 1]) == [1, 1]
        and facts.get("group", 1) == 1
        and facts.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _pointwise(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], outputs: set[str]
) -> Iterator[NodeProto]:
    """The norm and activations that follow, each the only reader of the one before."""
    following = _only(readers, node.output[0], outputs)
    while following is not None and following.op_type in _POINTWISE:
        yield following
        following = _only(readers, following.output[0], outputs)


def _phases(
    resize: NodeProto,
    layer: list[NodeProto],
    weights: Mapping[str, TensorProto],
    initializers: Any,
) -> Iterator[NodeProto]:
    conv = layer[0]
    kernel = numpy_helper.to_array(weights[conv.input[1]])
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            suffix = f"_{row}{column}"
            name = conv.input[1] + suffix
            if name not in weights:
                initializers.append(numpy_helper.from_array(_summed(kernel, row, column), name))
            value = resize.input[0]
            for node in layer:
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.name += suffix
                copy.input[0] = value
                value = copy.output[0] = node.output[0] + suffix
                if node is conv:
                    copy.input[1] = name
                    del copy.attribute[:]
                    pads = [1 - row, 1 - column, row, column]
                    copy.attribute.append(helper.make_attribute("pads", pads))
                yield copy
            parts.append(value)
    joined = f"{layer[-1].output[0]}_parts"
    yield helper.make_node("Concat", parts, [joined], f"{resize.name}_parts", axis=1)
    yield helper.make_node(
        "DepthToSpace", [joined], [layer[-1].output[0]], resize.name, blocksize=2, mode="DCR"
    )


def _summed(kernel: np.ndarray, row: int, column: int) -> np.ndarray:
    """(O, C, 3, 3) to (O, C, 2, 2), summed in float64."""
    exact = kernel.astype(np.float64)
    rows = np.stack([exact[:, :, taps].sum(2) for taps in map(list, _TAPS[row])], axis=2)
    both = np.stack([rows[:, :, :, taps].sum(3) for taps in map(list, _TAPS[column])], axis=3)
    return np.ascontiguousarray(both.astype(kernel.dtype))


def _drop_unused(model: ModelProto) -> None:
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    made = {name for node in graph.node for name in node.output}
    for values, wanted in ((graph.initializer, read), (graph.value_info, made)):
        kept = [value for value in values if value.name in wanted]
        del values[:]
        values.extend(kept)
