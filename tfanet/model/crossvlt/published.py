"""Published results of CrossVLT, and what its official code counts."""

from __future__ import annotations

from tfanet.model.published import Published

__all__ = ["PUBLISHED"]

PUBLISHED = Published(
    source="README of the official code, masks of 480 x 480 against truth resized to that",
    metrics=("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9"),
    results={
        "RefCOCO val": (73.44, 75.48, 85.82, 77.49, 35.97),
        "RefCOCO testA": (76.16, 77.54, 88.92, 81.62, 36.68),
        "RefCOCO testB": (70.15, 72.69, 81.35, 72.27, 37.64),
        "RefCOCO+ val": (63.60, 67.27, 76.41, 68.49, 31.39),
        "RefCOCO+ testA": (69.10, 72.00, 82.43, 74.80, 32.89),
        "RefCOCO+ testB": (55.23, 60.09, 67.19, 58.89, 29.15),
        "G-Ref val (U)": (62.68, 66.21, 74.75, 64.58, 28.57),
        "G-Ref test (U)": (63.75, 62.09, 71.54, 59.00, 23.10),
    },
    # With `temp` and the projections of the alignment loss, which are not alive in a mask.
    params=236_711_038,
    alive=233_333_882,
    counted="official",
)
