"""Pictures in a box: against fractions, against OpenCV's results, and the way back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfanet.runtime.letterbox import Letterbox, letterbox
from tfanet.runtime.resize import resize_area, resize_bilinear

PADDING = (124, 116, 104)
# What OpenCV 4.14 makes of `noise`: resize with INTER_AREA, copyMakeBorder with 123.7, 116.3, 103.5
# and the borders of the official ASDA code.
OPENCV = np.load(Path(__file__).parent / "golden" / "letterbox_opencv.npz")
RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)


def overlaps(n: int, m: int) -> list[list[Fraction]]:
    """How much of each of n old pixels lies in each of m new ones, as a part of the new one."""
    step = Fraction(n, m)
    return [
        [max(Fraction(0), min((i + 1) * step, j + 1) - max(i * step, j)) / step for j in range(n)]
        for i in range(m)
    ]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.tuples(st.integers(1, 16), st.integers(1, 16))] * 2), st.integers(0, 2**32))
def test_the_area_average_is_exact(sides, seed):
    (height, new_height), (width, new_width) = (sorted(pair, reverse=True) for pair in sides)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = (
        np.array(overlaps(n, m), object) for n, m in ((height, new_height), (width, new_width))
    )
    by_rows = np.tensordot(rows, pixels.astype(object), (1, 0))  # (H, W_old, 3)
    exact = np.tensordot(by_rows, columns, (1, 1)).transpose(0, 2, 1)
    expected = np.vectorize(lambda value: (2 * value + 1) // 2, otypes=[np.uint8])(exact)
    assert (resize_area(Image.fromarray(pixels), (new_height, new_width)) == expected).all()


def test_a_picture_of_several_bands_is_averaged_as_one():
    pixels = np.repeat(RNG.integers(0, 256, (1500, 2, 3), dtype=np.uint8), 800, axis=1)
    wide = resize_area(Image.fromarray(pixels), (417, 2))
    narrow = resize_area(Image.fromarray(np.ascontiguousarray(pixels[:, ::800])), (417, 2))
    assert pixels.nbytes > 7_000_000 and (wide == narrow).all()


@pytest.mark.parametrize("name", OPENCV.files)
def test_reducing_is_opencv_s_area_average_but_for_rounding(name):
    expected = OPENCV[name]
    got = letterbox(Image.fromarray(noise(*map(int, name.split("x")))), expected.shape[:2], PADDING)
    away = np.abs(got.astype(int) - expected)
    assert away.max() <= 1 and (away > 0).mean() < 0.01


@pytest.mark.parametrize("side", [64, 416])
def test_the_place_is_that_of_the_official_code(side):
    for height, width in RNG.integers(2, 900, (500, 2)).tolist():
        ratio = float(side) / max(height, width)
        rows, columns = max(1, round(height * ratio)), max(1, round(width * ratio))
        place = Letterbox.of((height, width), (side, side))
        assert place.resized == (rows, columns)
        top, left, bottom, right = place.crop
        assert top == round((side - rows) / 2 - 0.1) == int((side - rows) / 2)
        assert left == round((side - columns) / 2 - 0.1) == int((side - columns) / 2)
        assert bottom - top == max(1, int(np.float32(height) * np.float32(ratio)))
        assert right - left == max(1, int(np.float32(width) * np.float32(ratio)))
        assert bottom <= side and right <= side


def test_the_box_need_not_be_square():
    place = Letterbox.of((100, 400), (48, 96))
    assert place == Letterbox((100, 400), (48, 96), (24, 96), (12, 0, 36, 96))


def test_what_is_cut_out_may_be_a_row_less_than_what_was_put_in():
    """480 x 333 pixels: 333 * 416 / 480 is 288.6; the picture takes 289 columns, 288 come back."""
    place = Letterbox.of((480, 333), (416, 416))
    assert place.resized == (416, 289) and place.crop == (0, 63, 416, 351)


def test_a_picture_of_the_size_is_itself():
    pixels = noise(32, 20)
    box = letterbox(Image.fromarray(pixels), (32, 32), PADDING)
    assert (box[:, 6:26] == pixels).all()
    assert (box[:, :6] == PADDING).all() and (box[:, 26:] == PADDING).all()


def test_enlarging_is_pillow_s_bilinear_filter():
    image = Image.fromarray(noise(10, 31))
    box = letterbox(image, (64, 64), PADDING)
    assert (box[21:42] == np.asarray(resize_bilinear(image, (21, 64)))).all()
    assert (box[:21] == PADDING).all() and (box[42:] == PADDING).all()


@pytest.mark.parametrize(
    ("size", "resized"),
    [((2, 2), (416, 416)), ((50, 10_000), (2, 416)), ((65_535, 2), (416, 1)), ((2, 3), (277, 416))],
)
def test_extreme_pictures(size, resized):
    image = Image.new("RGB", (size[1], size[0]), (7, 200, 30))
    box = letterbox(image, (416, 416), PADDING)
    place = Letterbox.of(size, (416, 416))
    top, left, bottom, right = place.crop
    assert place.resized == resized
    assert bottom > top and right > left
    assert (box[top:bottom, left:right] == (7, 200, 30)).all()
    assert (box == PADDING).all(2).sum() == 416 * 416 - resized[0] * resized[1]
