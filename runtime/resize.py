"""Two ways to resize a picture, each with one result on every machine. NumPy and Pillow only."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["resize_area", "resize_bilinear"]

BAND_BYTES = 1 << 22  # of a picture's pixels that are held as an array at a time


def resize_bilinear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bilinear filter to `size` = (H, W); it averages over its footprint when it reduces.

    Along the rows first, then along the columns: Pillow 13 may take them the other way round,
    earlier versions do not, and the pixels differ.
    """
    height, width = size
    rows = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return rows.resize((width, height), Image.Resampling.BILINEAR)


def resize_area(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The exact area average of an RGB picture, uint8 (H, W, 3); no side may grow.

    Of n pixels along a side to m, the i-th new one covers [i n, (i + 1) n) where the j-th old one
    covers [j m, (j + 1) m); the overlaps are its weights, whole numbers of sum n. A value is the
    weighted sum by n_y n_x, a half rounded up: integers throughout, so there is one right result.
    """
    (height, width), whole = size, image.height * image.width
    averaged = np.empty((height, width, 3), np.uint8)
    starts = _starts(image.height, height)
    band = max(1, BAND_BYTES * height // (3 * whole))  # new rows at a time
    for first in range(0, height, band):
        last = min(first + band, height)
        top, bottom = starts[first][0], starts[last][0] + (starts[last][1] > 0)
        pixels = np.asarray(image.crop((0, top, image.width, bottom)))
        inside = [(row - top, part) for row, part in starts[first : last + 1]]
        columns = _sums(pixels, inside, height)  # (rows, W_old, 3), at most 255 n_y
        turned = np.ascontiguousarray(columns.transpose(1, 0, 2))
        sums = _sums(turned, _starts(image.width, width), width)
        averaged[first:last] = ((2 * sums + whole) // (2 * whole)).transpose(1, 0, 2)
    return averaged


def _starts(n: int, m: int) -> list[tuple[int, int]]:
    """Where each of m new pixels begins, and the last ends: the old pixel, and m-ths of it."""
    return [divmod(i * n, m) for i in range(m + 1)]


def _sums(values: np.ndarray, starts: list[tuple[int, int]], m: int) -> np.ndarray:
    """Weighted sums along the first axis: int64, one for each pair of neighbours in `starts`."""
    sums = np.empty((len(starts) - 1, *values.shape[1:]), np.int64)
    for total, (begin, before), (end, behind) in zip(sums, starts, starts[1:], strict=False):
        np.add.reduce(values[begin:end], axis=0, dtype=np.int64, out=total)
        total *= m
        if before:
            total -= values[begin] * np.int64(before)
        if behind:
            total += values[end] * np.int64(behind)
    return sums
