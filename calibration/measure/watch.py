"""Data through both graphs, with the watched values summarised inside them.

A value's largest magnitude and its means, and an evenly spaced sample of it, are computed by nodes
that are added to the graph: no activation leaves the session or outlives its last reader, so memory
is that of a plain run, and all values are watched in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.graph.session import Inputs, open_model
from tfanet.errors import InputError
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT, image_feed

__all__ = ["SAMPLE", "Seen", "Show", "WatchedBundle", "WatchedGraph", "stride_of"]

SAMPLE = 1 << 18  # most elements of a value that are looked at one by one; extremes are of all


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


Show = Callable[[str, Seen], None]  # with the value's name


def stride_of(size: int) -> int:
    """Steps of a sample of at most `SAMPLE` of `size` elements, with no factor of `size`."""
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


class WatchedGraph:
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
        graph = GraphIndex(model)
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

    def run(self, feed: Mapping[str, np.ndarray], watch: Show) -> dict[str, np.ndarray]:
        """Run once, show every watched value to `watch`, return the model's own outputs.

        Raises:
            InputError: naming the layer, where a value is NaN or infinite.
        """
        fetched = [*self._outputs, *self._names]
        values = dict(zip(fetched, self._session.run(fetched, dict(feed)), strict=True))
        for name in self._strides:
            seen = self._seen(name, values)
            # A NaN passes through a mean, and is not lost as in a maximum.
            if not (np.isfinite(seen.means).all() and np.isfinite(seen.largest)):
                raise InputError(
                    f"the activation '{name}' of layer {self._where.get(name, name)} is NaN or "
                    "infinite: the model is broken before quantisation, check its weights and "
                    "inputs"
                )
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


class WatchedBundle:
    """Both graphs of a prepared bundle, opened to be watched."""

    def __init__(
        self,
        prepared: PreparedBundle,
        axes: Mapping[str, Mapping[str, int]],
        by_channel: Mapping[str, Collection[str]],
    ) -> None:
        """Open the sessions; the arguments are those of `WatchedGraph`, by file name.

        Raises:
            InputError: where a watched value's shape is open.
        """
        self._taken = prepared.bundle.manifest.interface.image_inputs
        self._text, self._image = (
            WatchedGraph(prepared.models[name], axes[name], by_channel[name], prepared.owners(name))
            for name in GRAPHS
        )

    def observe(
        self,
        inputs: Inputs,
        watch: Callable[[str, str, Seen], None],
        *,
        count: int,
        progress: Progress | None = None,
        stage: str = "observing",
    ) -> None:
        """Show every watched value of every picture to `watch(file, name, seen)`, in one pass.

        Raises:
            InputError: naming the layer where a value is not finite.
        """
        taken = self._taken
        for index, (picture, ids, mask) in enumerate(inputs()):
            encoded = self._text.run({"token_ids": ids}, partial(watch, TEXT))
            feed = image_feed(taken, picture, encoded, mask)
            self._image.run(feed, partial(watch, IMAGE))
            if progress is not None:
                progress(stage, index + 1, count)
