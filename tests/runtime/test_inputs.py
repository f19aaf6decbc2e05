"""Whatever a user holds a picture in goes in: files, bytes, arrays and tensors, one or many."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfanet import Predictor
from tfanet.errors import InputError
from tfanet.runtime import ImageError, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
GREY = PIXELS[:, :, 0]
RGBA = np.dstack([PIXELS, np.full((20, 30), 255, np.uint8)])
ROOT = Path(__file__).resolve().parents[2]


def png(pixels: np.ndarray = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def refused(source: object, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


class Unseekable(io.RawIOBase):
    """What a socket or a pipe gives."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.content.readinto(buffer)


def test_bytes_and_open_files(tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    for source in (png(), bytearray(png()), io.BytesIO(png()), Unseekable(png())):
        assert np.array_equal(load_image(source), PIXELS)
    with open(tmp_path / "p.png", "rb") as file:
        assert np.array_equal(load_image(file), PIXELS) and not file.closed


def test_corrupted_uploads(tmp_path):
    refused(b"", "has no bytes")
    refused(b"hello", "not a picture of a kind")
    whole = png()
    for cut in (whole[: len(whole) // 2], whole[:40], io.BytesIO(whole[: len(whole) // 2])):
        refused(cut, "the image")
    (tmp_path / "p.png").write_bytes(whole)
    with open(tmp_path / "p.png", encoding="latin-1") as file:
        refused(file, "p.png gives str", "open(path, 'rb')")
    with open(tmp_path / "p.png", "rb") as file:
        file.close()
        refused(file, "p.png cannot be read", "closed file")


@pytest.mark.parametrize(
    "form", [PIXELS, GREY, GREY[:, :, None], RGBA], ids=["rgb", "grey", "one", "a"]
)
def test_arrays_of_all_layouts_and_types(form):
    expected = np.asarray(load_image(Image.fromarray(form.squeeze())))
    assert np.array_equal(load_image(form), expected)
    forms = [form] if form.ndim == 2 else [form, form.transpose(2, 0, 1)]
    for one in forms:
        assert np.array_equal(load_image(one), expected)
        for dtype in (np.float16, np.float32, np.float64):
            assert np.array_equal(load_image((one / 255).astype(dtype)), expected)
        assert np.array_equal(load_image((one.astype(np.uint16) << 8) | 9), expected)


@pytest.mark.parametrize("shape", [(3, 20, 3), (4, 4, 4), (3, 7, 4)])
def test_a_shape_of_two_readings_is_refused(shape):
    refused(np.zeros(shape, np.uint8), str(shape), "as (H, W, C) and as (C, H, W)", "Image.from")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((5, 6, 3), -0.1), "floats from -0.1 to -0.1: give 0 to 1"),
        (np.full((5, 6, 3), 255.0), "floats from 255 to 255"),
        (np.full((5, 6, 3), np.nan), "floats from nan to nan"),
        (np.zeros((5, 6, 3), np.int64), "int64: give uint8"),
        (np.zeros((5, 6), bool), "bool: give uint8"),
        (np.zeros((5, 6), complex), "complex128"),
        (np.zeros((2, 5, 6, 3), np.uint8), "several pictures go into a list"),
        (np.zeros((5, 6, 2), np.uint8), "(5, 6, 2): give (H, W), (H, W, C) or (C, H, W)"),
        (np.zeros((3, 0, 6), np.uint8), "(3, 0, 6)"),
        (np.zeros((3, 0, 3), np.uint8), "each side must be 2 or more"),
    ],
)
def test_arrays_that_are_no_pictures(array, words):
    refused(array, words)


class OnDevice:
    """An array of a library that is not NumPy, in the memory of device type `kind`."""

    def __init__(self, array: np.ndarray, kind: int = 1) -> None:
        self.array, self.kind = array, kind

    def __dlpack__(self, **options):
        if self.kind != 1:
            raise BufferError("these bytes are a GPU's")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


class TorchLike(OnDevice):
    def detach(self) -> TorchLike:
        return self

    def cpu(self) -> TorchLike:
        return TorchLike(self.array)


class CupyLike(OnDevice):
    def get(self) -> np.ndarray:
        return self.array


def test_tensors_with_dlpack_from_the_cpu_and_a_gpu():
    planes = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    for source in (OnDevice(planes), TorchLike(planes, 2), CupyLike(PIXELS, 2)):
        assert np.array_equal(load_image(source), PIXELS)
    refused(OnDevice(PIXELS, 2), "OnDevice", "cannot be taken over", "convert it to a NumPy array")


