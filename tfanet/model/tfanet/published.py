"""Published results of TFANet."""

from __future__ import annotations

from tfanet.model.published import Published

__all__ = ["PUBLISHED"]

PUBLISHED = Published(
    source="the paper",
    metrics=("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9"),
    results={
        "RefCOCO val": (77.84, 76.54, 87.59, 81.38, 41.29),
        "RefCOCO testA": (79.42, 78.24, None, None, None),
        "RefCOCO testB": (75.16, 72.86, None, None, None),
        "RefCOCO+ val": (70.42, 66.67, None, None, None),
        "RefCOCO+ testA": (74.05, 70.96, None, None, None),
        "RefCOCO+ testB": (62.95, 58.00, None, None, None),
        "G-Ref val (U)": (70.19, 68.04, None, None, None),
        "G-Ref test (U)": (72.10, 70.51, None, None, None),
    },
    params=268_460_000,
    flops=311.30e9,
    counted="the paper",
)
