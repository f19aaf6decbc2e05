"""`calibrate`: an FP32 bundle and some hundred pictures to the ranges of its activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import QUANTISED, Layer
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.grid import INT8, Grid, grid_of
from tfanet.calibration.measure.observers import Observer, make_observer
from tfanet.calibration.measure.sampler import CalibrationSet, choose, warn_if_small
from tfanet.calibration.measure.splits import Regions, is_crowded, outlier_channels
from tfanet.calibration.measure.watch import Seen, WatchedBundle
from tfanet.calibration.ranges import Calibration, GraphRanges
from tfanet.calibration.rewrite.bias_correction import bias_of, mean_axis
from tfanet.calibration.rewrite.qdq import ranged_values
from tfanet.calibration.rewrite.smooth import Group, exponents, find_groups
from tfanet.calibration.rewrite.split import split_inputs
from tfanet.errors import InputError
from tfanet.progress import Progress, Stages
from tfanet.runtime.bundle.graphs import GRAPHS, TEXT
from tfanet.runtime.bundle.read import Bundle

__all__ = ["calibrate", "check_options", "measure_ranges"]

PROBED = 16  # pictures that tell the channels' ranges before the others are measured
Value = tuple[str, str]  # a graph's file, and the name of a value in it
Entry = TypeVar("Entry")


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
            ranges (see `rewrite.split`).

    Raises:
        BundleError, DataError: for a bad bundle or dataset.
        InputError: for bad options, data that hold nothing, a bundle that is quantised already, or
            an activation that is NaN or infinite, with its layer.
    """
    check_options(precision, observer, outliers=outliers, dual_region=dual_region)
    prepared = PreparedBundle.open(bundle)
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
        prepared,
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
    if precision != INT8.name and (outliers or dual_region):
        raise InputError(
            f"outliers and dual_region help where steps are even, as in int8; those of {precision} "
            "are not: leave them out"
        )


