"""`refit`: an engine's weights from the graphs of a bundle, without building it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import ModelProto

from tfanet.errors import GateError, InputError
from tfanet.export.engines.build import engine_graph
from tfanet.export.engines.store import store_engine
from tfanet.export.engines.typed import typed_graphs
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import check_record, load_module, make_logger
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.bundle.write import new_folder

__all__ = ["refit"]


def refit(
    bundle: str | Path,
    engine: str,
    *,
    engine_from: str | Path | None = None,
    overwrite: bool = False,
    device: int = 0,
) -> Bundle:
    """Give an engine the weights of a bundle's graphs, in seconds; needs the GPU it is for.

    Args:
        bundle: gets the engine. engine: its name; built with `refit`, or with `strip_weights`: such
            a one holds no weights until this is done.
        engine_from: the bundle that holds the engine, where that is another one: the same model
            before it was trained further, say.
        overwrite: replace an engine of this name that holds weights.

    Returns:
        The bundle, its engine compared with its graphs.

    Raises:
        InputError: where there is no such engine, it was built without `refit`, or is of another
            model; where the bundle holds one that has its weights, without `overwrite`.
        MissingDependencyError, EngineError: where it cannot run here. GateError: where weights are
            missing, or the engine's masks are not those of the graphs.
    """
    opened = Bundle.open(bundle)
    source = Bundle.open(engine_from or bundle)
    records = {record["name"]: record for record in source.manifest.engines}
    if engine not in records:
        raise InputError(f"{source.path} has no engine {engine!r}: it has {sorted(records)}")
    record = dict(records[engine])
    if not {"REFIT", "STRIP_PLAN"} & set(record["flags"]):
        raise InputError(f"engine {engine} keeps its weights: build it with --refit")
    if source.manifest.model["config"] != opened.manifest.model["config"]:
        raise InputError(f"{source.path} is of another model than {opened.path}: build an engine")
    there = [one for one in opened.manifest.engines if one["name"] == engine]
    if any("STRIP_PLAN" not in one["flags"] for one in there) and not overwrite:
        raise InputError(
            f"{opened.path} holds an engine {engine} with weights: give --overwrite "
            "(overwrite=True)"
        )
    record["flags"] = sorted({*record["flags"], "REFIT"} - {"STRIP_PLAN"})
    trt, gpu = load_module(record["target"]), Device.open(device)
    check_record(record, gpu, trt.__version__)
    graphs = typed_graphs(opened, record)
    with new_folder(opened.path / engine) as folder:
        for name in GRAPHS:
            file = record["files"][name]
            graph = engine_graph(graphs.pop(name), record["plugin"])
            with gpu.current():
                plan = _refitted(trt, source.file(file), source.read(file), graph)
            (folder / file).write_bytes(plan)
        record["source"] = {name: opened.manifest.files[name]["sha256"] for name in GRAPHS}
        return store_engine(opened, folder, record)


def _refitted(trt: Any, path: Path, stripped: bytes, graph: ModelProto) -> bytes:
    """The plan with the weights of `graph`, and with all of them in it."""
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(stripped)
    done = engine is not None
    if done:
        refitter = trt.Refitter(engine, logger)
        parser = trt.OnnxParserRefitter(refitter, logger)
        done = parser.refit_from_bytes(graph.SerializeToString()) and refitter.refit_cuda_engine()
    if not done:
        why = "; ".join(logger.errors[-2:]) or "no reason given"
        raise GateError(f"{path} cannot be refitted: {why}; build the engine again")
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))
