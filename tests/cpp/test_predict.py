"""Predictions in C equal those of Python, bit for bit."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from ctypes import byref, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from tfanet.plugins import ort_library_path
from tfanet.runtime import Predictor
from tfanet.runtime.preprocess import image_to_tensor, logits_to_mask

TEXT = "the red circle left of the star"
# (width, height): as the model's input, one side alike, thin, smaller, larger, prime.
SIZES = [(48, 32), (48, 70), (31, 32), (2, 2), (2, 300), (500, 2), (20, 11), (97, 101), (640, 480)]
pytestmark = pytest.mark.filterwarnings("ignore:the sentence has")
PILLOW_MODES = {"RGB": "RGB", "BGR": "RGB", "RGBA": "RGBA", "BGRA": "RGBA", "GREY": "L"}


def picture(size: tuple[int, int], kind: str, seed: int = 0) -> np.ndarray:
    """Random pixels in blocks, so that neighbours are alike in places."""
    width, height = size
    channels = {"GREY": (), "RGB": (3,), "BGR": (3,), "RGBA": (4,), "BGRA": (4,)}[kind]
    rng = np.random.default_rng([seed, width, height])
    fine = rng.integers(0, 256, (height, width, *channels), np.uint8)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, *channels), np.uint8)
    coarse = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.ascontiguousarray(np.where(rng.random((height, width, *channels)) < 0.5, fine, coarse))


def as_pillow(pixels: np.ndarray, kind: str) -> PillowImage.Image:
    if kind in ("BGR", "BGRA"):
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    return PillowImage.fromarray(pixels, PILLOW_MODES[kind])


def assert_equal(native: SimpleNamespace, python: Any) -> None:
    np.testing.assert_array_equal(native.logits.view(np.uint32), python.logits.view(np.uint32))
    np.testing.assert_array_equal(native.mask, python.mask * np.uint8(255))
    assert native.score == pytest.approx(python.score, abs=2e-6)


@pytest.mark.parametrize("kind", PILLOW_MODES)
def test_equal_to_python(
    kind: str, image_of: Any, open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    runtime = open_runtime(shared_bundle)
    some = 0
    for size in SIZES:
        pixels = picture(size, kind)
        native = runtime.predict(image_of(pixels, kind), TEXT)
        assert_equal(native, python(as_pillow(pixels, kind), TEXT))
        some += native.mask.any() and not native.mask.all()
    # Masks that are neither empty nor full; the model takes red minus blue, so grey is even.
    assert some > 5 or kind == "GREY"
