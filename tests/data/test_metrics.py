"""Metrics against cases worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tfanet.errors import InputError
from tfanet.evaluation.metrics import GeneralizedMetrics, Metrics


def strip(start: int, stop: int, length: int = 1000) -> np.ndarray:
    mask = np.zeros((10, length // 10), dtype=np.uint8)
    mask.reshape(-1)[start:stop] = 1
    return mask


def test_mean_overall_and_precision_by_hand() -> None:
    metrics = Metrics()
    assert metrics.update(strip(0, 100), strip(0, 100)) == 1.0  # 100 / 100
    assert metrics.update(strip(0, 100), strip(50, 150)) == pytest.approx(50 / 150)
    assert metrics.update(strip(0, 300), strip(0, 400)) == 0.75  # 300 / 400
    assert metrics.update(strip(0, 0), strip(0, 10)) == 0.0  # 0 / 10
    result = metrics.compute()
    assert result["mIoU"] == pytest.approx(100 * (1 + 1 / 3 + 0.75 + 0) / 4)
    assert result["oIoU"] == pytest.approx(100 * 450 / 660)
    precision = [result[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert precision == [50.0, 50.0, 50.0, 25.0, 25.0]


@pytest.mark.parametrize("percent", [50, 60, 70, 80, 90])
def test_precision_counts_the_threshold_itself(percent: int) -> None:
    """As LAVT's and ReLA's evaluations do: IoU >= X."""
    metrics = Metrics()
    metrics.update(strip(0, percent), strip(0, 100))
    metrics.update(strip(0, 10 * percent - 1), strip(0, 1000))
    result = metrics.compute()
    assert result[f"P@{percent / 100}"] == 50.0
    assert [result[f"P@{x / 100}"] for x in range(percent + 10, 100, 10)] == [0.0] * (
        (90 - percent) // 10
    )


def test_strictly_above() -> None:
    """As ASDA's evaluation does: IoU > X."""
    for kind in (Metrics, GeneralizedMetrics):
        metrics = kind(strictly=True)
        metrics.update(strip(0, 700), strip(0, 1000))  # 0.7
        metrics.update(strip(0, 701), strip(0, 1000))  # 0.701
        metrics.update(strip(0, 500), strip(0, 1000))  # 0.5
        result = metrics.compute()
        found = [result[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8)]
        assert found == pytest.approx([200 / 3, 200 / 3, 100 / 3, 0])


def test_mask_values_of_255_and_booleans_are_set_pixels() -> None:
    metrics = Metrics()
    assert metrics.update(strip(0, 20) * 255, strip(0, 40).astype(bool)) == 0.5


def test_generalised_by_hand() -> None:
    metrics = GeneralizedMetrics()
    nothing = strip(0, 0)
    assert metrics.update(strip(0, 49), nothing) == 1.0  # under 50 pixels: empty, right
    assert metrics.update(strip(0, 50), nothing) == 0.0  # 50 pixels: a target, wrong
    assert metrics.update(strip(0, 200), strip(0, 400)) == 0.5
    assert metrics.update(strip(0, 49), strip(0, 100)) == 0.0  # taken as empty, wrong
    result = metrics.compute()
    assert result == {
        "gIoU": pytest.approx(37.5),
        "cIoU": pytest.approx(100 * 200 / (0 + 50 + 400 + 100)),
        "N-acc": 50.0,
        "T-acc": 50.0,
        "P@0.5": 50.0,  # of the two samples with a target
        **{f"P@{x}": 0.0 for x in (0.6, 0.7, 0.8, 0.9)},
    }


def test_a_head_for_no_target_decides_by_hand() -> None:
    metrics = GeneralizedMetrics()
    nothing = strip(0, 0)
    # Pixels under an empty verdict do not count, few pixels under the other do.
    assert metrics.update(strip(0, 300), nothing, says_nothing=True) == 1.0
    assert metrics.update(strip(0, 10), nothing, says_nothing=False) == 0.0
    assert metrics.update(nothing, nothing, says_nothing=False) == 0.0
    assert metrics.update(strip(0, 100), strip(0, 100), says_nothing=True) == 0.0
    assert metrics.update(strip(0, 20), strip(0, 40), says_nothing=False) == 0.5
    assert metrics.update(strip(0, 90), strip(0, 100), says_nothing=False) == 0.9
    assert metrics.compute() == {
        "gIoU": pytest.approx(100 * (1 + 0 + 0 + 0 + 0.5 + 0.9) / 6),
        "cIoU": pytest.approx(100 * (20 + 90) / (0 + 10 + 0 + 100 + 40 + 100)),
        "N-acc": pytest.approx(100 / 3),
        "T-acc": pytest.approx(200 / 3),
        "P@0.5": pytest.approx(200 / 3),
        **{f"P@{x}": pytest.approx(100 / 3) for x in (0.6, 0.7, 0.8, 0.9)},
    }
    plain = Metrics()
    assert plain.update(strip(0, 100), strip(0, 100), says_nothing=True) == 0.0
    assert plain.compute()["oIoU"] == 0.0


