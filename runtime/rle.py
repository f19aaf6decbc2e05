"""Masks as COCO's compressed run lengths, as pycocotools writes and reads them."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

__all__ = ["Rle", "encode"]

GROUP = 5  # bits in a character; the sixth says that more follow
FIRST = 48  # the character of the value 0


class Rle(TypedDict):
    """COCO's `segmentation` of a mask, ready for JSON.

    Attributes:
        size: height and width of the mask. counts: lengths of runs down the columns, the first of
            pixels that are not set, compressed to text.
    """

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """The run lengths of a mask (H, W) of bools."""
    flat = np.asarray(mask, bool).ravel(order="F")
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat.size and flat[0] else [0]  # the first run is of pixels that are not set
    counts = np.diff(np.concatenate([first, turns, [flat.size]]).astype(np.int64))
    height, width = mask.shape
    return {"size": [height, width], "counts": _text(counts)}


def _text(counts: np.ndarray) -> str:
    """From the fourth on, each count less the one two before it, in groups of 5 bits, low first."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    characters = []
    going = np.ones(len(rest), bool)
    written = []
    while going.any():
        group = rest & 31
        rest >>= GROUP
        # The highest bit of the last group is the sign.
        more = np.where(group & 16, rest != -1, rest != 0)
        characters.append((group | np.where(more, 32, 0)) + FIRST)
        written.append(going)
        going = going & more
    columns = np.stack(characters, 1).astype(np.uint8)
    return columns[np.stack(written, 1)].tobytes().decode("ascii")
