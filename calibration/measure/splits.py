"""Where an activation is worth two ranges (see `rewrite.split`), by what was seen of it."""

from __future__ import annotations

import numpy as np

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import MOVES
from tfanet.calibration.grid import Grid
from tfanet.calibration.measure.observers import Histogram

__all__ = ["Regions", "is_crowded", "outlier_channels"]

WORTH = 0.5  # of the rounding noise may be left where a split is to pay
PACKED = 4  # channels that integer kernels take at a time
STEPS = 8  # k is below


def is_crowded(graph: GraphIndex, name: str) -> bool:
    """Whether a value comes from a softmax, a GELU or x sigmoid(ax), moved or not."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in MOVES:
        node = graph.producer.get(node.input[0])
    if node is None:
        return False
    if node.op_type == "Mul":
        made = [graph.producer.get(factor) for factor in node.input]
        return any(factor is not None and factor.op_type == "Sigmoid" for factor in made)
    return node.op_type in ("Gelu", "Softmax")


def outlier_channels(amax: np.ndarray) -> list[int]:
    """The channels to keep apart, ascending; none where that is not worth it.

    With steps of amax / 127 for each group, the noise of n channels is proportional to n amax^2.
    The cut through the sorted channels with the least sum is taken, at a whole number of packs.

    Args:
        amax: largest magnitude of each channel, (channels,).
    """
    order = np.argsort(-amax, kind="stable")
    ranges = amax[order].astype(np.float64)
    apart = np.arange(PACKED, amax.size // 2 + 1, PACKED)
    if not apart.size or ranges[0] == 0:
        return []
    noise = apart * ranges[0] ** 2 + (amax.size - apart) * ranges[apart] ** 2
    best = int(np.argmin(noise))
    if noise[best] > WORTH * amax.size * ranges[0] ** 2:
        return []
    return sorted(int(channel) for channel in order[: apart[best]])


class Regions(Histogram):
    """Finds the two regions of a value, from a histogram that resolves the steps of both."""

    bins = 1 << 15

    def split(self, grid: Grid, amax: float) -> tuple[float, int] | None:
        """(t, k) with the least squared error, None where one range of `amax` is nearly as good."""
        seen = np.flatnonzero(self.counts)
        values, counts = self.centers[seen], self.counts[seen]

        def error(t: float, factor: float) -> float:
            step = t / grid.largest
            inner = np.minimum(values, t)
            rounded = grid.nearest(inner / step) * step
            if factor:
                outer = grid.nearest((values - inner) / (factor * step)) * factor * step
                rounded = rounded + outer
            return float(((rounded - values) ** 2 * counts).sum())

        if not seen.size:
            return None
        tried = [(error(self.largest / (1 + 2**k), 2**k), k) for k in range(STEPS)]
        least, k = min(tried)
        if least > WORTH * error(amax, 0):
            return None
        return float(np.float32(self.largest / (1 + 2**k))), k
