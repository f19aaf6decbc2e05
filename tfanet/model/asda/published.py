"""Published results of ASDA, and what its official code counts."""

from __future__ import annotations

from tfanet.model.published import Published

__all__ = ["PUBLISHED"]

PUBLISHED = Published(
    source="README of the official code; P@X of the paper",
    # Its authors call it overall IoU; their code averages over samples.
    metrics=("mIoU", "P@0.5", "P@0.7", "P@0.9"),
    results={
        "RefCOCO val": (75.06, 86.37, 77.74, 29.80),
        "RefCOCO testA": (77.14, 89.28, 82.23, 29.96),
        "RefCOCO testB": (71.36, 80.76, 69.61, 30.14),
        "RefCOCO+ val": (66.84, None, None, None),
        "RefCOCO+ testA": (71.13, None, None, None),
        "RefCOCO+ testB": (57.83, None, None, None),
        "G-Ref val (U)": (65.73, None, None, None),
        "G-Ref test (U)": (66.45, None, None, None),
        "G-Ref val (G)": (63.55, None, None, None),
    },
    # Its dead layers, which official checkpoints hold, are not made here.
    params=193_090_306,
    alive=180_797_442,
    counted="official",
)
