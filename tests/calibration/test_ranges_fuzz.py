"""The calibration file with values changed: a calibration, or one clear line."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from mutations import FUZZ, every_change, mutated, outcome

from tfanet.calibration import Calibration, diff
from tfanet.calibration.ranges import GraphRanges
from tfanet.errors import InputError

WHOLE = Calibration(
    model={"preset": "tfanet-tiny", "image_size": [64, 64], "fingerprint": "ab", "weights": "cd"},
    precision="int8",
    observer="percentile",
    data={"dataset": "shapes", "split": "train", "seed": 0, "count": 2, "sent_ids": [1, 2]},
    graphs={
        "image.onnx": GraphRanges(
            amax={"x": 1.5, "y": 0.0},
            smooth={"x": [0, -1, 2]},
            means={"y": [0.5, -0.25]},
            outliers={"x": [[0, 2], [1.0, 2.0]]},
            regions={"y": [0.5, 3]},
        )
    },
)


@pytest.fixture
def document(tmp_path: Path) -> Any:
    WHOLE.save(tmp_path / "ranges.json")
    return json.loads((tmp_path / "ranges.json").read_text())


def use(path: Path, document: Any) -> None:
    """What `tfanet calibrate diff` and `tfanet export --calibration` do with it first."""
    path.write_text(json.dumps(document))
    found = Calibration.load(path)
    found.save(path)
    for row in (*diff(found, WHOLE), *diff(WHOLE, found)):
        assert row["ratio"] is None or (row["ratio"] > 0 and not math.isnan(row["ratio"]))
    outcome(partial(found.check_model, WHOLE.model), InputError)
    for ranges in found.graphs.values():
        assert all(len(steps) < 10 for steps in ranges.smooth.values())


def test_every_single_change(document: Any, tmp_path: Path) -> None:
    for changed in every_change(document):
        outcome(partial(use, tmp_path / "changed.json", changed), InputError)


def test_several_changes(document: Any, tmp_path: Path) -> None:
    @given(mutated(lambda: document))
    @FUZZ
    def read(changed: Any) -> None:
        outcome(partial(use, tmp_path / "changed.json", changed), InputError)

    read()


def test_a_whole_file_is_read(document: Any, tmp_path: Path) -> None:
    (tmp_path / "again.json").write_text(json.dumps(document))
    assert Calibration.load(tmp_path / "again.json") == WHOLE
