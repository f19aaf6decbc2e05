"""Published results of CrossVLT, and what its official code counts."""

from __future__ import annotations

from tfanet.model.published import Published

__all__ = ["PUBLISHED"]

PUBLISHED = Published(
    source="README of the official code, masks of 480x480",
    metrics=("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9"),
    results={
        "RefCOCO val": (75.48, 73.44, 85.82, 77.49, 35.97),
        "RefCOCO testA": (77.54, 76.16, 88.92, 81.62, 36.68),
        "RefCOCO testB": (72.69, 70.15, 81.35, 72.27, 37.64),
        "RefCOCO+ val": (67.27, 63.60, 76.41, 68.49, 31.39),
        "RefCOCO+ testA": (72.00, 69.10, 82.43, 74.80, 32.89),
        "RefCOCO+ testB": (60.09, 55.23, 67.19, 58.89, 29.15),
        "G-Ref val (U)": (66.21, 62.68, 74.75, 64.58, 28.57),
        "G-Ref test (U)": (62.09, 63.75, 71.54, 59.00, 23.10),
    },
    params=236_711_038,
    alive=233_333_882,
    counted="official",
)