@pytest.mark.parametrize("strictly", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_random_samples_against_a_slow_way(head: bool, strictly: bool) -> None:
    """Sets of pixels, one by one, and fractions that never round."""
    rng = np.random.default_rng(8)
    general, plain = GeneralizedMetrics(strictly=strictly), Metrics(strictly=strictly)
    rows: list[tuple[Fraction, set[int], set[int], bool, bool]] = []
    for _ in range(120):
        shape = (int(rng.integers(4, 20)), int(rng.integers(4, 20)))
        true, predicted = (rng.random(shape) < share for share in rng.uniform(0.1, 0.9, 2))
        if rng.random() < 0.5:  # often equal but for a tenth, so that every P@X is met
            predicted = true ^ (rng.random(shape) < rng.uniform(0, 0.4))
        if rng.random() < 0.3:
            true[:] = False
        t, p = ({n for n, v in enumerate(mask.flat) if v} for mask in (true, predicted))
        says_nothing = bool(rng.random() < 0.3) if head else None
        general.update(predicted, true, says_nothing=says_nothing)
        empty = says_nothing if head else len(p) < 50
        if t:
            plain.update(predicted, true, says_nothing=says_nothing)
            shown = set() if head and says_nothing else p
            rows.append((Fraction(len(t & shown), len(t | shown)), t, shown, True, False))
        p = set() if empty else p
        share = Fraction(len(t & p), len(t | p)) if t else Fraction(int(bool(empty)))
        rows.append((share, t, p, False, bool(empty)))

    def percent(value: Fraction | int, count: int) -> object:
        return pytest.approx(float(100 * Fraction(value) / count), abs=1e-9)

    def overall(mine: list[tuple[Fraction, set[int], set[int], bool, bool]]) -> object:
        union = sum(len(t | p) for _, t, p, *_ in mine)
        return percent(sum(len(t & p) for _, t, p, *_ in mine), union)

    def precision(shares: list[Fraction]) -> dict[str, object]:
        found = {}
        for tenths in (5, 6, 7, 8, 9):
            x = Fraction(tenths, 10)
            hits = sum(share > x if strictly else share >= x for share in shares)
            found[f"P@{tenths / 10}"] = percent(hits, len(shares))
        return found

    mine = [row for row in rows if row[3]]
    assert plain.compute() == {
        "mIoU": percent(sum(row[0] for row in mine), len(mine)),
        "oIoU": overall(mine),
        **precision([row[0] for row in mine]),
    }
    mine = [row for row in rows if not row[3]]
    targets, none = [r for r in mine if r[1]], [r for r in mine if not r[1]]
    assert general.compute() == {
        "gIoU": percent(sum(row[0] for row in mine), len(mine)),
        "cIoU": overall(mine),
        "N-acc": percent(sum(row[4] for row in none), len(none)),
        "T-acc": percent(sum(not row[4] for row in targets), len(targets)),
        **precision([row[0] for row in targets]),
    }


def test_generalised_leaves_out_accuracies_without_samples() -> None:
    metrics = GeneralizedMetrics()
    metrics.update(strip(0, 100), strip(0, 100))
    found = {f"P@{x}": 100.0 for x in (0.5, 0.6, 0.7, 0.8, 0.9)}
    assert metrics.compute() == {"gIoU": 100.0, "cIoU": 100.0, "T-acc": 100.0, **found}
    metrics = GeneralizedMetrics()
    metrics.update(strip(0, 0), strip(0, 0))
    assert metrics.compute() == {"gIoU": 100.0, "cIoU": 100.0, "N-acc": 100.0}


def test_a_target_without_a_mask_is_never_found() -> None:
    """A ref of crowd regions only: ReLA's evaluation counts it among the targets, with IoU 0."""
    metrics = GeneralizedMetrics()
    assert metrics.update(strip(0, 0), strip(0, 0), no_target=False) == 0.0
    assert metrics.update(strip(0, 60), strip(0, 0), no_target=False) == 0.0
    found = {f"P@{x}": 0.0 for x in (0.5, 0.6, 0.7, 0.8, 0.9)}
    assert metrics.compute() == {"gIoU": 0.0, "cIoU": 0.0, "T-acc": 50.0, **found}
    assert metrics.update(strip(0, 0), strip(0, 0), no_target=True) == 1.0


def test_errors() -> None:
    with pytest.raises(InputError, match="no-target data"):
        Metrics().update(strip(0, 5), strip(0, 5), no_target=True)
    with pytest.raises(InputError, match="true mask is empty"):
        Metrics().update(strip(0, 5), strip(0, 0))
    with pytest.raises(InputError, match=r"\(10, 100\).*\(10, 10\)"):
        Metrics().update(strip(0, 5), strip(0, 5, 100))
    for metrics in (Metrics(), GeneralizedMetrics()):
        with pytest.raises(InputError, match="no sample"):
            metrics.compute()
