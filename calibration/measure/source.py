"""The FP32 bundle that is quantised: both graphs prepared, their layers, and passes over data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from tfanet.calibration.graph.layout import to_linear
from tfanet.calibration.graph.placement import Layer, find_layers
from tfanet.calibration.graph.reading import Graph, fold_weights, load
from tfanet.calibration.measure.collect import Seen, Watched
from tfanet.errors import InputError
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT, image_feed
from tfanet.runtime.bundle.read import Bundle

__all__ = ["Inputs", "Source", "Watcher"]

# Image, token ids and word mask of one picture after another; called once for each pass.
Inputs = Callable[[], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Source:
    """A bundle's graphs in the form that is quantised.

    Attributes:
        bundle: the FP32 bundle. models: by file name, weights folded and linear layers as MatMul.
        layers: by file name, in graph order; names are unique over both graphs.
    """

    bundle: Bundle
    models: dict[str, ModelProto]
    layers: dict[str, list[Layer]]

    @classmethod
    def open(cls, bundle: str | Path | Bundle) -> Source:
        """Prepare a bundle.

        Raises:
            BundleError: for a bad bundle. InputError: where it is quantised already.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if opened.manifest.precision != "fp32":
            raise InputError(
                f"{opened.path} has the precision {opened.manifest.precision}: it is quantised "
                "already, start from the FP32 bundle"
            )
        models = {
            name: _compact(to_linear(fold_weights(load(opened.file(name), opened.read(name)))))
            for name in GRAPHS
        }
        return cls(opened, models, {name: _named(models[name], name) for name in GRAPHS})

    def with_models(self, models: Mapping[str, ModelProto]) -> Source:
        """The same source with changed weights."""
        return replace(self, models=dict(models))

    def all_layers(self) -> list[Layer]:
        """Layers of both graphs, the text's first."""
        return [layer for name in GRAPHS for layer in self.layers[name]]

    def graphs(self) -> dict[str, Graph]:
        """Both models indexed."""
        return {name: Graph(model) for name, model in self.models.items()}

    def fingerprint(self) -> str:
        """SHA-256 of all that a calibration depends on but the weights' values."""
        digest = hashlib.sha256()
        for name in GRAPHS:
            graph = self.models[name].graph
            for node in graph.node:
                attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
                described = (node.op_type, list(node.input), list(node.output), attributes)
                digest.update(repr(described).encode())
            for tensor in graph.initializer:
                digest.update(repr((tensor.name, tensor.data_type, list(tensor.dims))).encode())
        return digest.hexdigest()

    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights' values."""
        digest = hashlib.sha256()
        for name in GRAPHS:
            for tensor in self.models[name].graph.initializer:
                digest.update(tensor.SerializeToString(deterministic=True))
        return digest.hexdigest()

    def watcher(
        self, axes: Mapping[str, Mapping[str, int]], by_channel: Mapping[str, Collection[str]]
    ) -> Watcher:
        """Sessions of both graphs that show values: by file, as for `Watched`.

        Raises:
            InputError: where a watched value's shape is open.
        """
        return Watcher(
            *(
                Watched(self.models[name], axes[name], by_channel[name], self._owners(name))
                for name in GRAPHS
            )
        )

    def _owners(self, name: str) -> dict[str, str]:
        """The layer that reads or gives a value, for messages."""
        layers = self.layers[name]
        given = {layer.output: layer.name for layer in layers}
        return given | {value: layer.name for layer in layers for value in layer.inputs}


def _compact(model: ModelProto) -> ModelProto:
    """The same model without the memory that protobuf keeps of what was removed from it."""
    return ModelProto.FromString(model.SerializeToString())


@dataclass(frozen=True)
class Watcher:
    """Both graphs of a source, opened to be watched."""

    text: Watched
    image: Watched

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
        for index, (picture, ids, mask) in enumerate(inputs()):
            features = self.text.run({"token_ids": ids}, partial(watch, TEXT))
            feed = image_feed(picture, features.values(), mask)
            self.image.run(feed, partial(watch, IMAGE))
            if progress is not None:
                progress(stage, index + 1, count)


def _named(model: ModelProto, name: str) -> list[Layer]:
    """The layers with the graph's name before theirs, where it does not stand there already."""
    prefix = name.removesuffix(".onnx")
    layers = find_layers(Graph(model))
    if prefix == "image":
        return layers
    return [
        layer
        if layer.name.startswith(f"{prefix}.")
        else replace(layer, name=f"{prefix}.{layer.name}")
        for layer in layers
    ]
