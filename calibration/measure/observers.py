"""Ranges of activations: each observer sees a value picture by picture and keeps bounded memory.

All are symmetric: the result is amax, the magnitude that the grid's largest number stands for. An
observer of the histogram kind keeps counts of |x| over [0, limit]; where a larger value comes,
limit doubles and neighbouring bins merge, so no value is seen twice or stored.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tfanet.calibration import grid as grids
from tfanet.calibration.grid import Grid
from tfanet.errors import InputError, check_choice

__all__ = [
    "OBSERVERS",
    "Entropy",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Observer",
    "Percentile",
    "make_observer",
]

BINS = 2048
LEVELS = 128  # of INT8 from 0 up


class Observer(Protocol):
    """update(largest, sample) for each picture, then amax().

    `largest` is the magnitude of all elements, `sample` some or all of them, flat float32.
    """

    def update(self, largest: float, sample: np.ndarray) -> None: ...

    def amax(self) -> float: ...


class MinMax:
    """The largest magnitude of all."""

    def __init__(self) -> None:
        self._amax = 0.0

    def update(self, largest: float, sample: np.ndarray) -> None:
        self._amax = max(self._amax, largest)

    def amax(self) -> float:
        return self._amax


class MovingAverage:
    """Exponential moving average of each update's largest magnitude.

    Args:
        momentum: weight of the past, 0 to 1.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise InputError(f"momentum is {momentum}: give a number of at least 0 and below 1")
        self._momentum = momentum
        self._amax: float | None = None

    def update(self, largest: float, sample: np.ndarray) -> None:
        past = self._amax
        self._amax = (
            largest if past is None else self._momentum * past + (1 - self._momentum) * largest
        )

    def amax(self) -> float:
        return self._amax or 0.0


class Histogram:
    """Counts of |x| in `bins` equal bins over [0, limit]; exact zeros are not counted.

    Zeros quantise to zero at every range, so they say nothing about which one is best.
    """

    bins = BINS

    def __init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def update(self, largest: float, sample: np.ndarray) -> None:
        if largest == 0.0:
            return
        values = np.abs(sample, dtype=np.float32)
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = largest
        while self.limit < largest:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([pairs, np.zeros(self.bins // 2, np.int64)])
            self.limit *= 2
        index = (values * np.float32(self.bins / self.limit)).astype(np.int32)
        np.minimum(index, self.bins - 1, out=index)  # the limit itself is in the last bin
        counts = np.bincount(index, minlength=self.bins)
        counts[0] -= int(np.count_nonzero(values == 0))
        self.counts += counts

    @property
    def centers(self) -> np.ndarray:
        return (np.arange(self.bins) + 0.5) * (self.limit / self.bins)


class Percentile(Histogram):
    """The magnitude that the given share of values does not exceed.

    Args:
        percent: above 0, up to 100.
    """

    def __init__(self, percent: float = 99.99) -> None:
        super().__init__()
        if not 0 < percent <= 100:
            raise InputError(f"percent is {percent}: give a number above 0, up to 100")
        self._percent = percent

    def amax(self) -> float:
        total = int(self.counts.sum())
        if total == 0:
            return 0.0
        wanted = self._percent / 100 * total
        index = int(np.searchsorted(np.cumsum(self.counts), wanted))
        return min((index + 1) * self.limit / self.bins, self.largest)


class Mse(Histogram):
    """The range with the least mean squared error of rounding and clipping.

    Args:
        grid: that values are rounded to.
        candidates: ranges tried, evenly spaced up to the largest magnitude.
    """

    def __init__(self, grid: Grid = grids.INT8, candidates: int = 128) -> None:
        super().__init__()
        self._grid, self._candidates = grid, candidates

    def amax(self) -> float:
        if self.largest == 0.0:
            return 0.0
        tried = self.largest * np.arange(1, self._candidates + 1) / self._candidates
        seen = np.flatnonzero(self.counts)
        values, counts = self.centers[seen], self.counts[seen]
        step = (tried / self._grid.largest)[:, None]
        error = self._grid.nearest(values / step) * step - values
        return float(tried[np.argmin((error**2 * counts).sum(1))])


class Entropy(Histogram):
    """The range whose INT8 histogram tells most about the original: least KL divergence.

    For each tried range the values beyond it are clipped into its last bin (P); the bins below are
    merged into 128 levels, and each level is spread again over its bins that are not empty (Q).

    Args:
        stride: bins between the ranges tried.
    """

    def __init__(self, stride: int = 16) -> None:
        super().__init__()
        self._stride = stride

    def amax(self) -> float:
        if self.largest == 0.0:
            return 0.0
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        last = max(LEVELS, -(-used // self._stride) * self._stride)
        tried = range(LEVELS, last + 1, self._stride)
        divergence = [_divergence(self.counts, bins, LEVELS) for bins in tried]
        best = tried[int(np.argmin(divergence))]
        return min(best * self.limit / self.bins, self.largest)


def _divergence(counts: np.ndarray, bins: int, levels: int) -> float:
    """KL(P || Q) of the first `bins` bins; infinite where Q is 0 and P is not."""
    inside = counts[:bins].astype(np.float64)
    reference = inside.copy()
    reference[-1] += counts[bins:].sum()
    level = np.arange(bins) * levels // bins
    filled = inside > 0
    mass = np.bincount(level, inside, levels)
    share = np.bincount(level, filled, levels)
    spread = np.where(filled, mass[level] / np.maximum(share[level], 1), 0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1)
    seen = p > 0
    if np.any(q[seen] == 0):
        return float("inf")
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
}


def make_observer(name: str, grid: Grid) -> Observer:
    """An observer by name, for a grid.

    Raises:
        InputError: for an unknown name, or one that has no meaning for the grid.
    """
    check_choice("observer", name, OBSERVERS)
    if name == "entropy" and grid != grids.INT8:
        raise InputError(
            f"observer is 'entropy', which counts levels of INT8: for {grid.name} choose mse, "
            "percentile, moving-average or minmax"
        )
    return Mse(grid) if name == "mse" else OBSERVERS[name]()
