"""The largest magnitude of every value of a graph, measured while it runs on pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from tfanet.export.engines.precision import floats_of

__all__ = ["measure_magnitudes"]

_SUFFIX = "_largest"


def measure_magnitudes(
    model: ModelProto,
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    library: Path | None,
    folder: Path,
) -> dict[str, float]:
    """max |x| over all `feeds` of every FP32 value x that a node of the graph makes.

    Args:
        library: our operator library, or None to run the scan's function body. folder: where the
            observed graph is written for a moment.

    Each value is reduced to one number inside the graph, so that memory is that of a normal run.
    A value that is not finite has the range infinity.
    """
    from tfanet.runtime.backends.session import open_session

    observed = ModelProto()
    observed.CopyFrom(model)
    names = floats_of(model)
    for name in names:
        size = f"{name}_size"
        observed.graph.node.append(helper.make_node("Abs", [name], [size]))
        observed.graph.node.append(
            helper.make_node("ReduceMax", [size], [f"{name}{_SUFFIX}"], keepdims=0)
        )
        observed.graph.output.append(
            helper.make_tensor_value_info(f"{name}{_SUFFIX}", TensorProto.FLOAT, [])
        )
    path = folder / "observed.onnx"
    onnx.save(observed, path)
    session: Any = open_session(path, library)
    path.unlink()
    ranges = dict.fromkeys(names, 0.0)
    for feed in feeds:
        values = session.run([f"{name}{_SUFFIX}" for name in names], dict(feed))
        for name, value in zip(names, values, strict=True):
            largest = float(value)
            ranges[name] = max(ranges[name], largest if math.isfinite(largest) else math.inf)
    return ranges
