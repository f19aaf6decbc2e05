"""Masks and overlays as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfanet.runtime import ImageError
from tfanet.runtime.overlay import OUTLINE, save_mask, save_overlay


def test_a_mask_is_white_on_black(tmp_path):
    mask = np.random.default_rng(0).random((20, 31)) > 0.5
    save_mask(mask, tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), np.where(mask, 255, 0))


def test_an_overlay_leaves_the_object_and_darkens_the_rest(tmp_path):
    pixels = np.random.default_rng(1).integers(60, 256, (40, 50, 3), dtype=np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 15:30] = True
    save_overlay(Image.fromarray(pixels), mask, tmp_path / "overlay.png")
    result = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert np.array_equal(result[mask], pixels[mask])
    border = np.zeros_like(mask)
    border[9:21, 14:31] = True
    border &= ~mask
    assert (result[border] == OUTLINE).all()
    outside = ~mask & ~border
    assert (result[outside] < 0.4 * pixels[outside]).all()


def test_an_empty_mask_has_no_outline(tmp_path):
    picture = Image.new("RGB", (9, 7), (200, 100, 50))
    save_overlay(picture, np.zeros((7, 9), bool), tmp_path / "overlay.png")
    assert (
        len(np.unique(np.asarray(Image.open(tmp_path / "overlay.png")).reshape(-1, 3), axis=0)) == 1
    )


@pytest.mark.parametrize(
    "name", ["mask", "mask.doc", "none/mask.png", "\0.png", "x" * 300 + ".png"]
)
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, name):
    with pytest.raises(ImageError, match=r"cannot be written .*: name a \.png file") as caught:
        save_mask(np.zeros((7, 9), bool), tmp_path / name)
    assert "\n" not in str(caught.value)
