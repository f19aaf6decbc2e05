"""Pictures in, masks out: against Pillow's documented filter written again, and against PyTorch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tfanet.runtime import ImageError, image_to_tensor, load_image, logits_to_mask
from tfanet.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD

RNG = np.random.default_rng(0)


def triangle_weights(source: int, target: int) -> np.ndarray:
    """The antialiased bilinear filter in float64, (target, source)."""
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - centers[:, None]) / support
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("source", [(37, 53), (300, 200), (64, 64), (2, 1000)])
@pytest.mark.parametrize("target", [(64, 64), (96, 32)])
def test_image_to_tensor_is_the_antialiased_bilinear_filter(source, target):
    pixels = RNG.integers(0, 256, (*source, 3), dtype=np.uint8)
    got = image_to_tensor(Image.fromarray(pixels), target)
    rows, columns = (triangle_weights(s, t) for s, t in zip(source, target, strict=True))
    resized = np.einsum("hi,ijc,wj->chw", rows, pixels.astype(np.float64), columns)
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (resized / 255 - mean) / std
    assert got.dtype == np.float32 and got.shape == (3, *target) and got.flags.c_contiguous
    # Pillow rounds to 8 bits after each of its two passes: at most one level off.
    assert np.abs(got - expected).max() <= 1.0 / 255 / min(IMAGENET_STD) + 1e-6


def test_without_a_resize_every_pixel_is_exact():
    pixels = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    got = image_to_tensor(Image.fromarray(pixels), (32, 64))
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(got, (pixels.transpose(2, 0, 1) / 255 - mean) / std, atol=5e-7)


@pytest.mark.parametrize("size", [(100, 77), (32, 48), (20, 31), (333, 9)])
def test_logits_to_mask_is_pytorch_s_interpolation(size):
    logits = RNG.standard_normal((32, 48)).astype(np.float32)
    mask, resized = logits_to_mask(logits, size)
    expected = F.interpolate(
        torch.from_numpy(logits)[None, None].double(),
        size, mode="bilinear", align_corners=False, antialias=True,
    )[0, 0].numpy()  # fmt: skip
    np.testing.assert_allclose(resized, expected, atol=2e-6)
    sure = np.abs(expected) > 1e-5
    assert mask.dtype == bool and mask.shape == size
    assert np.array_equal(mask[sure], (expected > 0)[sure])


def test_threshold():
    logits = np.array([[-1.0, 0.5], [1.5, 3.0]], np.float32)
    assert logits_to_mask(logits, (2, 2), 1.0)[0].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15] = (255, 0, 0)
    upright[10:, :15] = (0, 255, 0)
    undo = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }.get(orientation, lambda a: a)  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.png")), upright)


def test_modes_become_rgb():
    grey = RNG.integers(0, 256, (5, 6), dtype=np.uint8)
    for source in (grey, Image.fromarray(grey), np.repeat(grey[:, :, None], 3, 2)):
        assert np.array_equal(np.asarray(load_image(source)), np.repeat(grey[:, :, None], 3, 2))
    sixteen = (grey.astype(np.uint16) << 8) | 77
    assert np.array_equal(np.asarray(load_image(sixteen))[:, :, 0], grey)
    buffer = io.BytesIO()
    Image.fromarray(sixteen).save(buffer, "PNG")
    assert np.array_equal(np.asarray(load_image(Image.open(buffer)))[:, :, 0], grey)
    palette = Image.fromarray(grey).convert("P")
    assert load_image(palette).mode == "RGB"


def test_transparency_is_laid_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    got = np.asarray(load_image(rgba))
    assert got[0, 0].tolist() == [10, 20, 30]
    assert got[1, 1].tolist() == [255, 255, 255]


def refused(source, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path):
    refused(tmp_path / "none.png", "none.png", "does not exist")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "not a picture")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for cut in (len(whole) // 2, len(whole) - 20):
        (tmp_path / "cut.jpg").write_bytes(whole[:cut])
        refused(tmp_path / "cut.jpg", "cut.jpg", "damaged")
    (tmp_path / "empty.jpg").write_bytes(b"")
    refused(tmp_path / "empty.jpg", "not a picture")
    refused(tmp_path, "cannot be read", "directory")


def test_one_pixel_and_twenty_thousand_pixels(tmp_path):
    refused(np.zeros((1, 1, 3), np.uint8), "1x1", "2 or more")
    # Only the header counts: a 20,000 x 20,000 picture of one colour is a small file.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    refused(tmp_path / "huge.png", "huge.png", "64,000,000", "reduce")


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2)"),
        (np.zeros((8,), np.uint8), "(8,)"),
        (17, "int"),
    ],
)
def test_other_objects(array, word):
    refused(array, word, "give")


def test_rows_are_resized_before_columns():
    """In every version of Pillow: 13 alone takes the columns of such pictures first."""
    rng = np.random.default_rng(0)
    tall = Image.fromarray(rng.integers(0, 256, (300, 20, 3), np.uint8))
    rows = tall.resize((48, 300), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image_to_tensor(tall, (32, 48)), image_to_tensor(rows, (32, 48)))
    logits = rng.standard_normal((300, 20)).astype(np.float32)
    rows = np.asarray(Image.fromarray(logits).resize((48, 300), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(
        logits_to_mask(logits, (32, 48))[1], logits_to_mask(rows, (32, 48))[1]
    )
