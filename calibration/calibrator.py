"""`calibrate`: an FP32 bundle and a few hundred pictures to ranges; `apply`: ranges to INT8."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.errors import InputError
from tfanet.runtime.bundle import Bundle

from .bias_correction import bias_of, correct, mean_axis
from .graph import Graph
from .observers import OBSERVERS, Observer, PerChannel
from .placement import INT8, Layer
from .qdq import activation_ranges, quantize
from .ranges import Calibration, GraphRanges
from .sampler import CalibrationSet, choose, warn_if_small
from .smooth import exponents, find_groups, migrate
from .source import GRAPHS, Inputs, Progress, Source

__all__ = ["MEMORY", "apply", "calibrate", "measure_ranges", "model_facts", "prepare"]

MEMORY = 1 << 30  # bytes of watched values at a time


def calibrate(
    bundle: str | Path | Bundle,
    data: str | Path,
    dataset: str | None = None,
    split: str = "train",
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    count: int = 128,
    seed: int = 0,
    sent_ids: Sequence[int] | None = None,
    observer: str = "mse",
    smooth: bool = True,
    bias_correction: bool = True,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the ranges of a bundle's activations on a stratified subset of a split.

    Args:
        bundle: an FP32 bundle. data, dataset, split, split_by, images: as for `ReferDataset`.
        count: pictures. seed: of the choice. sent_ids: take these instead, as in a calibration.
        observer: minmax, moving-average, percentile, entropy or mse.
        smooth: migrate channel scales into weights. bias_correction: also keep channel means.
        memory: most bytes of values watched at a time; more values take more passes.

    Raises:
        BundleError, DataError: for a bad bundle or dataset.
        InputError: for bad options, data that hold nothing, a bundle that is quantised already, or
            an activation that is NaN or infinite, with its layer.
    """
    if observer not in OBSERVERS:
        raise InputError(f"observer is {observer!r}: choose one of {', '.join(OBSERVERS)}")
    if memory < 1:
        raise InputError(f"memory is {memory}: give a number of bytes, 1 or more")
    source = Source.open(bundle)
    chosen = choose(
        data,
        dataset,
        split,
        count=count,
        seed=seed,
        split_by=split_by,
        images=images,
        sent_ids=sent_ids,
    )
    warn_if_small(chosen, count if sent_ids is None else len(sent_ids))
    return measure_ranges(
        source,
        chosen,
        observer=observer,
        smooth=smooth,
        bias_correction=bias_correction,
        memory=memory,
        progress=progress,
    )


def measure_ranges(
    source: Source,
    chosen: CalibrationSet,
    *,
    observer: str = "mse",
    smooth: bool = True,
    bias_correction: bool = True,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Calibration:
    """`calibrate` with a source and items that are there already."""

    def inputs() -> Any:
        return chosen.tensors(source.bundle)

    count = len(chosen.items)
    facts = model_facts(source)
    moved: dict[str, dict[str, list[int]]] = {name: {} for name in GRAPHS}
    if smooth:
        moved = _smoothing(source, inputs, count, memory, progress)
        source = _migrated(source, moved)
    graphs = source.graphs()
    names = {name: activation_ranges(graphs[name], source.layers[name]) for name in GRAPHS}
    seen: dict[tuple[str, str], Observer] = {
        (name, value): OBSERVERS[observer]() for name in GRAPHS for value in names[name]
    }
    axes = _mean_axes(source, graphs) if bias_correction else {}
    means = {key: PerChannel(axis) for key, axis in axes.items()}

    def watch(name: str, value: str, x: np.ndarray) -> None:
        seen[name, value].update(x)
        if (name, value) in means:
            means[name, value].update(x)

    source.observe(
        inputs, names, watch, memory=memory, count=count, progress=progress, stage="measuring"
    )
    ranges = {
        name: GraphRanges(
            amax={v: float(np.float32(seen[name, v].amax())) for v in names[name]},
            smooth=moved[name],
            means={
                value: [float(f"{mean:.6g}") for mean in observed.mean()]
                for (graph, value), observed in means.items()
                if graph == name
            },
        )
        for name in GRAPHS
    }
    return Calibration(facts, observer, chosen.facts(), ranges)


def prepare(source: Source, calibration: Calibration) -> tuple[Source, bool]:
    """The source with the calibration's channels moved, and whether its weights are those measured.

    Raises:
        InputError: where the calibration is of another model or image size.
    """
    same = calibration.check_model(model_facts(source))
    return _migrated(source, {n: calibration.graphs[n].smooth for n in GRAPHS}), same


def apply(
    source: Source,
    calibration: Calibration,
    keep_float: Collection[str] = (),
    *,
    unsigned: bool = False,
) -> dict[str, ModelProto]:
    """Quantise a prepared source.

    Args:
        source: from `prepare`. keep_float: names of layers that stay in floating point.
        unsigned: uint8 activations, for ONNX Runtime on x86; see `qdq`.

    Returns:
        The Q/DQ models by file name.

    Raises:
        InputError: where a name is no layer's, or a range is missing.
    """
    unknown = sorted(set(keep_float) - {layer.name for layer in source.all_layers()})
    if unknown:
        raise InputError(f"the model has no layer '{unknown[0]}': the table of layers names them")
    result = {}
    for name in GRAPHS:
        ranges = calibration.graphs[name]
        layers = [layer for layer in source.layers[name] if layer.name not in keep_float]
        model = source.models[name]
        if ranges.means:
            means = {value: np.array(mean) for value, mean in ranges.means.items()}
            model = correct(model, layers, means)
        result[name] = quantize(model, layers, ranges.amax, unsigned=unsigned)
    return result


def model_facts(source: Source) -> dict[str, Any]:
    """What identifies the model in a calibration."""
    manifest = source.bundle.manifest
    return {
        "preset": manifest.model["preset"],
        "image_size": list(manifest.preprocessing["size"]),
        "fingerprint": source.fingerprint(),
        "weights": source.weights_fingerprint(),
    }


def _smoothing(
    source: Source, inputs: Inputs, count: int, memory: int, progress: Progress | None
) -> dict[str, dict[str, list[int]]]:
    """Exponents by file and value."""
    graphs = source.graphs()
    groups = {name: find_groups(graphs[name], source.layers[name]) for name in GRAPHS}
    stats = {(n, g.value): PerChannel(-1) for n in GRAPHS for g in groups[n]}
    source.observe(
        inputs,
        {name: [group.value for group in groups[name]] for name in GRAPHS},
        lambda name, value, x: stats[name, value].update(x),
        memory=memory,
        count=count,
        progress=progress,
        stage="measuring channels",
    )
    return {
        name: {
            group.value: exponents(graphs[name], group, stats[name, group.value].amax()).tolist()
            for group in groups[name]
        }
        for name in GRAPHS
    }


def _migrated(source: Source, moved: dict[str, dict[str, list[int]]]) -> Source:
    graphs = source.graphs()
    return source.with_models(
        {
            name: migrate(
                source.models[name], find_groups(graphs[name], source.layers[name]), moved[name]
            )
            for name in GRAPHS
        }
    )


def _mean_axes(source: Source, graphs: dict[str, Graph]) -> dict[tuple[str, str], int]:
    """Channel axis of every value whose mean a correction needs."""

    def needed(name: str, layer: Layer) -> bool:
        return layer.precision == INT8 and bool(bias_of(graphs[name], layer))

    return {
        (name, layer.inputs[0]): mean_axis(layer)
        for name in GRAPHS
        for layer in source.layers[name]
        if needed(name, layer)
    }
