"""A calibration applied to both graphs of a bundle: channels moved, then Q/DQ nodes written."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto

from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.ranges import Calibration
from tfanet.calibration.rewrite.bias_correction import correct_biases
from tfanet.calibration.rewrite.qdq import quantize
from tfanet.calibration.rewrite.smooth import find_groups, migrate
from tfanet.calibration.rewrite.split import split_layers
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS

__all__ = ["move_channels", "quantize_graphs"]


def move_channels(
    prepared: PreparedBundle, calibration: Calibration
) -> tuple[PreparedBundle, bool]:
    """The bundle with the calibration's channels moved, and whether its weights are those measured.

    Raises:
        InputError: where the calibration is of another model or image size.
    """
    same = calibration.check_model(prepared.facts())
    models = {
        name: migrate(
            prepared.models[name],
            find_groups(graph, prepared.layers[name]),
            calibration.graphs[name].smooth,
        )
        for name, graph in prepared.indexes().items()
    }
    return prepared.with_models(models), same


def quantize_graphs(
    prepared: PreparedBundle,
    calibration: Calibration,
    keep_float: Collection[str] = (),
    *,
    unsigned: bool = False,
) -> dict[str, ModelProto]:
    """The Q/DQ models of a bundle, by file name.

    Args:
        prepared: from `move_channels`. keep_float: names of layers that stay in floating point.
        unsigned: INT8 in the form for ONNX Runtime; see `qdq`.

    Raises:
        InputError: where no layer has a given name, or a range is missing.
    """
    unknown = sorted(set(keep_float) - {layer.name for layer in prepared.all_layers()})
    if unknown:
        raise InputError(
            f"the model has no layer '{unknown[0]}': take names from the table of layers"
        )
    grid = calibration.grid
    result = {}
    for name in GRAPHS:
        ranges = calibration.graphs[name]
        layers = [layer for layer in prepared.layers[name] if layer.name not in keep_float]
        # A split layer's parts are rounded with steps of their own, which the correction, made of
        # the whole weight, cannot know.
        whole = {v: np.array(m) for v, m in ranges.means.items() if v not in ranges.outliers}
        model = correct_biases(prepared.models[name], layers, whole, grid, pairs=unsigned)
        model, layers, amax = split_layers(model, layers, ranges)
        result[name] = quantize(model, layers, amax, grid=grid, unsigned=unsigned)
    return result
