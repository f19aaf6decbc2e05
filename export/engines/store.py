"""`add_engine`: engines of both graphs, built from a bundle and added to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tfanet.errors import InputError, suggestion
from tfanet.export.engines.build import EngineOptions, Profile, build_engine, engine_graph
from tfanet.export.engines.masks import compare_engine
from tfanet.export.engines.precision import LOW_PRECISIONS
from tfanet.export.engines.typed import make_typed_graphs
from tfanet.files import move
from tfanet.plugins import trt_library_path
from tfanet.progress import Progress, Stages
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import load_module
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT
from tfanet.runtime.bundle.leftovers import engine_file, locked, sweep_engines
from tfanet.runtime.bundle.read import FILES, Bundle, Manifest, file_facts
from tfanet.runtime.bundle.write import check_output, new_folder, write_manifest

__all__ = [
    "add_engine",
    "check_engine",
    "store_engine",
]

_BUILD_FACTS = ("layers", "types", "seconds", "peak_bytes")
# What the manifest says of the scans, by plugin.
_SCANS = {
    None: "standard operators, one body for each length",
    "aot": "a plugin in the engine",
    "library": "the plugin of libtfanet_trt.so",
}
_NO_FP8 = {"7.5", "8.0", "8.6"}


def add_engine(
    bundle: str | Path,
    *,
    target: str,
    precision: str = "fp32",
    profile: Profile | None = None,
    options: EngineOptions | None = None,
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
    options = options or EngineOptions()
    opened = Bundle.open(bundle, engines=False)
    manifest = opened.manifest
    own, rest = manifest.precision, _rest(opened, precision)
    keep = list(keep)
    measured = bool(samples)
    check_engine(target, rest, options, own=own, keep=keep, measured=measured, overwrite=overwrite)
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
        stages = Stages(progress)
        stages.next("choosing precisions", 0.05)
        typed, report = make_typed_graphs(opened, rest, keep, samples)
        files = {graph: _built(graph) for graph in GRAPHS}
        facts: dict[str, Any] = {}
        for graph in GRAPHS:
            building = stages.next(f"building {_built(graph)}", 0.2 if graph == TEXT else 0.9)
            facts[graph] = build_engine(
                engine_graph(typed[graph], options.plugin),
                folder / files[graph],
                target=target,
                profile=replace(profile, min=1) if graph == TEXT else profile,
                options=options,
                progress=building,
            )
        stages.next("comparing with the graphs")
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
        done = store_engine(opened, folder, record)
    stages.end()
    return done


def check_engine(
    target: str,
    precision: str,
    options: EngineOptions,
    *,
    own: str = "fp32",
    keep: Sequence[str] = (),
    measured: bool = False,
    overwrite: bool = False,
) -> None:
    """Check before work begins that such an engine can be built here.

    Args:
        precision: of what is not quantised. own: of the graphs. keep: patterns of nodes that stay
            in FP32. measured: pictures are given that show what would overflow.
        overwrite: replace what `options.inspect` holds of an earlier build.

    Raises:
        InputError: for options that do not fit. MissingDependencyError: without the target's
            library, its plugin's, or the GPU that it builds on.
    """
    options.check(target)
    if options.inspect is not None and Path(options.inspect).is_dir():
        for graph in GRAPHS:
            check_output(Path(options.inspect) / f"{_built(graph)}.json", overwrite=overwrite)
    if precision not in ("fp32", *LOW_PRECISIONS):
        raise InputError(
            f"precision is {precision!r}: choose fp32, {', '.join(LOW_PRECISIONS)}, or int8 or fp8 "
            "graphs with `tfanet export --precision`"
            + suggestion(precision, ["fp32", *LOW_PRECISIONS])
        )
    if precision == "fp32" and (keep or measured):
        option = "--keep" if keep else "--range-data"
        raise InputError(
            f"{option} says what stays in FP32 in an engine of fp16 or bf16, and this one is of "
            "neither: leave it out, or choose --precision fp16 or bf16"
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
        (folder / built).rename(folder / files[graph])
    record = {**record, "files": files}
    record["parity"] = compare_engine(bundle, Bundle(folder, _with(bundle, record, facts)), name)
    with locked(bundle.path):
        now = Bundle.open(bundle.path, engines=False)
        if any(now.manifest.files[g] != bundle.manifest.files[g] for g in GRAPHS):
            raise InputError(
                f"{bundle.path} was replaced while the engine was built: build it again"
            )
        changed = _with(now, record, facts)
        for file in facts:
            move(folder / file, now.path / file)
        write_manifest(now.path, changed)
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


def _built(graph: str) -> str:
    """A graph's engine file, until its name tells its content."""
    return f"{graph.removesuffix('.onnx')}.engine"


def _rest(bundle: Bundle, precision: str) -> str:
    """What the nodes that are not quantised compute in."""
    own = bundle.manifest.precision
    if precision not in ("fp32", own, *LOW_PRECISIONS):
        raise InputError(
            f"precision is {precision!r}, the bundle's graphs are in {own}: choose fp32, "
            f"{', '.join(LOW_PRECISIONS)}, or make a bundle with `tfanet export --precision int8` "
            f"first{suggestion(precision, ['fp32', *LOW_PRECISIONS])}"
        )
    if own == "fp32":
        return precision
    if bundle.manifest.parity["certificate"]["target"] == "onnxruntime":
        raise InputError(
            f"{bundle.path} holds unsigned activations, which ONNX Runtime takes and TensorRT does "
            "not: export it with --int8-target any"
        )
    return "fp32" if precision == own else precision


def _compute(target: str, options: EngineOptions) -> list[str]:
    """The compute capabilities that an engine is for: as asked, or this machine's."""
    if target == "tensorrt" and options.hardware is None:
        return [Device.open().compute]
    return list(options.compute)
