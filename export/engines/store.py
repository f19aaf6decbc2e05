"""`add_engine`: engines of both graphs, built from a bundle and added to it."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.errors import GateError, InputError, MissingDependencyError
from tfanet.export.engines.build import (
    Options,
    Profile,
    build_engine,
    engine_graph,
    load_graph,
)
from tfanet.export.engines.magnitudes import measure_ranges
from tfanet.export.engines.precision import PRECISIONS, Kept, cast_graph
from tfanet.export.parity.check import Case, compare, make_cases, run_case
from tfanet.plugins import ort_library_path, trt_library_path
from tfanet.progress import Progress
from tfanet.runtime import Predictor
from tfanet.runtime.backends.choose import Graph, open_graphs
from tfanet.runtime.backends.choose import Options as RuntimeOptions
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import EngineError, load_module
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT, image_feed
from tfanet.runtime.bundle.leftovers import engine_file, locked, sweep_engines
from tfanet.runtime.bundle.read import FILES, MANIFEST, Bundle, Manifest, file_facts
from tfanet.runtime.bundle.write import new_file, new_folder, sync

__all__ = [
    "MAX_PIXEL_SHARE",
    "add_engine",
    "check_engine",
    "range_feeds",
    "store_engine",
    "typed_graphs",
]

_BUILD_FACTS = ("layers", "types", "seconds", "peak_bytes")
# What the manifest says of the scans, by plugin.
_SCANS = {
    None: "standard operators, one body for each length",
    "aot": "a plugin in the engine",
    "library": "the plugin of libtfanet_trt.so",
}
_NO_FP8 = {"7.5", "8.0", "8.6"}
# Of a low precision's masks against FP32's: beyond this something overflows or is lost.
MAX_PIXEL_SHARE = 0.01


def add_engine(
    bundle: str | Path,
    *,
    target: str,
    precision: str = "fp32",
    profile: Profile | None = None,
    options: Options | None = None,
    keep: Iterable[str] = (),
    samples: Sequence[tuple[Path, str]] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Build engines of text.onnx and image.onnx, add them to the bundle, and return it.

    Args:
        target, profile, options: as in `build_engine`; the default profile is the batch 1, or 1 to
            4 where the bundle's batch is open. Sentences are encoded one by one, so text.onnx gets
            a profile that starts at 1.
        precision: "fp32", "fp16" or "bf16"; of a quantised bundle, whose Q/DQ nodes say what is in
            INT8 or FP8, that of the rest. keep: patterns of node names that stay in FP32.
        samples: pictures and sentences on which activations are measured, so that what would
            overflow stays in FP32; without any, the inputs of the parity check serve.
        overwrite: replace an engine of the same target and precision.

    An engine's files are named by their content and come first, then the manifest in one step, then
    old files are removed: the bundle is whole at every moment, and of two engines that are added at
    once both stay. An engine whose files are damaged or missing is mended by building it again.

    Raises what `check_engine`, `build_engine` and `cast_graph` raise; InputError where the bundle
    holds an engine of this target and precision, without `overwrite`; GateError where the typed
    graphs, or the engine where it can run, change more than 1 % of the mask's pixels.
    """
    options = options or Options()
    opened = Bundle.open(bundle, engines=False)
    manifest = opened.manifest
    own, rest = manifest.precision, _rest(opened, precision)
    check_engine(target, rest, options, own=own)
    name = "-".join(p for p in (own, rest) if p != "fp32") or "fp32"
    name = f"{target}-{name}"
    opened.check_engines(besides=name)
    if not overwrite and opened.holds_engine(name):
        raise InputError(
            f"{opened.path} holds an engine {name} already: give --overwrite (overwrite=True)"
        )
    if profile is None:
        profile = Profile(1, 1, 4) if manifest.dynamic_batch else Profile()
    # Built beside the bundle's files, so that a failure leaves an engine of this name as it was.
    with new_folder(opened.path / name) as folder:
        typed, report = _typed(opened, rest, list(keep), samples)
        files = {graph: f"{graph.removesuffix('.onnx')}.engine" for graph in GRAPHS}
        facts: dict[str, Any] = {}
        for graph in GRAPHS:

            def tell(phase: str, step: int, steps: int, graph: str = graph) -> None:
                if progress is not None:
                    progress(f"{graph}: {phase}", step, steps)

            facts[graph] = build_engine(
                engine_graph(typed[graph], options.plugin),
                folder / files[graph],
                target=target,
                profile=replace(profile, min=1) if graph == TEXT else profile,
                options=options,
                progress=tell,
            )
        record = {
            "name": name,
            "target": target,
            "precision": rest if own == "fp32" else own,
            "rest": rest,
            "library": facts[IMAGE]["library"],
            "version": facts[IMAGE]["version"],
            "profile": asdict(profile),
            "compute": _compute(target, options),
            "flags": options.flags(),
            "scan": _SCANS[options.plugin],
            "plugin": options.plugin,
            "files": files,
            "source": {graph: manifest.files[graph]["sha256"] for graph in GRAPHS},
            "build": {graph: {key: facts[graph][key] for key in _BUILD_FACTS} for graph in GRAPHS},
            **report,
        }
        return store_engine(opened, folder, record)


