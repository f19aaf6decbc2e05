"""Metrics of referring segmentation, in percent. One sample is one (picture, sentence) pair."""

from __future__ import annotations

import numpy as np

from tfanet.errors import InputError

__all__ = ["EMPTY_BELOW", "PRECISION_AT", "GeneralizedMetrics", "Metrics", "iou"]

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
# gRefCOCO: a prediction of fewer set pixels counts as "no target".
EMPTY_BELOW = 50


def _overlap(predicted: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    """(intersection, union) in pixels of two masks of one shape, non-zero where set."""
    if predicted.shape != true.shape:
        raise InputError(
            f"predicted mask has shape {predicted.shape}, the true one {true.shape}: resize first"
        )
    p, t = predicted.astype(bool), true.astype(bool)
    return int(np.count_nonzero(p & t)), int(np.count_nonzero(p | t))


def iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """I/U of two masks of one shape, from 0 to 1; 1 where both are empty."""
    intersection, union = _overlap(predicted, true)
    return intersection / union if union else 1.0


def _precision(ious: list[float], strictly: bool) -> dict[str, float]:
    """P@X in percent for each X: the share of samples with an IoU from X on, or above it."""
    count = np.greater if strictly else np.greater_equal
    return {f"P@{x}": 100 * float(count(np.array(ious), x).mean()) for x in PRECISION_AT}


class Metrics:
    """mIoU, oIoU and P@X over samples that each have a target.

    mIoU = mean over samples of I/U; oIoU = sum of I / sum of U; P@X = share with I/U >= X, as most
    of the field counts it; with `strictly` I/U > X.
    """

    def __init__(self, *, strictly: bool = False) -> None:
        self.ious: list[float] = []
        self._strictly = strictly
        self._intersection = 0
        self._union = 0

    def update(
        self,
        predicted: np.ndarray,
        true: np.ndarray,
        *,
        no_target: bool | None = None,
        says_nothing: bool | None = None,
    ) -> float:
        """Add one sample, two masks of one shape; returns its IoU.

        `says_nothing` is what a model's head for no target says: the prediction is then empty.
        Raises InputError where the shapes differ, the true mask is empty or there is no target.
        """
        intersection, union = _overlap(np.zeros_like(true) if says_nothing else predicted, true)
        if no_target or not true.any():
            raise InputError("the true mask is empty: use GeneralizedMetrics for no-target data")
        self._intersection += intersection
        self._union += union
        self.ious.append(intersection / union)
        return self.ious[-1]

    def compute(self) -> dict[str, float]:
        """{"mIoU", "oIoU", "P@0.5" ... "P@0.9"} in percent. Raises InputError without samples."""
        if not self.ious:
            raise InputError("no sample was added: metrics of nothing are undefined")
        result = {
            "mIoU": 100 * float(np.mean(self.ious)),
            "oIoU": 100 * self._intersection / self._union,
        }
        return result | _precision(self.ious, self._strictly)


class GeneralizedMetrics:
    """gRefCOCO's gIoU, cIoU, N-acc, T-acc and P@X.

    A prediction is taken as empty where the model says so, and where it has no say, of fewer than
    `EMPTY_BELOW` pixels. gIoU counts a right no-target as 1 and a wrong one as 0; cIoU = sum of I /
    sum of U; N-acc = share of no-target samples predicted empty; T-acc = share of target samples
    predicted non-empty; P@X is of target samples, by I/U >= X, or with `strictly` I/U > X.
    """

    def __init__(self, *, strictly: bool = False) -> None:
        self.ious: list[float] = []
        self._strictly = strictly
        self._intersection = 0
        self._union = 0
        self._right = {False: 0, True: 0}
        self._found: dict[bool, list[float]] = {False: [], True: []}

    def update(
        self,
        predicted: np.ndarray,
        true: np.ndarray,
        *,
        no_target: bool | None = None,
        says_nothing: bool | None = None,
    ) -> float:
        """Add one sample, two masks of one shape; returns its IoU. Raises InputError on shapes.

        `no_target` says whether the sentence names nothing; None: where the true mask is empty. A
        target with an empty mask can't be found: its IoU is 0. `says_nothing` is what a model's
        head for no target says; None: it has none.
        """
        has_target = bool(true.any()) if no_target is None else not no_target
        if says_nothing is None:
            says_nothing = int(np.count_nonzero(predicted)) < EMPTY_BELOW
        intersection, union = _overlap(np.zeros_like(true) if says_nothing else predicted, true)
        right = says_nothing != has_target
        self._right[has_target] += right
        self._intersection += intersection
        self._union += union
        found = intersection / max(union, 1) if has_target else float(right)
        self._found[has_target].append(found)
        self.ious.append(found)
        return found

    def compute(self) -> dict[str, float]:
        """{"gIoU", "cIoU", "N-acc", "T-acc", "P@0.5" ... "P@0.9"} in percent.

        What has no samples is left out: "N-acc", or the others behind "cIoU".

        Raises InputError without samples.
        """
        if not self.ious:
            raise InputError("no sample was added: metrics of nothing are undefined")
        result = {
            "gIoU": 100 * float(np.mean(self.ious)),
            "cIoU": 100 * self._intersection / self._union if self._union else 100.0,
        }
        for name, has_target in (("N-acc", False), ("T-acc", True)):
            if seen := len(self._found[has_target]):
                result[name] = 100 * self._right[has_target] / seen
        if self._found[True]:
            result |= _precision(self._found[True], self._strictly)
        return result
