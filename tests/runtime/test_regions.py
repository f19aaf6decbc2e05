"""Run lengths, polygons and boxes of masks, against pycocotools and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tfanet.runtime.polygons import polygons
from tfanet.runtime.prediction import Instance
from tfanet.runtime.rle import encode

coco = pytest.importorskip("pycocotools.mask")


def with_holes() -> np.ndarray:
    """A ring around a disc, beside squares within squares."""
    y, x = np.mgrid[:150, :200]
    far = np.hypot(y - 75, x - 60)
    nested = np.maximum(abs(y - 70), abs(x - 150))
    return ((far < 55) & (far > 30)) | (far < 12) | ((nested < 45) & (nested // 9 % 2 == 0))


def noise(share: float) -> np.ndarray:
    return np.random.default_rng(int(100 * share)).random((61, 83)) < share


LARGE = [with_holes(), noise(0.05), noise(0.5), noise(0.95), np.ones((3, 4), bool)]


def coco_encoded(mask: np.ndarray) -> dict:
    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**found, "counts": found["counts"].decode()}


def coco_filled(polygon: np.ndarray, mask: np.ndarray) -> np.ndarray:
    found = coco.frPyObjects([polygon.astype(float).ravel().tolist()], *mask.shape)
    return coco.decode(found)[:, :, 0].astype(bool)


def pillow_filled(polygon: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pillow draws the border too: so 4 times as large, and the middles of pixels looked at."""
    height, width = mask.shape
    large = Image.new("1", (4 * width + 1, 4 * height + 1))
    ImageDraw.Draw(large).polygon([tuple(point) for point in (4 * polygon).tolist()], fill=1)
    return np.asarray(large)[2::4, 2::4]


def signed_area(polygon: np.ndarray) -> float:
    x, y = polygon.T.astype(float)
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def check(mask: np.ndarray) -> None:
    assert encode(mask) == coco_encoded(mask)
    region = Instance(mask, 1.0)
    assert region.rle() == encode(mask) and region.area == mask.sum()
    box = region.box
    if box is None:
        assert not mask.any() and polygons(mask) == []
        return
    x, y, width, height = coco.toBbox(coco_encoded(mask)).tolist()
    assert box == (x, y, x + width, y + height)
    for fill in (coco_filled, pillow_filled):
        filled = [fill(polygon, mask) for polygon in polygons(mask)]
        assert np.array_equal(np.sum(filled, 0), mask)  # each pixel once
    for polygon, area in zip(region.polygons(), map(np.sum, filled), strict=True):
        assert polygon.dtype == np.int32
        assert signed_area(polygon) == area > 0  # clockwise as seen, holes taken away


def test_small_masks_of_all_kinds():
    rng = np.random.default_rng(0)
    check(np.zeros((3, 5), bool))
    for _ in range(400):
        check(rng.random(rng.integers(1, 10, 2)) < rng.random())


@pytest.mark.parametrize("mask", LARGE, ids=range(len(LARGE)))
def test_masks_with_holes_in_holes_and_noise(mask):
    check(mask)


def test_a_hole_is_cut_in_by_a_line():
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    (polygon,) = polygons(mask)
    outside, hole = [[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    assert polygon.tolist() == [*outside, [0, 1], *hole, [0, 1]]


def test_regions_that_touch_at_a_corner_are_two():
    assert [len(polygon) for polygon in polygons(np.eye(2, dtype=bool))] == [4, 4]


def test_holes_that_hang_on_holes_a_thousand_deep():
    """Each hole's line leads to the hole beside it: no recursion may be that deep."""
    mask = np.ones((5001, 5), bool)
    mask[1::2, 2] = False
    mask[2::4, 1:3] = False
    mask[1::4, 1] = True
    for polygon in polygons(mask):
        assert np.array_equal(coco_filled(polygon, mask), mask)