def check_engine(target: str, precision: str, options: Options, *, own: str = "fp32") -> None:
    """Check before work begins that such an engine can be built here.

    Args:
        precision: of what is not quantised. own: of the graphs.

    Raises:
        InputError: for options that do not fit. MissingDependencyError: without the target's
            library, its plugin's, or the GPU that it builds on.
    """
    options.check(target)
    if precision not in ("fp32", *PRECISIONS):
        raise InputError(
            f"precision is {precision!r}: choose fp32, {', '.join(PRECISIONS)}, or int8 or fp8 "
            "graphs with `tfanet export --precision`"
        )
    old = sorted(set(options.compute) & _NO_FP8)
    if own == "fp8" and old:
        raise InputError(
            f"compute capability {old[0]} has no FP8, which starts with 8.9: take that one or "
            "later, or an INT8 bundle"
        )
    load_module(target)
    if options.plugin == "library":
        trt_library_path()
    if target == "tensorrt" or options.inspect is not None:
        Device.open()


def store_engine(bundle: Bundle, folder: Path, record: dict[str, Any]) -> Bundle:
    """Move the engine files of `folder` into a bundle with their record, and return the bundle.

    The engine is compared with the bundle's graphs first, where it can run: GateError where it
    changes more than 1 % of the pixels, and the bundle is as it was. InputError where the bundle
    got other graphs while the engine was built.
    """
    name, facts, files = record["name"], {}, {}
    for graph, built in record["files"].items():
        found = file_facts(folder / built)
        files[graph] = engine_file(graph, name, found["sha256"])
        facts[files[graph]] = found
        os.replace(folder / built, folder / files[graph])
    record = {**record, "files": files}
    record["parity"] = _engine_parity(bundle, Bundle(folder, _with(bundle, record, facts)), name)
    with locked(bundle.path):
        now = Bundle.open(bundle.path, engines=False)
        if any(now.manifest.files[g] != bundle.manifest.files[g] for g in GRAPHS):
            raise InputError(
                f"{bundle.path} was replaced while the engine was built: build it again"
            )
        changed = _with(now, record, facts)
        for file in facts:
            sync(folder / file)
            os.replace(folder / file, now.path / file)
        with new_file(now.path / MANIFEST, overwrite=True) as part:
            part.write_text(changed.to_json(), encoding="utf-8")
        for file in set(now.manifest.files) - set(changed.files):
            (now.path / file).unlink(missing_ok=True)
        sweep_engines(now.path, changed.files)
    return Bundle.open(bundle.path)


