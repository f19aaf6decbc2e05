"""The accuracy guard: the fewest layers back in floating point that keep all drops within bounds.

Layers are ranked by sensitivity, and the k most sensitive ones are given back. Everything quantised
is evaluated first; then k doubles until the bounds hold, and bisection finds the least k between.
That is at most 2 log2(n) + 2 evaluations for n layers, and no k is evaluated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfanet.calibration.graph.layers import QUANTISED, Layer, quantised_share
from tfanet.errors import GateError, InputError, check_choice

__all__ = ["METRICS", "GuardResult", "check_bounds", "search"]

METRICS = ("mIoU", "P@0.9", "gIoU")
# Metrics of the model with these layers in floating point.
Evaluate = Callable[[frozenset[str]], dict[str, float]]


@dataclass(frozen=True)
class GuardResult:
    """What the guard decided.

    Attributes:
        keep_float: names of the layers given back, the most sensitive first.
        metrics: of the result, in percent. drop: points of each bounded metric lost to FP32.
        share: of multiply-accumulates that are quantised. evaluations: quantised models tried.
        tried: each evaluation in order: layers given back, share, drop.
    """

    keep_float: tuple[str, ...]
    metrics: dict[str, float]
    drop: dict[str, float]
    share: float
    evaluations: int
    tried: tuple[dict[str, Any], ...]


def check_bounds(bounds: Mapping[str, float], min_share: float) -> None:
    """Raises InputError for no bound, a metric that is not one of `METRICS`, or a bad number."""
    if not bounds:
        raise InputError("no metric is bounded: give the points that may be lost, such as mIoU=0.5")
    for metric, max_drop in bounds.items():
        check_choice("metric", metric, METRICS)
        if not 0 <= max_drop <= 100:
            raise InputError(f"max_drop is {max_drop}: give points of {metric}, 0 to 100")
    if not 0 <= min_share <= 1:
        raise InputError(f"min_share is {min_share}: give a share of the arithmetic, 0 to 1")


def search(
    layers: Sequence[Layer],
    sensitivity: Mapping[str, float],
    baseline: Mapping[str, float],
    evaluate: Evaluate,
    *,
    bounds: Mapping[str, float],
    min_share: float = 0.5,
) -> GuardResult:
    """Find the fewest layers to give back.

    Args:
        layers: all of the model. sensitivity: by name, of the QUANTISED ones.
        baseline: metrics of FP32. evaluate: metrics with the named layers in floating point.
        bounds: points that each metric may lose; all must hold at once. min_share: of
            multiply-accumulates that stay quantised; below it the model hardly is.

    Raises:
        GateError: where the bounds cannot be met with that share, saying what can.
        InputError: for a bad bound, or where the evaluation has no such metric.
    """
    check_bounds(bounds, min_share)
    for metric in bounds:
        if metric not in baseline:
            raise InputError(
                f"this dataset is not scored by {metric}: bound one of "
                f"{', '.join(name for name in METRICS if name in baseline)}"
            )
    inside = [layer.name for layer in layers if layer.placement == QUANTISED]
    ranked = sorted(inside, key=lambda name: (-sensitivity[name], name))
    most = _most(layers, ranked, min_share)
    tried: dict[int, dict[str, Any]] = {}
    found: dict[int, dict[str, float]] = {}

    def holds(k: int) -> bool:
        if k not in tried:
            found[k] = evaluate(frozenset(ranked[:k]))
            drop = {metric: baseline[metric] - found[k][metric] for metric in bounds}
            share = quantised_share(list(layers), set(ranked[k:]))
            tried[k] = {"given_back": k, "share": share, "drop": drop}
        return _excess(tried[k], bounds) <= 0

    if most < 0:
        share = quantised_share(list(layers))
        raise GateError(
            f"{share:.1%} of the arithmetic can be quantised, less than the {min_share:.0%} "
            "asked for: lower --min-share"
        )
    low, high = -1, 0  # a bound fails at low, k = high is tried
    while not holds(high):
        low = high
        if high == most:
            raise _unreachable(tried, bounds, min_share)
        high = min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return GuardResult(
        keep_float=tuple(ranked[:high]),
        metrics=found[high],
        drop=tried[high]["drop"],
        share=tried[high]["share"],
        evaluations=len(tried),
        tried=tuple(tried.values()),
    )


def _excess(row: Mapping[str, Any], bounds: Mapping[str, float]) -> float:
    """By how many points the worst metric misses its bound; 0 or less where all hold."""
    return float(max(row["drop"][metric] - bound for metric, bound in bounds.items()))


def _unreachable(
    tried: Mapping[int, Mapping[str, Any]], bounds: Mapping[str, float], min_share: float
) -> GateError:
    best = min(tried.values(), key=lambda row: _excess(row, bounds))
    asked = " and ".join(f"{bound:g} points of {metric}" for metric, bound in bounds.items())
    lost = " and ".join(f"{drop:.2f} points of {metric}" for metric, drop in best["drop"].items())
    enough = " ".join(
        f"--max-drop {metric}={drop + 0.005:.2f}"
        for metric, drop in best["drop"].items()
        if drop > bounds[metric]
    )
    return GateError(
        f"the bound of {asked} cannot be met with {min_share:.0%} of the arithmetic "
        f"quantised: the least drop was {lost} with {best['given_back']} layers in FP32 and "
        f"{best['share']:.0%} quantised, after {len(tried)} evaluations; allow {enough}, lower "
        "--min-share, or calibrate with more pictures"
    )


def _most(layers: Sequence[Layer], ranked: Sequence[str], min_share: float) -> int:
    """The largest k whose quantised share is still `min_share`; -1 where even 0 has less."""
    ks = range(len(ranked) + 1)
    fits = [k for k in ks if quantised_share(list(layers), set(ranked[k:])) >= min_share]
    return max(fits, default=-1)
