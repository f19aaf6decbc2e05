"""The REFER reader on datasets with a few values changed: a dataset, or one clear line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, every_change, mutated, outcome

from tfanet.calibration.measure.sampler import choose
from tfanet.data import DataError, ReferDataset, check
from tfanet.data.masks import segmentation_mask
from tfanet.errors import InputError

Files = tuple[list[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("dataset", ["refcoco", "grefcoco"])
def test_every_dataset_is_read_or_refused(
    dataset: str, small: Files, write_refer: Callable[..., Path]
) -> None:
    refs, instances = small
    if dataset == "grefcoco":
        for ref, ann_ids in zip(refs, ([100, 101], [101, -1], [-1]), strict=True):
            ref["ann_id"] = ann_ids
    name = "refs(unc).p" if dataset == "refcoco" else "grefs(unc).p"
    root = write_refer(refs, instances, dataset, name)
    folder = root / dataset

    @given(mutated(lambda: {"refs": refs, "instances": instances}), st.booleans())
    @FUZZ
    def read(files: dict[str, Any], checks: bool) -> None:
        (folder / name).write_bytes(pickle.dumps(files.get("refs"), protocol=2))
        (folder / "instances.json").write_text(json.dumps(files.get("instances")))
        outcome(lambda: check(root) if checks else _use(root, dataset), InputError)

    read()


def _use(root: Path, dataset: str) -> None:
    for sample in ReferDataset(root, dataset, "val"):
        assert isinstance(sample.sentence, str) and sample.sentence
        assert sample.mask.shape == (sample.ref.height, sample.ref.width)
        assert sample.mask.dtype == np.bool_
    choose(root, count=2, split="val")


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 5, 30, 5, 30, 15, 10, 15], [1.5, 2, 3, 4, 5, 6]],
        {"size": [40, 60], "counts": [35, 10, 2355]},
        {"size": [40, 60], "counts": "S1:[l1"},
    ],
)
def test_every_segmentation_is_a_mask_or_refused(segmentation: Any) -> None:
    for changed in every_change({"segmentation": segmentation}):
        found = outcome(
            partial(segmentation_mask, changed.get("segmentation"), 40, 60, 1), DataError
        )
        assert found is None or (found.shape == (40, 60) and found.any())
