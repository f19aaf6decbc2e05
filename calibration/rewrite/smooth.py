"""Moves outliers of activations into weights, where each channel may have its own step.

LayerNorm's channels often differ by orders of magnitude while one INT8 step must serve all.
Dividing a channel by s in the norm's weight and bias, and multiplying the rows of the linear layers
behind it by s, computes the same. With s = amax(x)^a / amax(w)^(1 - a) both sides become even
(SmoothQuant, a = 1/2). s is rounded to a power of two: the migrated model is exact to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import QUANTISED, Layer
from tfanet.errors import InputError

__all__ = ["Group", "exponents", "find_groups", "migrate"]

ALPHA = 0.5
MOST = 8  # a channel moves by 2^8 at most: beyond that it is dead rather than small


@dataclass(frozen=True)
class Group:
    """A LayerNorm and the linear layers that alone read it.

    Attributes:
        value: the norm's result, channels last. parameters: the norm's scale and bias.
        weights: of the layers, each (channels, out).
    """

    value: str
    parameters: tuple[str, ...]
    weights: tuple[str, ...]


def find_groups(graph: GraphIndex, layers: Sequence[Layer]) -> list[Group]:
    """Every LayerNorm over the last axis whose only readers are quantised MatMul layers."""
    linear = {la.weight for la in layers if la.op == "MatMul" and la.placement == QUANTISED}
    groups = []
    for node in graph.model.graph.node:
        if node.op_type != "LayerNormalization":
            continue
        value, parameters = node.output[0], tuple(node.input[1:])
        readers = graph.consumers[value]
        weights = tuple(r.input[1] for r in readers if _is_linear(r, value, linear))
        own = all(
            name in graph.constants and len(graph.consumers[name]) == 1
            for name in (*parameters, *weights)
        )
        if readers and len(weights) == len(readers) and own and value not in graph.outputs:
            groups.append(Group(value, parameters, weights))
    return groups


def _is_linear(node: NodeProto, value: str, linear: set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[0] == value and node.input[1] in linear


def exponents(graph: GraphIndex, group: Group, amax: np.ndarray) -> np.ndarray:
    """log2 s of each channel, int64, with median 0.

    Args:
        amax: largest magnitude of each channel of the norm's result, (channels,).
    """
    rows = np.stack([np.abs(graph.array(name)).max(1) for name in group.weights]).max(0)
    alive = (amax > 0) & (rows > 0)
    log = np.zeros(amax.shape)
    log[alive] = ALPHA * np.log2(amax[alive]) - (1 - ALPHA) * np.log2(rows[alive])
    if alive.any():
        log[alive] -= np.median(log[alive])
    return np.clip(np.rint(log), -MOST, MOST).astype(np.int64)


def migrate(
    model: ModelProto, groups: Sequence[Group], moved: Mapping[str, Sequence[int]]
) -> ModelProto:
    """A copy of `model` with each group's channels divided by 2^exponent, and its rows multiplied.

    Args:
        moved: exponents by the group's value; groups that are not in it stay.

    Raises:
        InputError: where exponents are given for a value that no group has, or are too many or few.
    """
    unknown = sorted(set(moved) - {group.value for group in groups})
    if unknown:
        raise InputError(
            f"the calibration moves channels of '{unknown[0]}', which this model does not have: it "
            "was made for another model, calibrate this one"
        )
    result = ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}

    def scale(name: str, factors: np.ndarray) -> None:
        old = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(numpy_helper.from_array((old * factors).astype(old.dtype), name))

    for group in groups:
        if group.value not in moved:
            continue
        factors = np.exp2(np.asarray(moved[group.value], np.float32))
        channels = tensors[group.weights[0]].dims[0]
        if factors.shape != (channels,):
            raise InputError(
                f"the calibration moves {factors.size} channels of '{group.value}', the model has "
                f"{channels}: it was made for another model, calibrate this one"
            )
        for name in group.parameters:
            scale(name, 1 / factors)
        for name in group.weights:
            scale(name, factors[:, None])
    return result
