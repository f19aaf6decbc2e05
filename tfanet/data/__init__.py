"""Referring-segmentation data: the REFER reader, its check, and the synthetic shapes dataset."""

from __future__ import annotations

from tfanet.data.check import check
from tfanet.data.refer import DATASETS, Ref, ReferDataset, Sample
from tfanet.data.safe_pickle import DataError, load_pickle, loads_pickle
from tfanet.data.shapes import make_shapes

__all__ = [
    "DATASETS",
    "DataError",
    "Ref",
    "ReferDataset",
    "Sample",
    "check",
    "load_pickle",
    "loads_pickle",
    "make_shapes",
]
