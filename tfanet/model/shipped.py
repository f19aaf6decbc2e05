"""The weights of a preset whose bundle is shipped: they stand in its graphs, and only there.

A file beside the bundle holds the rest: what an export folds into other numbers or transposes.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from tfanet.runtime.bundle.graphs import IMAGE, TEXT
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.shipped import SHIPPED

__all__ = ["graph_weights", "rest_of"]

PREFIX = "model."  # of the network in what is exported


def rest_of(preset: str) -> Path:
    """The file of those weights of a shipped preset that no graph holds."""
    return SHIPPED / f"{preset}-rest.safetensors"


def graph_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a bundle's graphs that bear names of the network, by those names.

    Some of them are no weights, but made from several. Raises BundleError for a damaged bundle.
    """
    bundle = Bundle.open(path, engines=False, later=(TEXT, IMAGE))
    return {
        tensor.name.removeprefix(PREFIX): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for name in (TEXT, IMAGE)
        for tensor in onnx.load_model_from_string(bundle.read(name)).graph.initializer
        if tensor.name.startswith(PREFIX)
    }
