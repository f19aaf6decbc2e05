"""`calibrate`: an FP32 bundle and some hundred pictures to ranges; `apply`: ranges to Q/DQ."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.calibration.graph.placement import INT8
from tfanet.calibration.graph.reading import Graph
from tfanet.calibration.grid import grid_of
from tfanet.calibration.measure.collect import Seen
from tfanet.calibration.measure.observers import Observer, make_observer
from tfanet.calibration.measure.sampler import CalibrationSet, choose, warn_if_small
from tfanet.calibration.measure.source import Source, Watcher
from tfanet.calibration.ranges import Calibration, GraphRanges
from tfanet.calibration.rewrite.bias_correction import bias_of, correct, mean_axis
from tfanet.calibration.rewrite.qdq import activation_ranges, quantize
from tfanet.calibration.rewrite.smooth import exponents, find_groups, migrate
from tfanet.calibration.rewrite.split import (
    Regions,
    is_crowded,
    outlier_channels,
    rewrite,
    split_inputs,
)
from tfanet.errors import InputError
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS, TEXT
from tfanet.runtime.bundle.read import Bundle

__all__ = ["apply", "calibrate", "check_options", "measure_ranges", "model_facts", "prepare"]

PROBED = 16  # pictures that tell the channels' ranges before the others are measured


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
    precision: str = "int8",
    observer: str = "mse",
    smooth: bool = True,
    bias_correction: bool = True,
    outliers: bool = False,
    dual_region: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measure the ranges of a bundle's activations on a stratified subset of a split.

    Args:
        bundle: an FP32 bundle. data, dataset, split, split_by, images: as for `ReferDataset`.
        count: pictures. seed: of the choice. sent_ids: take these instead, as in a calibration.
        precision: int8 or fp8. observer: minmax, moving-average, percentile, entropy or mse.
        smooth: migrate channel scales into weights, by what `PROBED` of the pictures show first.
        bias_correction: also keep channel means. outliers, dual_region: find where activations of
            the text encoder's linear layers, and those behind GELU and softmax, are worth two
            ranges (see `split`).

    Raises:
        BundleError, DataError: for a bad bundle or dataset.
        InputError: for bad options, data that hold nothing, a bundle that is quantised already, or
            an activation that is NaN or infinite, with its layer.
    """
    check_options(precision, observer, outliers=outliers, dual_region=dual_region)
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
        precision=precision,
        observer=observer,
        smooth=smooth,
        bias_correction=bias_correction,
        outliers=outliers,
        dual_region=dual_region,
        progress=progress,
    )


def check_options(precision: str, observer: str, *, outliers: bool, dual_region: bool) -> None:
    """Raises InputError for a precision, an observer or a split that is unknown or does not fit."""
    make_observer(observer, grid_of(precision))
    if precision != "int8" and (outliers or dual_region):
        raise InputError(
            f"outliers and dual_region mend INT8's even steps, which {precision} has not: leave "
            "them out"
        )


