"""Data through ONNX Runtime, with the watched values summarised inside the graph.

A value's largest magnitude and its means, and an evenly spaced sample of it, are computed by nodes
that are added to the graph: no activation leaves the session or outlives its last reader, so memory
is that of a plain run, and all values are watched in one pass.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from tfanet.calibration.graph.reading import Graph
from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins import ort_library_path
from tfanet.runtime.backends import integer
from tfanet.runtime.backends.session import open_session

__all__ = ["SAMPLE", "Seen", "Watch", "Watched", "open_model", "stride_of"]

SAMPLE = 1 << 18  # most elements of a value that are looked at one by one; extremes are of all
OUTSIDE = 1 << 18  # bytes, from which a weight is written beside the graph
ALIGNED = 64  # bytes, of a weight in the file that ONNX Runtime maps
WEIGHTS = "weights.bin"


@dataclass(frozen=True)
class Seen:
    """A value at one picture.

    Attributes:
        largest: magnitude. means: of each channel, float32. channels: largest magnitude of each,
            float32, None where it was not asked for.
        sample: flat, every `stride`-th element in memory order; the stride has no factor in common
            with any size, so that all channels come equally often.
    """

    largest: float
    means: np.ndarray
    channels: np.ndarray | None
    sample: np.ndarray
    stride: int


Watch = Callable[[str, Seen], None]  # with the value's name


def open_model(
    model: ModelProto, *, added: GraphProto | None = None, threads: int | None = None
) -> Any:
    """An ONNX Runtime session of a model in memory, with our operator library where it is built.

    It goes through files, since a model in memory may not exceed 2 GB on its way; weights go beside
    the graph, from where they are mapped and not copied. The files are gone when it is open.
    Integer layers that this processor would compute wrong run in floating point.

    Args:
        added: nodes, constants and outputs on top of the model's.
    """
    try:
        library: Path | None = ort_library_path()
    except MissingDependencyError:
        library = None  # the function body in the model runs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        light = _without_weights(model, Path(folder) / WEIGHTS)
        if added is not None:
            light.graph.MergeFrom(added)
        path.write_bytes(light.SerializeToString())
        return open_session(path, library, threads, as_floats=_needs_floats(model))


def _needs_floats(model: ModelProto) -> bool:
    if integer.is_exact() or not any(n.op_type == "DequantizeLinear" for n in model.graph.node):
        return False
    return bool(integer.overflowing(model.SerializeToString()))


def _without_weights(model: ModelProto, weights: Path) -> ModelProto:
    """A copy of the model whose large tensors are in the file `weights`, which is written."""
    copy = ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    with open(weights, "wb") as file:
        for tensor in model.graph.initializer:
            data = tensor.raw_data if tensor.HasField("raw_data") else b""
            if len(data) < OUTSIDE:
                graph.initializer.append(tensor)
                continue
            file.write(bytes(-file.tell() % ALIGNED))
            outside = graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            outside.data_location = TensorProto.EXTERNAL
            place = {"location": WEIGHTS, "offset": file.tell(), "length": len(data)}
            for key, value in place.items():
                outside.external_data.add(key=key, value=str(value))
            file.write(data)
    return copy


def stride_of(size: int) -> int:
    """Steps of a sample of at most `SAMPLE` of `size` elements, with no factor of `size`."""
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


class Watched:
    """A session that also gives a `Seen` of each watched value."""

    def __init__(
        self,
        model: ModelProto,
        axes: Mapping[str, int],
        by_channel: Collection[str],
        where: Mapping[str, str],
    ) -> None:
        """Open the session.

        Args:
            axes: by the name of each watched float32 value, its axis of channels.
            by_channel: names of those of which the channels' largest magnitudes are wanted too.
            where: the layer to name in an error, by value.

        Raises:
            InputError: where a watched value's shape is open.
        """
        graph = Graph(model)
        self._where = where
        self._strides = {name: stride_of(math.prod(graph.shape(name))) for name in axes}
        self._outputs = [value.name for value in model.graph.output]
        added = GraphProto()
        for name, axis in axes.items():
            rank = len(graph.shape(name))
            others = [i for i in range(rank) if i != axis % rank]
            _summarise(added, name, others, self._strides[name], name in by_channel)
        self._names = [value.name for value in added.output]
        self._by_channel = frozenset(by_channel)
        self._session = open_model(model, added=added)

    def run(self, feed: Mapping[str, np.ndarray], watch: Watch | None) -> dict[str, np.ndarray]:
        """Run once, show every watched value to `watch`, return the model's own outputs.

        Raises:
            InputError: naming the layer, where a value is NaN or infinite.
        """
        fetched = [*self._outputs, *(self._names if watch else ())]
        values = dict(zip(fetched, self._session.run(fetched, dict(feed)), strict=True))
        for name in self._strides if watch else ():
            seen = self._seen(name, values)
            # A NaN passes through a mean, and is not lost as in a maximum.
            if not (np.isfinite(seen.means).all() and np.isfinite(seen.largest)):
                raise InputError(
                    f"the activation '{name}' of layer {self._where.get(name, name)} is NaN or "
                    "infinite: the model is broken before quantisation, check its weights and "
                    "inputs"
                )
            assert watch is not None
            watch(name, seen)
        return {name: values[name] for name in self._outputs}

    def _seen(self, name: str, values: Mapping[str, np.ndarray]) -> Seen:
        highest, lowest, means, sample = (
            values[f"{name}.{kind}"] for kind in ("highest", "lowest", "means", "sample")
        )
        channels = np.maximum(highest, -lowest)
        return Seen(
            largest=float(channels.max()),
            means=means,
            channels=channels if name in self._by_channel else None,
            sample=sample,
            stride=self._strides[name],
        )


def _summarise(
    graph: GraphProto, name: str, others: list[int], stride: int, by_channel: bool
) -> None:
    """Append the nodes that summarise a value, their constants and outputs."""

    def constant(kind: str, values: list[int]) -> str:
        array = np.array(values, np.int64)
        graph.initializer.append(numpy_helper.from_array(array, f"{name}.{kind}"))
        return f"{name}.{kind}"

    def node(op: str, inputs: list[str], kind: str, **attributes: Any) -> None:
        output = f"{name}.{kind}"
        graph.node.append(helper.make_node(op, inputs, [output], output, **attributes))

    axes = constant("others", others)
    extremes = [name, axes] if by_channel else [name]
    node("ReduceMax", extremes, "highest", keepdims=0)
    node("ReduceMin", extremes, "lowest", keepdims=0)
    node("ReduceMean", [name, axes], "means", keepdims=0)
    node("Reshape", [name, constant("flat", [-1])], "elements")
    bounds = [constant(kind, [n]) for kind, n in (("from", 0), ("to", 1 << 62), ("axis", 0))]
    node("Slice", [f"{name}.elements", *bounds, constant("stride", [stride])], "sample")
    for kind in ("highest", "lowest", "means", "sample"):
        graph.output.append(
            helper.make_tensor_value_info(f"{name}.{kind}", TensorProto.FLOAT, None)
        )
