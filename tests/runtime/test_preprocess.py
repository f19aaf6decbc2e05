"""Pictures in, masks out: against Pillow's documented filter written again, and against PyTorch."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch.nn import functional as F

from tfanet.runtime import ImageError, image_to_tensor, load_image, logits_to_mask
from tfanet.runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD, check_resize

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
    rgba = np.zeros((5, 6, 4), np.uint8)
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


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("opened_by", ["path", "Pillow"])
def test_a_picture_starts_no_program(tmp_path, monkeypatch, opened_by):
    """Pillow runs Ghostscript on a file that begins with %!PS, whatever its name."""
    marker, program = tmp_path / "started", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "holiday.jpg"
    path.write_bytes(POSTSCRIPT)
    if opened_by == "path":
        refused(path, "holiday.jpg", "not a picture", "JPEG, PNG")
    else:
        with Image.open(path) as image:
            refused(image, "EPS", "image.convert('RGB')")
    assert not marker.exists()
    with Image.open(path) as image, contextlib.suppress(Exception):
        image.load()
    assert marker.exists()  # so that the test would have seen it


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO"])
def test_formats_are_told_by_content(tmp_path, form):
    pixels = Image.fromarray(RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    more = {"save_all": True, "append_images": [pixels]} if form == "MPO" else {}
    pixels.save(tmp_path / "picture.xyz", form, **more)
    expected = np.asarray(Image.open(tmp_path / "picture.xyz").convert("RGB"))
    for source in (tmp_path / "picture.xyz", Image.open(tmp_path / "picture.xyz")):
        assert np.array_equal(np.asarray(load_image(source)), expected)


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "SGI", "PDF"])
def test_other_formats_are_refused_and_an_owner_may_convert(tmp_path, form):
    pixels = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels.save(tmp_path / "picture.jpg", form)
    refused(tmp_path / "picture.jpg", "not a picture of a kind that is read here", "save it as")
    if form != "PDF":
        with Image.open(tmp_path / "picture.jpg") as image:
            refused(image, form, "convert")
            assert load_image(image.convert("RGB")).size == (32, 32)


def peak_of(code: str) -> int:
    """The largest memory of a process that runs the code, in bytes, over one that only imports."""
    lines = "import numpy as np; from PIL import Image; from tfanet.runtime import *\n{}\n"
    lines += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", lines.format(body)]))
        for body in (code, "")
    ]
    return 1024 * (peaks[0] - peaks[1])


@pytest.mark.parametrize("size", [(2, 32_000_000), (32_000_000, 2), (2, 65_536), (65_536, 2)])
def test_no_side_is_longer_than_a_jpeg_s(tmp_path, size):
    Image.new("1", size).save(tmp_path / "long.png")
    refused(tmp_path / "long.png", f"{size[0]}x{size[1]} pixels", "at most 65,535", "reduce it")
    with pytest.raises(ImageError, match="at most 65,535"):
        load_image(np.zeros((size[1], size[0]), np.uint8))


@pytest.mark.parametrize("size", [(2, 65_535), (65_535, 2), (65_535, 976)])
def test_the_longest_pictures_take_little_memory(tmp_path, size):
    """At 480x480: the picture twice, and its rows or its mask's."""
    Image.new("RGB", size).save(tmp_path / "long.png")
    code = (
        f"image = load_image({str(tmp_path / 'long.png')!r})\n"
        "image_to_tensor(image, (480, 480))\n"
        "logits_to_mask(np.zeros((480, 480), np.float32), image.size[::-1])"
    )
    assert peak_of(code) < 600 << 20


@pytest.mark.parametrize(("size", "model"), [((2, 32_768), (8, 8192)), ((32_768, 2), (8192, 8))])
def test_what_lies_between_the_steps_is_bounded(size, model):
    check_resize(size[::-1], model)  # exactly 1 GiB
    image = Image.new("RGB", (size[0] + 1, size[1] + 1))
    with pytest.raises(ImageError) as caught:
        image_to_tensor(image, model)
    words = f"{size[0] + 1}x{size[1] + 1} pixels, too long for a model of {model[1]}x{model[0]}: "
    words += "resizing it would take 1,073,774,592 bytes, the limit is 1,073,741,824: reduce"
    assert words in str(caught.value)


def tiled_tiff(tile: int) -> bytes:
    """64x64 pixels in one tile of `tile` x `tile`, all black."""
    data = zlib.compress(bytes(tile * tile))
    entries = [
        (256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1),
        (322, tile), (323, tile), (324, 8), (325, len(data)),
    ]  # fmt: skip
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    count = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + fields + bytes(4)


def test_tiles_are_bounded_as_pictures_are(tmp_path):
    (tmp_path / "small.tif").write_bytes(tiled_tiff(64))
    assert load_image(tmp_path / "small.tif").size == (64, 64)
    (tmp_path / "large.tif").write_bytes(tiled_tiff(9000))
    refused(tmp_path / "large.tif", "large.tif", "tiles of 9000x9000", "64,000,000")


def test_sixteen_bits_of_all_kinds():
    """The upper 8 bits; Pillow's 32-bit "I" holds 16 of them, and clips the rest."""
    values = np.array([[0, 255, 256, 65_535], [-5, 65_536, 1 << 30, 0x1234]], np.int32)
    got = np.asarray(load_image(Image.fromarray(values)))[:, :, 0]
    assert got.tolist() == [[0, 0, 1, 255], [0, 255, 255, 0x12]]
    for dtype in ("<u2", ">u2"):
        part = values[:1].astype(dtype)
        mode = "I;16" if dtype == "<u2" else "I;16B"
        image = Image.frombytes(mode, (4, 1), part.tobytes()).resize((4, 2))
        assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_one_pixel_and_twenty_thousand_pixels(tmp_path):
    refused(np.zeros((1, 1, 3), np.uint8), "1x1", "2 or more")
    # Only the header counts: a 20,000 x 20,000 picture of one colour is a small file.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    refused(tmp_path / "huge.png", "huge.png", "64,000,000", "reduce")


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((8, 8, 3), np.int64), "int64"),
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
