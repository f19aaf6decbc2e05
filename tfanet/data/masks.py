"""COCO segmentations (polygons, RLE) to boolean masks, through pycocotools; masks to a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tfanet.data.safe_pickle import DataError
from tfanet.errors import shown
from tfanet.runtime.bundle.contract import LETTERBOX, Preprocessing
from tfanet.runtime.letterbox import Letterbox

__all__ = ["mask_to_size", "segmentation_mask"]


def _polygons(
    segmentation: Sequence[Any], height: int, width: int, ann_id: int
) -> list[list[float]]:
    """The polygons of three points and more, each checked to be finite and near the picture."""
    reach = 2 * max(height, width)
    kept = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise DataError(
                f"annotation {ann_id}: a polygon must be a list of x, y pairs, got {shown(polygon)}"
            )
        for value in polygon:
            # Compared as it is: a whole number may be too long to become a float, NaN fails.
            if not (isinstance(value, int | float) and abs(value) <= reach):
                raise DataError(
                    f"annotation {ann_id}: coordinate {shown(value)} is not a number near its "
                    f"{width}x{height} picture"
                )
        # pycocotools would read two points as a box.
        if len(polygon) >= 6:
            kept.append([float(value) for value in polygon])
    return kept


def _run_lengths(text: str | bytes, ann_id: int) -> list[int]:
    """Counts of a compressed RLE string; pycocotools itself trusts them without a check."""
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for byte in data:
        group = byte - 48
        if not 0 <= group < 64 or shift > 30:
            raise DataError(f"annotation {ann_id}: its compressed RLE is damaged")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise DataError(f"annotation {ann_id}: its compressed RLE is cut short")
    return counts


def segmentation_mask(segmentation: Any, height: int, width: int, ann_id: int) -> np.ndarray:
    """Boolean (height, width) mask of one annotation: list of polygons, or RLE of either kind.

    Raises DataError, naming the annotation, where the segmentation is malformed, does not fit the
    picture's size, or sets no pixel (all of its polygons degenerate).
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        polygons = _polygons(segmentation, height, width, ann_id)
        if not polygons:
            raise DataError(
                f"annotation {ann_id}: no polygon has three points, so its mask is empty"
            )
        runs = coco.merge(coco.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise DataError(
                f"annotation {ann_id}: its RLE is for size {shown(size)}, the picture has "
                f"[{height}, {width}]"
            )
        if isinstance(counts, str | bytes):
            counts = _run_lengths(counts, ann_id)
        if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
            raise DataError(f"annotation {ann_id}: its RLE counts are not whole numbers")
        if sum(counts) != height * width:
            raise DataError(
                f"annotation {ann_id}: its RLE covers {sum(counts)} pixels of {height * width}"
            )
        runs = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        kind = type(segmentation).__name__
        raise DataError(f"annotation {ann_id}: segmentation is {kind}, expected polygons or RLE")
    mask = coco.decode(runs).astype(bool)
    if not mask.any():
        raise DataError(f"annotation {ann_id}: its mask is empty in a {width}x{height} picture")
    return mask


def mask_to_size(
    mask: np.ndarray, preprocessing: Preprocessing, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A mask (height, width) where its picture's tensor has it: boolean, of the tensor's size.

    It is stretched or letterboxed as the picture is, by nearest neighbour; the padding of a
    letterbox is not set. `size` is (H, W) where it differs from the tensor's.
    """
    box = size or preprocessing.size
    resized, top, left = box, 0, 0
    if preprocessing.resize == LETTERBOX:
        place = Letterbox.of(mask.shape, box)
        resized, (top, left) = place.resized, place.crop[:2]
    rows, columns = resized
    # Of booleans Pillow makes an image of 0 and 255, and from it booleans with these bytes.
    plane = Image.fromarray(mask.astype(np.uint8))
    small = np.asarray(plane.resize((columns, rows), Image.Resampling.NEAREST))
    found = np.zeros(box, dtype=np.uint8)
    found[top : top + rows, left : left + columns] = small
    return found.astype(bool)
