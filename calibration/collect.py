"""One pass of data through ONNX Runtime, with the watched values as extra outputs.

Values are observed as they come and dropped: memory is one picture's watched values, and where
these would exceed a limit they are watched in turns.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins import ort_library_path
from tfanet.runtime.session import open_session

from .graph import Graph

__all__ = ["Watch", "open_model", "run_watched", "turns"]

Feeds = Mapping[str, np.ndarray]
# Called with a value's name and the value at one picture.
Watch = Callable[[str, np.ndarray], None]


def open_model(model: ModelProto, *, threads: int | None = None) -> Any:
    """An ONNX Runtime session of a model in memory, with our operator library where it is built.

    It goes through a file, since a model in memory may not exceed 2 GB on its way.
    """
    try:
        library: Path | None = ort_library_path()
    except MissingDependencyError:
        library = None  # the function body in the model runs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return open_session(path, library, threads)


def turns(graph: Graph, names: Iterable[str], limit: int) -> list[list[str]]:
    """`names` in groups whose float32 values at batch 1 fit in `limit` bytes; often one group."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        bytes_of_one = 4 * math.prod(graph.shapes.get(name, (1,)))
        if groups[-1] and size + bytes_of_one > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_of_one
    return groups


def run_watched(
    model: ModelProto,
    names: Iterable[str],
    feeds: Iterable[Feeds],
    watch: Watch,
    *,
    where: Mapping[str, str] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Run `model` on each of `feeds`, show the values `names` to `watch`, yield the outputs.

    Args:
        names: of float32 values: graph inputs or results of nodes.
        where: the layer to name in an error, by value.

    Raises:
        InputError: naming the layer, where a value is NaN or infinite.
    """
    inputs = {value.name for value in model.graph.input}
    watched = list(dict.fromkeys(names))
    inner = [name for name in watched if name not in inputs]
    own = [value.name for value in model.graph.output]
    exposed = ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in inner
        if name not in own
    )
    session = open_model(exposed)
    del exposed  # the session holds the weights by now
    fetched = list(dict.fromkeys([*own, *inner]))
    for feed in feeds:
        values = dict(zip(fetched, session.run(fetched, dict(feed)), strict=True))
        for name in watched:
            value = feed[name] if name in inputs else values[name]
            # A NaN passes through both; this needs no array of the value's size.
            if not (np.isfinite(value.max()) and np.isfinite(value.min())):
                layer = (where or {}).get(name, name)
                raise InputError(
                    f"the activation '{name}' of layer {layer} is NaN or infinite: the model is "
                    "broken before quantisation, check its weights and inputs"
                )
            watch(name, value)
        yield {name: values[name] for name in own}