def _with(bundle: Bundle, record: dict[str, Any], facts: dict[str, Any]) -> Manifest:
    """The manifest with an engine, in place of one of the same name."""
    manifest = bundle.manifest
    engines = [engine for engine in manifest.engines if engine["name"] != record["name"]]
    kept = {*FILES, *(file for engine in engines for file in engine["files"].values())}
    files = {file: known for file, known in manifest.files.items() if file in kept}
    return replace(manifest, engines=[*engines, record], files={**files, **facts})


def _rest(bundle: Bundle, precision: str) -> str:
    """What the nodes that are not quantised compute in."""
    own = bundle.manifest.precision
    if precision not in ("fp32", own, *PRECISIONS):
        raise InputError(
            f"precision is {precision!r}, the bundle's graphs are in {own}: choose fp32, "
            f"{', '.join(PRECISIONS)}, or make a bundle with `tfanet export --precision int8` first"
        )
    if own == "fp32":
        return precision
    if bundle.manifest.parity["certificate"]["target"] == "onnxruntime":
        raise InputError(
            f"{bundle.path} holds unsigned activations, which ONNX Runtime takes and TensorRT does "
            "not: export it with --int8-target any"
        )
    return "fp32" if precision == own else precision


def _compute(target: str, options: Options) -> list[str]:
    """The compute capabilities that an engine is for: as asked, or this machine's."""
    if target == "tensorrt" and options.hardware is None:
        return [Device.open().compute]
    return list(options.compute)


def _engine_parity(bundle: Bundle, built: Bundle, name: str) -> dict[str, Any]:
    """The engine's masks against those of the bundle's graphs where it can run, else why not."""
    try:
        running = open_graphs(built, name, RuntimeOptions())
    except (MissingDependencyError, EngineError) as error:
        return {"ran": False, "reason": str(error)}
    try:
        low, high = running.batches
        cases = [case for case in _cases(bundle) if low <= case.image.shape[0] <= high]
        facts = _compare_with_graphs(bundle, cases, name, running.text, running.image)
    finally:
        running.close()
    return {"ran": True, "device": running.device, **facts}


