"""ONNX Runtime on graphs in memory: one graph in a session, one picture through both graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from tfanet.calibration.graph.index import without_constants
from tfanet.errors import MissingDependencyError
from tfanet.plugins import ort_library_path
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import IMAGE, TEXT, image_feed, names_of, run_graph

__all__ = ["OUTSIDE", "Inputs", "Pair", "mask_logits", "open_model", "run_graphs"]

# Image, token ids and word mask of one picture with one sentence.
Pair = tuple[np.ndarray, np.ndarray, np.ndarray]
Inputs = Callable[[], Iterable[Pair]]  # one after another; called once for each pass over them
OUTSIDE = 1 << 18  # bytes, from which a weight is written beside the graph
ALIGNED = 64  # bytes, of a weight in the file that ONNX Runtime maps
WEIGHTS = "weights.bin"


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
        light = _with_weights_outside(model, Path(folder) / WEIGHTS)
        if added is not None:
            light.graph.MergeFrom(added)
        path.write_bytes(light.SerializeToString())
        return open_session(path, library, threads)


def _with_weights_outside(model: ModelProto, weights: Path) -> ModelProto:
    """A copy of the model whose large tensors are in the file `weights`, which is written.

    INT8 weights stay: `open_session` looks in the model's file at what pairs of them sum to.
    """
    copy = without_constants(model)
    with open(weights, "wb") as file:
        for tensor in model.graph.initializer:
            data = tensor.raw_data if tensor.HasField("raw_data") else b""
            if len(data) < OUTSIDE or tensor.data_type == TensorProto.INT8:
                copy.graph.initializer.append(tensor)
                continue
            file.write(bytes(-file.tell() % ALIGNED))
            outside = copy.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            outside.data_location = TensorProto.EXTERNAL
            place = {"location": WEIGHTS, "offset": file.tell(), "length": len(data)}
            for key, value in place.items():
                outside.external_data.add(key=key, value=str(value))
            file.write(data)
    return copy


def mask_logits(
    sessions: Mapping[str, Any],
    pair: Pair,
    switches: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> np.ndarray:
    """(1, 1, h, w) float32 of one picture with one sentence; see `run_graphs`."""
    return run_graphs(sessions, pair, switches)["mask_logit"]


def run_graphs(
    sessions: Mapping[str, Any],
    pair: Pair,
    switches: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """What the image graph gives for one picture with one sentence, by name.

    Args:
        sessions: of both graphs, by file name. switches: further inputs of a graph, likewise.
    """
    picture, ids, mask = pair
    more = switches or {}
    text, image = sessions[TEXT], sessions[IMAGE]
    features = run_graph(text, {"token_ids": ids, **more.get(TEXT, {})})
    feed = image_feed(names_of(image.get_inputs()), picture, features, mask)
    return run_graph(image, {**feed, **more.get(IMAGE, {})})