def measure_ranges(
    source: Source,
    chosen: CalibrationSet,
    *,
    precision: str = "int8",
    observer: str = "mse",
    smooth: bool = True,
    bias_correction: bool = True,
    outliers: bool = False,
    dual_region: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """`calibrate` with a source and items that are there already."""
    grid = grid_of(precision)
    count = len(chosen.items)
    graphs = source.graphs()
    names = {name: activation_ranges(graphs[name], source.layers[name]) for name in GRAPHS}
    groups = {
        name: {group.value: group for group in find_groups(graphs[name], source.layers[name])}
        for name in GRAPHS
    }
    inputs = {name: split_inputs(source.layers[name]) for name in GRAPHS}
    crowded = {
        (name, value): Regions()
        for name in GRAPHS
        for value in inputs[name]
        if dual_region and is_crowded(graphs[name], value)
    }
    wide = [v for v in inputs[TEXT] if outliers and (TEXT, v) not in crowded]
    watcher = source.watcher(
        _axes(source, names),
        {name: [*groups[name], *(wide if name == TEXT else ())] for name in GRAPHS},
    )
    moved: dict[str, dict[str, list[int]]] = {name: {} for name in GRAPHS}
    apart: dict[str, list[int]] = {}
    if smooth or outliers:
        few = replace(chosen, items=chosen.items[:: -(-count // PROBED)])
        largest = _channels(watcher, source, few, progress)
        for name, group in ((n, g) for n in GRAPHS for g in groups[n].values() if smooth):
            factors = exponents(graphs[name], group, largest[name, group.value])
            moved[name][group.value] = factors.tolist()
            largest[name, group.value] = largest[name, group.value] / np.exp2(factors)
        apart = {value: outlier_channels(largest[TEXT, value]) for value in wide}
    seen: dict[tuple[str, str], Observer] = {
        (name, value): make_observer(observer, grid) for name in GRAPHS for value in names[name]
    }
    ends = {v: [make_observer(observer, grid) for _ in range(2)] for v, c in apart.items() if c}
    means = {key: np.zeros(()) for key in (_corrected(source, graphs) if bias_correction else ())}

    def watch(name: str, value: str, x: Seen) -> None:
        if value in moved[name]:
            x = _divided(x, np.exp2(np.array(moved[name][value], np.float32)))
        seen[name, value].update(x.largest, x.sample)
        if (name, value) in crowded:
            crowded[name, value].update(x.largest, x.sample)
        if name == TEXT and value in ends:
            _observe_parts(ends[value], x, apart[value])
        if (name, value) in means:
            means[name, value] = means[name, value] + x.means.astype(np.float64) / count

    watcher.observe(
        lambda: chosen.tensors(source.bundle),
        watch,
        count=count,
        progress=progress,
        stage="measuring",
    )

    def of_graph(name: str) -> GraphRanges:
        amax = {v: float(np.float32(seen[name, v].amax())) for v in names[name]}
        regions = {
            value: region.split(grid, amax[value])
            for (graph, value), region in crowded.items()
            if graph == name
        }
        return GraphRanges(
            amax=amax,
            smooth=moved[name],
            means={
                value: [float(f"{mean:.6g}") for mean in channels]
                for (graph, value), channels in means.items()
                if graph == name
            },
            outliers={
                value: [apart[value], [float(np.float32(part.amax())) for part in parts]]
                for value, parts in ends.items()
                if name == TEXT
            },
            regions={value: list(split) for value, split in regions.items() if split},
        )

    ranges = {name: of_graph(name) for name in GRAPHS}
    return Calibration(model_facts(source), precision, observer, chosen.facts(), ranges)


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
        unsigned: INT8 in the form for ONNX Runtime; see `qdq`.

    Returns:
        The Q/DQ models by file name.

    Raises:
        InputError: where a name is no layer's, or a range is missing.
    """
    unknown = sorted(set(keep_float) - {layer.name for layer in source.all_layers()})
    if unknown:
        raise InputError(f"the model has no layer '{unknown[0]}': the table of layers names them")
    grid = grid_of(calibration.precision)
    result = {}
    for name in GRAPHS:
        ranges = calibration.graphs[name]
        layers = [layer for layer in source.layers[name] if layer.name not in keep_float]
        # Weights of split channels are rounded by steps of their own, which `correct` cannot know.
        whole = {v: np.array(m) for v, m in ranges.means.items() if v not in ranges.outliers}
        model = correct(source.models[name], layers, whole, grid, pairs=unsigned)
        model, layers, amax = rewrite(model, layers, ranges)
        result[name] = quantize(model, layers, amax, grid=grid, unsigned=unsigned)
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


def _channels(
    watcher: Watcher, source: Source, chosen: CalibrationSet, progress: Progress | None
) -> dict[tuple[str, str], np.ndarray]:
    """Largest magnitude of each channel, by file and value."""
    largest: dict[tuple[str, str], np.ndarray] = {}

    def watch(name: str, value: str, x: Seen) -> None:
        if x.channels is not None:
            largest[name, value] = np.maximum(largest.get((name, value), 0), x.channels)

    watcher.observe(
        lambda: chosen.tensors(source.bundle),
        watch,
        count=len(chosen.items),
        progress=progress,
        stage="measuring channels",
    )
    return largest


def _observe_parts(parts: Sequence[Observer], x: Seen, apart: list[int]) -> None:
    """Show the channels that stay together to one observer, and those apart to the other."""
    assert x.channels is not None
    outer = np.isin(np.arange(x.channels.size), apart)
    of_sample = outer[_channel_of_sample(x, outer.size)]
    for part, mask, where in ((parts[0], ~outer, ~of_sample), (parts[1], outer, of_sample)):
        part.update(float(x.channels[mask].max()), x.sample[where])


def _channel_of_sample(x: Seen, channels: int) -> np.ndarray:
    """Of a value whose channels are the last axis."""
    return np.arange(x.sample.size) * x.stride % channels


def _divided(x: Seen, factors: np.ndarray) -> Seen:
    """What is seen of a value whose channels, the last axis, are divided by `factors`."""
    assert x.channels is not None
    of_sample = _channel_of_sample(x, factors.size)
    channels = x.channels / factors
    return replace(
        x,
        largest=float(channels.max()),
        channels=channels,
        means=x.means / factors,
        sample=x.sample / factors[of_sample],
    )


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


def _axes(source: Source, names: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """Channel axis of every watched value, by file."""
    read = {
        name: {value: mean_axis(layer) for layer in source.layers[name] for value in layer.inputs}
        for name in GRAPHS
    }
    return {name: {value: read[name].get(value, 1) for value in names[name]} for name in GRAPHS}


def _corrected(source: Source, graphs: dict[str, Graph]) -> list[tuple[str, str]]:
    """File and value of every mean that a correction needs."""
    return [
        (name, layer.inputs[0])
        for name in GRAPHS
        for layer in source.layers[name]
        if layer.precision == INT8 and bias_of(graphs[name], layer)
    ]