def _typed(
    bundle: Bundle, precision: str, keep: list[str], samples: Sequence[tuple[Path, str]]
) -> tuple[dict[str, ModelProto], dict[str, Any]]:
    """Both graphs in `precision`, and what the manifest says of them."""
    graphs = {name: load_graph(bundle.file(name), bundle.read(name)) for name in GRAPHS}
    if precision == "fp32":
        return graphs, {"keep": [], "kept": {}, "typed_graph": None, "range_samples": 0}
    cases = _cases(bundle)
    library = ort_library_path()
    patterns = {name: [p for p in keep if _fits(p, graphs[name])] for name in GRAPHS}
    unused = [p for p in keep if not any(p in found for found in patterns.values())]
    if unused:
        middle = graphs[IMAGE].graph.node[len(graphs[IMAGE].graph.node) // 2]
        raise InputError(f"no node's name fits {unused[0]!r}: names are such as {middle.name!r}")
    typed: dict[str, ModelProto] = {}
    rounded: dict[str, ModelProto] = {}
    kept: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        feeds = range_feeds(bundle, samples) if samples else _case_feeds(bundle, cases)
        for name in GRAPHS:
            ranges = measure_ranges(graphs[name], feeds[name], library=library, folder=folder)
            options: dict[str, Any] = {"keep": patterns[name], "ranges": ranges}
            typed[name], table = cast_graph(graphs[name], precision, **options)
            rounded[name], _ = cast_graph(graphs[name], precision, emulate=True, **options)
            kept[name] = _summary(table)
        sessions = []
        for name in GRAPHS:
            path = folder / name
            path.write_bytes(rounded[name].SerializeToString())
            sessions.append(open_session(path, library))
            path.unlink()
        rows = _compare_with_graphs(bundle, cases, f"graphs in {precision}", *sessions)
    return typed, {"keep": keep, "kept": kept, "typed_graph": rows, "range_samples": len(samples)}


def typed_graphs(
    bundle: Bundle, record: Mapping[str, Any], *, emulate: bool = False
) -> dict[str, ModelProto]:
    """Both graphs in an engine's precision, as they were when it was built.

    Args:
        record: the engine's. emulate: in FP32 with its rounding, for ONNX Runtime on any machine.
    """
    graphs = {}
    for name in GRAPHS:
        graphs[name] = load_graph(bundle.file(name), bundle.read(name))
        if record["rest"] != "fp32":
            by_range = [row["node"] for row in record["kept"][name] if "node" in row]
            keep = [p for p in record["keep"] if _fits(p, graphs[name])]
            keep += map(glob.escape, by_range)
            graphs[name], _ = cast_graph(graphs[name], record["rest"], keep=keep, emulate=emulate)
    return graphs


def _cases(bundle: Bundle) -> list[Case]:
    manifest = bundle.manifest
    height, width = manifest.preprocessing["size"]
    return make_cases(manifest.text["length"], (height, width), manifest.dynamic_batch)


def _fits(pattern: str, model: ModelProto) -> bool:
    return any(fnmatchcase(node.name, pattern) for node in model.graph.node)


def range_feeds(
    bundle: Bundle, samples: Sequence[tuple[Path, str]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Inputs of both graphs, by name, for pictures and their sentences."""
    predictor = Predictor(bundle.path, backend="onnxruntime-cpu")
    text, image = [], []
    for path, sentence in samples:
        encoded = predictor.encode_text(sentence)
        text.append({"token_ids": predictor.tokenize(sentence)[0]})
        picture = predictor.preprocess(path)[0][None]
        image.append(image_feed(picture, (encoded.words, encoded.sentence), encoded.mask))
    return {TEXT: text, IMAGE: image}


def _case_feeds(bundle: Bundle, cases: list[Case]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Inputs of both graphs from the cases of the parity check."""
    text, image = [], []
    session = _session(bundle, TEXT, None)
    for case in cases:
        features = session.run(None, {"token_ids": case.token_ids})
        text.append({"token_ids": case.token_ids})
        image.append(image_feed(case.image, features, case.word_mask))
    return {TEXT: text, IMAGE: image}


def _session(bundle: Bundle, name: str, library: Path | None) -> Any:
    return open_session(bundle.file(name), library, content=partial(bundle.read, name))


def _compare_with_graphs(
    bundle: Bundle, cases: list[Case], label: str, text: Graph, image: Graph
) -> dict[str, Any]:
    """Masks of two graphs of low precision, or engines, against those of the bundle's graphs.

    Raises GateError where more than 1 % of the pixels change.
    """
    library = ort_library_path()
    reference = [_session(bundle, name, library) for name in GRAPHS]
    threshold = bundle.manifest.threshold
    rows = [
        compare(
            case,
            label,
            run_case(reference[0], reference[1], case),
            run_case(text, image, case),
            threshold,
        )
        for case in cases
    ]
    changed, pixels = (sum(row[key] for row in rows) for key in ("pixels_changed", "pixels"))
    if changed > MAX_PIXEL_SHARE * pixels:
        raise GateError(
            f"{label}: {changed} of {pixels} pixels change side, the limit is "
            f"{MAX_PIXEL_SHARE:.0%}: keep more in FP32 (--keep PATTERN), or take another precision"
        )
    return {
        "max_rel_error": max((row["max_rel_error"] for row in rows), default=None),
        "pixels_changed": changed,
        "pixels": pixels,
    }


def _summary(table: list[Kept]) -> list[dict[str, Any]]:
    """Rows of one reason and operator together; those with a value, one by one."""
    counts: dict[tuple[str, str], int] = {}
    single = []
    for row in table:
        if row.value is None:
            counts[row.why, row.op] = counts.get((row.why, row.op), 0) + 1
        else:
            value = float(f"{min(row.value, 1e38):.3g}")
            single.append({"op": row.op, "why": row.why, "node": row.node, "value": value})
    return [{"op": op, "why": why, "nodes": n} for (why, op), n in counts.items()] + single