def measure_ranges(
    prepared: PreparedBundle,
    chosen: CalibrationSet,
    *,
    precision: str = INT8.name,
    observer: str = "mse",
    smooth: bool = True,
    bias_correction: bool = True,
    outliers: bool = False,
    dual_region: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """`calibrate` on a bundle that is prepared already, with pictures that are chosen already."""
    grid = grid_of(precision)
    graphs = prepared.indexes()
    plan = _Plan.make(
        graphs,
        prepared.layers,
        smooth=smooth,
        bias_correction=bias_correction,
        outliers=outliers,
        dual_region=dual_region,
    )
    watched = WatchedBundle(prepared, plan.axes, plan.by_channel)
    stages = Stages(progress)

    def show(
        pictures: CalibrationSet,
        watch: Callable[[str, str, Seen], None],
        stage: str,
        share: float,
    ) -> None:
        watched.observe(
            lambda: pictures.tensors(prepared.bundle),
            watch,
            count=len(pictures.items),
            progress=stages.next(stage, share),
            stage=stage,
        )

    channels = _Channels()
    if plan.groups or plan.wide:
        few = replace(chosen, items=chosen.items[:: -(-len(chosen.items) // PROBED)])
        share = len(few.items) / (len(few.items) + len(chosen.items))
        show(few, channels.watch, "measuring channels", share)
    moved = channels.move(graphs, plan.groups)
    apart = {key: outlier_channels(channels.largest[key]) for key in plan.wide}
    found = _Ranges(plan, moved, apart, lambda: make_observer(observer, grid), len(chosen.items))
    show(chosen, found.watch, "measuring", 1.0)
    ranges = {name: found.of_graph(name, grid) for name in GRAPHS}
    return Calibration(prepared.facts(), precision, observer, chosen.facts(), ranges)


@dataclass(frozen=True)
class _Plan:
    """What is measured of which values.

    Attributes:
        axes: of channels, by file and value, of each value that needs a range.
        groups: by value, whose channels may be moved.
        wide: of which outlier channels may go apart. crowded: that may be cut into two regions.
        averaged: of which the channels' means are kept.
    """

    axes: dict[str, dict[str, int]]
    groups: dict[Value, Group]
    wide: list[Value]
    crowded: list[Value]
    averaged: list[Value]

    @classmethod
    def make(
        cls,
        graphs: dict[str, GraphIndex],
        layers: dict[str, list[Layer]],
        *,
        smooth: bool,
        bias_correction: bool,
        outliers: bool,
        dual_region: bool,
    ) -> _Plan:
        plan = cls({}, {}, [], [], [])
        for name, graph in graphs.items():
            read = {value: mean_axis(layer) for layer in layers[name] for value in layer.inputs}
            plan.axes[name] = {v: read.get(v, 1) for v in ranged_values(graph, layers[name])}
            if smooth:
                plan.groups.update({(name, g.value): g for g in find_groups(graph, layers[name])})
            for value in split_inputs(layers[name]):
                if dual_region and is_crowded(graph, value):
                    plan.crowded.append((name, value))
                elif outliers and name == TEXT:
                    plan.wide.append((name, value))
            for layer in layers[name] if bias_correction else ():
                if layer.placement == QUANTISED and bias_of(graph, layer):
                    plan.averaged.append((name, layer.inputs[0]))
        return plan

    @property
    def by_channel(self) -> dict[str, Collection[str]]:
        """Values of which each channel's largest magnitude is needed, by file."""
        wanted = [*self.groups, *self.wide]
        return {name: [value for file, value in wanted if file == name] for name in GRAPHS}


class _Channels:
    """The largest magnitude of each channel of some values."""

    def __init__(self) -> None:
        self.largest: dict[Value, np.ndarray] = {}

    def watch(self, name: str, value: str, x: Seen) -> None:
        if x.channels is not None:
            self.largest[name, value] = np.maximum(self.largest.get((name, value), 0), x.channels)

    def move(
        self, graphs: dict[str, GraphIndex], groups: dict[Value, Group]
    ) -> dict[Value, list[int]]:
        """By how much each group's channels are to be moved; `largest` is as after that."""
        moved = {}
        for key, group in groups.items():
            steps = exponents(graphs[key[0]], group, self.largest[key])
            moved[key] = steps.tolist()
            self.largest[key] = self.largest[key] / np.exp2(steps)
        return moved


class _Ranges:
    """The ranges of all values, as pictures are shown one by one."""

    def __init__(
        self,
        plan: _Plan,
        moved: dict[Value, list[int]],
        apart: dict[Value, list[int]],
        new_observer: Callable[[], Observer],
        count: int,
    ) -> None:
        """Begin.

        Args:
            moved: log2 of what each channel is divided by. apart: outlier channels, [] where there
                are none. count: pictures that will be shown.
        """
        self.moved, self.count = moved, count
        self.apart = {key: channels for key, channels in apart.items() if channels}
        values = [(name, value) for name, axes in plan.axes.items() for value in axes]
        self.whole = {key: new_observer() for key in values}
        self.parts = {key: [new_observer(), new_observer()] for key in self.apart}
        self.regions = {key: Regions() for key in plan.crowded}
        self.means = {key: np.zeros(()) for key in plan.averaged}

    def watch(self, name: str, value: str, x: Seen) -> None:
        key = name, value
        if key in self.moved:
            x = _divided(x, np.exp2(np.array(self.moved[key], np.float32)))
        self.whole[key].update(x.largest, x.sample)
        if key in self.regions:
            self.regions[key].update(x.largest, x.sample)
        if key in self.parts:
            _observe_parts(self.parts[key], x, self.apart[key])
        if key in self.means:
            self.means[key] = self.means[key] + x.means.astype(np.float64) / self.count

    def of_graph(self, name: str, grid: Grid) -> GraphRanges:
        """What was measured in one graph."""
        amax = {v: float(np.float32(seen.amax())) for v, seen in _of(name, self.whole).items()}
        regions = {v: r.split(grid, amax[v]) for v, r in _of(name, self.regions).items()}
        return GraphRanges(
            amax=amax,
            smooth=_of(name, self.moved),
            means={
                value: [float(f"{mean:.6g}") for mean in channels]
                for value, channels in _of(name, self.means).items()
            },
            outliers={
                value: [self.apart[name, value], [float(np.float32(p.amax())) for p in parts]]
                for value, parts in _of(name, self.parts).items()
            },
            regions={value: list(split) for value, split in regions.items() if split},
        )


def _of(name: str, by_value: dict[Value, Entry]) -> dict[str, Entry]:
    """The entries of one graph, by value."""
    return {value: entry for (file, value), entry in by_value.items() if file == name}


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
