"""Which runtime executes a bundle's graphs: the best that can run here, or the one asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfanet.errors import InputError, MissingDependencyError, suggestion
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import EngineError, EngineGraph
from tfanet.runtime.backends.session import open_session, runs_as_floats
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.manifest import TARGETS
from tfanet.runtime.bundle.read import PRECISIONS, Bundle

__all__ = ["BACKENDS", "GraphRunner", "Options", "Running", "open_graphs"]

# The best first. An engine's own name (such as "tensorrt-rtx-fp16") is a choice too.
BACKENDS = (*TARGETS, "onnxruntime-cuda", "onnxruntime-cpu")
_PROVIDERS = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cpu": "CPUExecutionProvider",
}
MAX_BATCH = 1024  # of a graph whose batch is open


class GraphRunner(Protocol):
    """What runs one graph: an ONNX Runtime session, or an engine with the same methods."""

    def run(self, names: None, feeds: Mapping[str, Any]) -> list[np.ndarray]: ...
    def get_inputs(self) -> list[Any]: ...
    def get_outputs(self) -> list[Any]: ...


@dataclass(frozen=True)
class Options:
    """How graphs are opened.

    Attributes:
        threads: of a single run on the CPU; None takes all cores that this process may use.
        device: index of the GPU.
        op_library: our scan kernel for ONNX Runtime, or None for the function body in the file.
        host_code: names of engines that may run code for the CPU which they carry.
    """

    threads: int | None = None
    device: int = 0
    op_library: Path | None = None
    host_code: Sequence[str] = ()


@dataclass(frozen=True)
class Running:
    """Both graphs on one backend.

    Attributes:
        backend: one of BACKENDS. engine: the engine's name, or None. scan: what runs the scan.
        batches: the smallest and largest batch of a run. int8: what INT8 graphs run in, "integers"
            or "floating point"; None where they hold none, or are an engine's.
        passed_over: better backends that cannot run here, and why.
    """

    backend: str
    text: GraphRunner
    image: GraphRunner
    scan: str
    batches: tuple[int, int]
    int8: str | None = None
    engine: str | None = None
    device: str | None = None
    passed_over: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Gives back what is held beyond Python's memory; call it when nothing runs."""
        for graph in (self.text, self.image):
            if isinstance(graph, EngineGraph):
                graph.close()


def open_graphs(bundle: Bundle, backend: str, options: Options) -> Running:
    """Open both graphs of a bundle.

    Args:
        backend: one of BACKENDS; the name of one of the bundle's engines; or "auto", the first of
            BACKENDS that can run here, where an engine of lower precision comes first.

    Raises:
        InputError: for an unknown backend. MissingDependencyError, EngineError: where the backend
        that was asked for cannot run here, with the next step.
    """
    passed_over: dict[str, str] = {}
    for kind, name, opener in _candidates(bundle, options):
        if backend not in ("auto", kind, name):
            continue
        try:
            running = opener()
        except (MissingDependencyError, EngineError) as error:
            if backend != "auto" or name == BACKENDS[-1]:
                raise
            passed_over[name] = str(error)
        else:
            return replace(running, passed_over=passed_over)
    names = [engine["name"] for engine in bundle.manifest.engines]
    engines = f", or an engine of this bundle: {', '.join(names)}" if names else ""
    like = suggestion(backend, ["auto", *BACKENDS, *names])
    raise InputError(f"backend is {backend!r}: choose auto, {', '.join(BACKENDS)}{engines}{like}")


def _candidates(
    bundle: Bundle, options: Options
) -> Iterator[tuple[str, str, Callable[[], Running]]]:
    """Backends, what each runs, and how to open it; the best first."""
    for target in TARGETS:
        engines = [e for e in bundle.manifest.engines if e["target"] == target]
        if not engines:
            reason = (
                f"the bundle holds no {target} engine: `tfanet engine --bundle {bundle.path} "
                f"--target {target}` builds one"
            )
            yield target, target, partial(_refuse, reason)
        for engine in sorted(engines, key=_rank):
            yield target, engine["name"], partial(_engine, bundle, engine, options)
    for name, provider in _PROVIDERS.items():
        yield name, name, partial(_onnxruntime, bundle, name, provider, options)


def _rank(engine: Mapping[str, Any]) -> int:
    return PRECISIONS.index(engine["precision"])


def _refuse(reason: str) -> Running:
    raise MissingDependencyError(reason)


def _engine(bundle: Bundle, record: Mapping[str, Any], options: Options) -> Running:
    device = Device.open(options.device)

    def load(graph: str) -> EngineGraph:
        name = record["files"][graph]
        return EngineGraph(
            bundle.file(name),
            record,
            plan=bundle.read(name),
            device=options.device,
            host_code=record["name"] in options.host_code,
            cache=_cache_path(bundle, name, device),
        )

    text, image = (load(graph) for graph in GRAPHS)
    return Running(
        record["target"],
        text,
        image,
        scan=str(record.get("scan")),
        batches=image.batches,
        engine=record["name"],
        device=device.name,
    )


def _cache_path(bundle: Bundle, name: str, device: Device) -> Path:
    """Where TensorRT-RTX keeps what it compiled for this engine on this kind of GPU."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfanet"
    return home / f"{bundle.manifest.files[name]['sha256'][:32]}-{device.compute}.rtxcache"


def _onnxruntime(bundle: Bundle, backend: str, provider: str, options: Options) -> Running:
    library = options.op_library

    def load(name: str) -> Any:
        place = (provider, options.device)
        content = partial(bundle.read, name)
        return open_session(bundle.file(name), library, options.threads, *place, content)

    text, image = map(load, GRAPHS)
    int8 = None
    if bundle.manifest.precision == "int8":
        as_floats = any(map(runs_as_floats, (text, image)))
        int8 = "floating point" if as_floats else "integers"
    return Running(
        backend,
        text,
        image,
        scan="function body" if library is None else "operator library",
        batches=(1, MAX_BATCH if bundle.manifest.dynamic_batch else 1),
        int8=int8,
        device=None if backend.endswith("cpu") else Device.open(options.device).name,
    )
