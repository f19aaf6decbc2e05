"""Published results of InstAlign. No official code exists, so nothing of it is counted."""

from __future__ import annotations

from tfanet.model.published import Published

__all__ = ["PUBLISHED"]

PUBLISHED = Published(
    source="the paper, of its authors' own network; the one here is a reconstruction",
    metrics=("gIoU", "cIoU", "N-acc", "mIoU", "Acc"),
    results={
        "gRefCOCO val": (74.34, 68.94, 79.72, None, None),
        "gRefCOCO testA": (None, 73.22, None, None, None),
        "Ref-ZOM test": (None, None, None, 70.81, 94.23),
    },
)
