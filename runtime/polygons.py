"""Masks as polygons: the exact outlines of their regions, holes included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["polygons"]

Point = tuple[int, int]


class Hole(NamedTuple):
    """Where a hole is cut into the ring that encloses it.

    Attributes:
        ring: the hole's own. at: the point of the enclosing ring's vertical edge from which a line
            leads to the hole's first corner.
    """

    ring: int
    at: Point


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The regions of a mask (H, W) of bools, each as one polygon (N, 2) int32 of x, y.

    A region is what is connected over the sides of pixels. Points are corners of pixels: (0, 0) is
    the upper left corner of the picture, (W, H) the lower right one; edges run along the sides of
    pixels, so filling the polygons gives the mask again, to the pixel. The last point is not the
    first one again. Outlines run clockwise as seen on the screen. A hole is part of its region's
    polygon: a line of no width leads to it, around it counter-clockwise, and back; so formats that
    know no holes (COCO's, YOLO's) keep them. Regions are in the order of their topmost, then
    leftmost corners.
    """
    mask = np.ascontiguousarray(mask, bool)
    corners = _Corners(mask)
    rings = corners.rings()
    holes: dict[int, list[Hole]] = defaultdict(list)  # by the upper corner of the edge they hang on
    outer = []
    for index, ring in enumerate(rings):
        x, y = corners.points[ring[0]]
        if mask[y, x]:
            outer.append(index)
        else:
            left = np.flatnonzero(~mask[y - 1, :x])
            at = (int(left[-1]) + 1 if left.size else 0, y)
            holes[corners.edge_at(at[0], y - 1)].append(Hole(index, at))
    return [_joined(index, rings, corners.points, holes) for index in outer]


class _Corners:
    """Corners of a mask's outlines, each joined to one along its row and one along its column.

    Where two regions touch at a point there are two corners, one of each.
    """

    def __init__(self, mask: np.ndarray) -> None:
        padded = np.pad(mask, 1)
        upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
        lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
        falling = upper_left & lower_right & ~upper_right & ~lower_left
        rising = upper_right & lower_left & ~upper_left & ~lower_right
        single = upper_left ^ upper_right ^ lower_left ^ lower_right
        parts = []
        # Of two corners at a point: its left or right one along the row, upper or lower one along
        # the column.
        for found, right, lower in (
            (single, 0, 0),
            (falling, 0, 0),
            (falling, 1, 1),
            (rising, 0, 1),
            (rising, 1, 0),
        ):
            y, x = np.nonzero(found)
            parts.append(np.stack([x, y, np.full_like(x, right), np.full_like(x, lower)]))
        x, y, right, lower = np.concatenate(parts, 1)
        self.rows = np.lexsort((right, x, y))
        columns = np.lexsort((lower, y, x))
        self.beside = _partners(self.rows)
        self.below = _partners(columns)
        self.points: list[Point] = list(zip(x.tolist(), y.tolist(), strict=True))
        self._stride = mask.shape[0] + 1
        self._upper = columns[0::2]
        self._keys = x[self._upper] * self._stride + y[self._upper]

    def rings(self) -> list[list[int]]:
        """Closed walks from corner to corner, along a row first, from the upper left one on."""
        beside, below = self.beside.tolist(), self.below.tolist()
        seen = bytearray(len(beside))
        found = []
        for start in self.rows.tolist():
            if seen[start]:
                continue
            ring, corner = [], start
            while not seen[corner]:
                other = beside[corner]
                ring += [corner, other]
                seen[corner] = seen[other] = 1
                corner = below[other]
            found.append(ring)
        return found

    def edge_at(self, x: int, row: int) -> int:
        """The upper corner of the vertical edge at `x` that passes this row of pixels."""
        place = np.searchsorted(self._keys, x * self._stride + row, side="right") - 1
        return int(self._upper[place])


def _partners(order: np.ndarray) -> np.ndarray:
    """Of sorted corners, the first and the second are joined, the third and the fourth, ..."""
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _joined(
    index: int, rings: list[list[int]], points: list[Point], holes: dict[int, list[Hole]]
) -> np.ndarray:
    """An outer ring with all that hangs on it. Holes may hang on holes, thousands deep."""
    found: list[Point] = []
    walks = [_walk(rings[index], points, holes)]
    while walks:
        step = next(walks[-1], None)
        if step is None:
            walks.pop()
            continue
        point, hole = step
        if not found or found[-1] != point:
            found.append(point)
        if hole is not None:
            ring = rings[hole]
            walks.append(_walk([ring[0], *ring[:0:-1], ring[0]], points, holes))
    return np.array(found, np.int32)


def _walk(
    ring: list[int], points: list[Point], holes: dict[int, list[Hole]]
) -> Iterator[tuple[Point, int | None]]:
    """The points of a ring in order, and the hole to walk around from there, if any."""
    for corner, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        yield points[corner], None
        (x, y), (next_x, next_y) = points[corner], points[following]
        if x != next_x or y == next_y:
            continue
        down = next_y > y
        hanging = holes.get(corner if down else following, ())
        for hole in sorted(hanging, key=lambda one: one.at[1], reverse=not down):
            yield hole.at, hole.ring
            yield hole.at, None
