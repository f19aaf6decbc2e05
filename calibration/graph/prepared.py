"""`PreparedBundle`: the FP32 bundle that is calibrated and quantised, both graphs prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from tfanet.calibration.graph.fold import fold_weights
from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import Layer, find_layers
from tfanet.calibration.graph.linear import to_linear
from tfanet.errors import InputError
from tfanet.plugins.graph.attach import split_ss2d
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE
from tfanet.runtime.bundle.read import Bundle

__all__ = ["PreparedBundle", "read_graph"]


@dataclass(frozen=True)
class PreparedBundle:
    """An FP32 bundle, its graphs in the form that is quantised.

    Attributes:
        bundle: the FP32 bundle. models: by file name, weights folded and linear layers as MatMul.
        layers: by file name, in graph order; names are unique over both graphs.
    """

    bundle: Bundle
    models: dict[str, ModelProto]
    layers: dict[str, list[Layer]]

    @classmethod
    def open(cls, bundle: str | Path | Bundle) -> PreparedBundle:
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
            name: _compact(to_linear(fold_weights(read_graph(opened, name)))) for name in GRAPHS
        }
        return cls(opened, models, {name: _named(models[name], name) for name in GRAPHS})

    def with_models(self, models: Mapping[str, ModelProto]) -> PreparedBundle:
        """The same bundle with changed weights."""
        return replace(self, models=dict(models))

    def all_layers(self) -> list[Layer]:
        """Layers of both graphs, the text's first."""
        return [layer for name in GRAPHS for layer in self.layers[name]]

    def indexes(self) -> dict[str, GraphIndex]:
        """Both models indexed."""
        return {name: GraphIndex(model) for name, model in self.models.items()}

    def owners(self, name: str) -> dict[str, str]:
        """The layer that reads or gives a value of a graph, for messages."""
        layers = self.layers[name]
        given = {layer.output: layer.name for layer in layers}
        return given | {value: layer.name for layer in layers for value in layer.inputs}

    def facts(self) -> dict[str, Any]:
        """What identifies the model in a calibration."""
        manifest = self.bundle.manifest
        return {
            "preset": manifest.model["preset"],
            "image_size": list(manifest.preprocessing.size),
            "fingerprint": self.fingerprint(),
            "weights": self.weights_fingerprint(),
        }

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


def read_graph(bundle: Bundle, name: str) -> ModelProto:
    """A graph of a bundle; of its 2-D scans the projection stands apart, which can be quantised.

    Raises:
        InputError: where it cannot be read.
    """
    try:
        return split_ss2d(onnx.load_from_string(bundle.read(name)))
    except (DecodeError, onnx.checker.ValidationError) as error:
        path = bundle.file(name)
        raise InputError(f"{path} cannot be read as an ONNX model: {error}") from error


def _compact(model: ModelProto) -> ModelProto:
    """The same model without the memory that protobuf keeps of what was removed from it."""
    return ModelProto.FromString(model.SerializeToString())


def _named(model: ModelProto, name: str) -> list[Layer]:
    """The layers with the graph's name before theirs, where it does not stand there already."""
    prefix = name.removesuffix(".onnx")
    layers = find_layers(GraphIndex(model))
    if name == IMAGE:
        return layers
    return [
        layer
        if layer.name.startswith(f"{prefix}.")
        else replace(layer, name=f"{prefix}.{layer.name}")
        for layer in layers
    ]
