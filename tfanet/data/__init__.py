"""Referring-segmentation data: the REFER reader, its check, and the synthetic shapes dataset."""

from __future__ import annotations

from .check import check
from .refer import DATASETS, Ref, ReferDataset, Sample
from .safe_pickle import DataError, load_pickle, loads_pickle
from .shapes import make_shapes

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
