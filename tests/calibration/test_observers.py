"""Observers against the plain definition of what they compute, on all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfanet.calibration.measure.observers import (
    BINS,
    OBSERVERS,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Mse,
    Percentile,
)
from tfanet.errors import InputError


def batches(seed: int, count: int = 6) -> list[np.ndarray]:
    """Heavy-tailed values whose scale jumps from one batch to the next, zeros among them."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        x = rng.standard_t(3, (3, 5, 700)).astype(np.float32) * np.float32(2 ** rng.uniform(-4, 6))
        x[rng.random(x.shape) < 0.2] = 0
        result.append(x)
    return result


def observe(observer, values):
    for x in values:
        observer.update(float(np.abs(x).max()), x.ravel())
    return observer


@pytest.mark.parametrize("seed", range(5))
def test_a_histogram_that_grew_is_the_histogram_of_all_values(seed):
    values = batches(seed)
    seen = observe(Histogram(), values)
    magnitudes = np.abs(np.concatenate([x.ravel() for x in values])).astype(np.float64)
    expected, _ = np.histogram(magnitudes[magnitudes > 0], BINS, (0, seen.limit))
    assert seen.limit >= magnitudes.max() > seen.limit / 2
    assert seen.largest == magnitudes.max()
    # A value within rounding of an edge may be counted on its other side.
    assert np.abs(np.cumsum(seen.counts) - np.cumsum(expected)).max() <= 3
    assert seen.counts.sum() == np.count_nonzero(magnitudes)


def test_the_largest_counts_where_the_sample_lacks_it():
    sample = np.linspace(-1, 1, 1000, dtype=np.float32)
    for observer in (MinMax(), Histogram()):
        observer.update(11.0, sample)
    assert observer.largest == observer.limit == 11
    assert observer.counts.sum() == 1000 and observer.counts[200:].sum() == 0
    for name in ("minmax", "percentile", "moving-average"):
        observer = OBSERVERS[name]()
        observer.update(11.0, sample)
        assert (observer.amax() > 10) == (name != "percentile")


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow_with_the_data(name):
    def held(observer) -> int:
        return sum(getattr(value, "nbytes", 8) for value in vars(observer).values())

    observer = OBSERVERS[name]()
    observer.update(1.0, np.ones(10, np.float32))
    before = held(observer)
    observe(observer, batches(0, 20))
    assert held(observer) == before <= 8 * BINS + 100


def test_minmax_and_moving_average_follow_their_formulas():
    values = batches(1)
    largest = [float(np.abs(x).max()) for x in values]
    assert observe(MinMax(), values).amax() == max(largest)
    average = largest[0]
    for value in largest[1:]:
        average = 0.75 * average + 0.25 * value
    assert observe(MovingAverage(0.75), values).amax() == pytest.approx(average, rel=1e-12)


@pytest.mark.parametrize("percent", [50, 90, 99, 99.9])
def test_percentile_is_within_a_bin_of_the_exact_one(percent):
    values = batches(2)
    observer = observe(Percentile(percent), values)
    magnitudes = np.abs(np.concatenate([x.ravel() for x in values]))
    exact = np.percentile(magnitudes[magnitudes > 0], percent)
    assert abs(observer.amax() - exact) <= 1.01 * observer.limit / BINS
    assert observe(Percentile(100), values).amax() == pytest.approx(magnitudes.max())


def fake_quantize(x: np.ndarray, amax: float) -> np.ndarray:
    scale = amax / 127
    return np.clip(np.round(x / scale), -127, 127) * scale


@pytest.mark.parametrize("seed", range(5))
def test_mse_finds_the_best_range_of_a_brute_force_search(seed):
    values = batches(seed)
    found = observe(Mse(), values).amax()
    x = np.concatenate([v.ravel() for v in values]).astype(np.float64)

    def error(amax: float) -> float:
        return float(((fake_quantize(x, amax) - x) ** 2).mean())

    tried = np.abs(x).max() * np.arange(1, 129) / 128
    assert found == pytest.approx(tried[np.argmin(np.abs(tried - found))], rel=1e-6)
    assert error(found) <= 1.02 * min(map(error, tried))


def plain_entropy(counts: np.ndarray, limit: float, stride: int) -> float:
    """The published algorithm in loops: the best of the ranges that end at each `stride` bins."""
    best, chosen = math.inf, 0
    last = int(np.flatnonzero(counts)[-1]) + 1
    for bins in range(128, max(128, math.ceil(last / stride) * stride) + 1, stride):
        p = [float(c) for c in counts[:bins]]
        outside = float(sum(counts[bins:]))
        levels = [[j for j in range(bins) if j * 128 // bins == level] for level in range(128)]
        q = [0.0] * bins
        for members in levels:
            filled = [j for j in members if counts[j]]
            for j in filled:
                q[j] = sum(float(counts[k]) for k in members) / len(filled)
        p[-1] += outside
        total_p, total_q = sum(p), sum(q)
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += (
                    math.inf if b == 0 else a / total_p * math.log(a / total_p / (b / total_q))
                )
        if divergence < best:
            best, chosen = divergence, bins
    return chosen * limit / BINS


@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_published_algorithm(seed):
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=500000).astype(np.float32)
    observer = observe(Entropy(stride=64), np.split(x, 4))
    expected = plain_entropy(observer.counts, observer.limit, 64)
    assert observer.amax() == pytest.approx(min(expected, float(np.abs(x).max())))


def test_entropy_leaves_rare_outliers_out():
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    x[:20] *= 8
    assert 2 < observe(Entropy(), [x]).amax() < 0.6 * np.abs(x).max()


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_value_that_is_always_zero_has_the_range_zero(name):
    assert observe(OBSERVERS[name](), [np.zeros((2, 3), np.float32)] * 2).amax() == 0


@pytest.mark.parametrize(
    "make", [lambda: Percentile(0), lambda: Percentile(101), lambda: MovingAverage(1.0)]
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="give a number"):
        make()
