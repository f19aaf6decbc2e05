"""Metrics against cases worked out by hand."""

from __future__ import annotations

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
    }


def test_generalised_leaves_out_accuracies_without_samples() -> None:
    metrics = GeneralizedMetrics()
    metrics.update(strip(0, 100), strip(0, 100))
    assert metrics.compute() == {"gIoU": 100.0, "cIoU": 100.0, "T-acc": 100.0}
    metrics = GeneralizedMetrics()
    metrics.update(strip(0, 0), strip(0, 0))
    assert metrics.compute() == {"gIoU": 100.0, "cIoU": 100.0, "N-acc": 100.0}


def test_a_target_without_a_mask_is_never_found() -> None:
    """A ref of crowd regions only: ReLA's evaluation counts it among the targets, with IoU 0."""
    metrics = GeneralizedMetrics()
    assert metrics.update(strip(0, 0), strip(0, 0), no_target=False) == 0.0
    assert metrics.update(strip(0, 60), strip(0, 0), no_target=False) == 0.0
    assert metrics.compute() == {"gIoU": 0.0, "cIoU": 0.0, "T-acc": 50.0}
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