@pytest.mark.full
def test_tensors_of_torch():
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(PIXELS.transpose(2, 0, 1)))
    floats = (planes / 255).requires_grad_()
    for source in (planes, planes.permute(1, 2, 0), floats, floats.half()):
        assert np.array_equal(load_image(source), PIXELS)
    refused(planes.to(torch.bfloat16), "torch Tensor", "convert it to a NumPy array")


def test_many_pictures_and_many_sentences(shared_bundle, monkeypatch):
    predictor = Predictor(shared_bundle)
    pictures = [np.roll(PIXELS, by, 1) for by in range(5)]
    kept = predictor.encode_text("big")
    texts = ["the red one", kept, "left"]
    runs, loads, encoded = [], [], []
    run, encode = predictor._running.run, predictor._running.encode
    monkeypatch.setattr(
        predictor._running, "run", lambda images, text: runs.append(len(text)) or run(images, text)
    )
    monkeypatch.setattr(
        predictor._running, "encode", lambda text: encoded.append(text) or encode(text)
    )
    monkeypatch.setattr(
        "tfanet.runtime.answers.load_image", lambda one: loads.append(one) or load_image(one)
    )
    found = predictor(pictures, texts)
    assert runs == [4, 4, 4, 3] and len(loads) == 5 and encoded == ["the red one", "left"]
    assert [len(of_picture) for of_picture in found] == [3] * 5
    for (row, picture), (column, text) in product(enumerate(pictures), enumerate(texts)):
        alone = predictor(picture, text)
        np.testing.assert_allclose(found[row][column].logits, alone.logits, rtol=1e-5, atol=1e-6)
        assert found[row][column].text == alone.text
        assert np.array_equal(found[row][column].image, picture)
    assert [one.text for one in predictor(tuple(pictures), "left")] == ["left"] * 5
    assert [one.text for one in predictor(PIXELS, ("left", kept))] == ["left", "big"]
    assert predictor([PIXELS], ["left"])[0][0] == predictor(PIXELS, "left")


def test_a_list_of_pictures_names_the_one_that_is_wrong(shared_bundle, tmp_path):
    predictor = Predictor(shared_bundle)
    with pytest.raises(ImageError, match=r"picture 1: .*none\.png does not exist"):
        predictor([PIXELS, tmp_path / "none.png", PIXELS], "red")
    with pytest.raises(InputError, match="list of pictures is empty"):
        predictor([], "red")
    with pytest.raises(InputError, match="list of sentences is empty"):
        predictor([PIXELS], [])


TYPES = """
from pathlib import Path
from typing import BinaryIO
import numpy as np
import torch
from PIL import Image
from tfanet import Predictor
from tfanet.runtime import Prediction, Sentence

def check(
    p: Predictor, path: Path, array: np.ndarray, image: Image.Image, file: BinaryIO,
    sentence: Sentence, tensor: torch.Tensor, paths: list[Path], texts: list[str],
) -> None:
    one: Prediction = p(path, "a")
    one = p("p.png", sentence)
    for made in (p(array, "a"), p(image, "a"), p(b"", "a"), p(file, "a"), p(tensor, "a")):
        one = made
    row: list[Prediction] = p(array, texts)
    row = p(array, ("a", sentence))
    row = p(array, ["a", sentence])
    row = p(paths, "a")
    row = p((path, array, "p.png"), sentence)
    table: list[list[Prediction]] = p(paths, texts)
    table = p([path, image], ("a", sentence), threshold=0.5)
    for one in p.stream("v.mp4", "a"):
        pass
    for row in p.stream((array for _ in range(3)), texts):
        pass
    with p as same:
        one = same(path, "a")
    box: tuple[int, int, int, int] | None = one.box
"""
WRONG = [
    "p(3, 'a')",
    "p('x.png', 3)",
    "p({'a'}, 'a')",
    "p('x.png', 'a').masks",
    "p(['x'], 'a').box",
]


@pytest.mark.full
def test_type_checkers_take_lists_and_tuples_and_refuse_the_rest(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(TYPES)
    lines = [f"    {line}" for line in WRONG]
    head = "from tfanet import Predictor\ndef check(p: Predictor) -> None:"
    (tmp_path / "wrong.py").write_text("\n".join([head, *lines]))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", "right.py", "wrong.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not [line for line in told if line.startswith("right.py")], done.stdout
    assert {line.split(":")[1] for line in told} == {"3", "4", "5", "6", "7"}, done.stdout
