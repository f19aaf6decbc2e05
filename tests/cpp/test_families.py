"""Bundles of every kind that a manifest can tell of: C gives the bits of Python."""

from __future__ import annotations

import itertools
import json
import threading
import warnings
from collections.abc import Callable
from ctypes import byref, c_float, c_int64, c_void_p
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from c_library import CALLBACK, Runtime, make_image
from hand_made import (
    BOXED,
    LENGTH,
    LOGITS,
    PROBABILITIES,
    SIZE,
    WORD_PIECES,
    as_version_1,
    image_model,
    write_bundle,
)
from PIL import Image as PillowImage

from tfanet.runtime import Predictor
from tfanet.runtime.bundle.contract import Tokenization
from tfanet.runtime.preprocess import probability

TEXT = "the red circle left of"
HANGS = 3600  # seconds: a guard against waiting for ever, not a measure of anything
HALVES: dict[str, Any] = {"half": True}
OF_WORD_PIECES: dict[str, Any] = {
    "tokenizer": WORD_PIECES,
    "text": Tokenization(
        LENGTH, pad_id=0, sos_id=101, eos_id=102, tokenizer="bert-wordpiece", truncation="cut"
    ),
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "boxed": ({}, {"preprocessing": BOXED}),
    "probabilities": ({}, {"postprocessing": PROBABILITIES}),
    "boxed halves of probabilities": (
        HALVES | {"takes": ("word_features",)},
        {"preprocessing": BOXED, "postprocessing": PROBABILITIES},
    ),
    "halves above a logit": (HALVES, {"postprocessing": replace(LOGITS, threshold=-0.25)}),
    "word pieces": ({"takes": ("word_features", "word_mask")}, OF_WORD_PIECES),
    "no target": ({"no_target": True, "takes": ("word_features", "word_mask")}, {}),
    "instances": (HALVES | {"instances": 6, "no_target": True}, {}),
    "instances of word pieces": ({"instances": 6}, OF_WORD_PIECES),
    "boxed instances": ({"instances": 4, "alignment": False}, {"preprocessing": BOXED}),
}
# (width, height): as the model's input, thin, long, smaller, larger, with an odd rest.
SIZES = [(48, 32), (2, 2), (2, 300), (300, 3), (20, 11), (97, 101), (640, 479), (49, 33), (47, 32)]
# Told apart in Pillow and here: channels, and where they lie.
FORMATS = {"RGB": "RGB", "BGR": "RGB", "RGBA": "RGBA", "BGRA": "RGBA", "GREY": "L"}


def picture(size: tuple[int, int], kind: str = "RGB", seed: int = 0) -> np.ndarray:
    """Smooth random colours, so that masks have shapes."""
    rng = np.random.default_rng([seed, *size])
    channels = len(FORMATS[kind])
    small = PillowImage.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size)
    pixels = np.asarray(small, np.int64) + rng.integers(-20, 20, (size[1], size[0], 3))
    more = rng.integers(0, 256, (size[1], size[0], 1))
    pixels = np.concatenate([pixels, more], axis=2)[..., :channels].clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., 0] if kind == "GREY" else pixels)


def as_pillow(pixels: np.ndarray, kind: str = "RGB") -> PillowImage.Image:
    if kind in ("BGR", "BGRA"):
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    return PillowImage.fromarray(pixels, FORMATS[kind])


def assert_equal(native: SimpleNamespace, python: Any) -> None:
    np.testing.assert_array_equal(native.logits.view(np.uint32), python.logits.view(np.uint32))
    np.testing.assert_array_equal(native.mask, python.mask * np.uint8(255))
    assert native.score == pytest.approx(python.score, abs=2e-6)
    assert native.no_target == python.no_target
    assert (native.instances is None) == (python.instances is None)
    for ours, theirs in zip(native.instances or (), python.instances or (), strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask * np.uint8(255))
        assert ours.relevance == theirs.relevance
        assert (ours.alignment is None) == (theirs.alignment is None)
        if ours.alignment is not None:
            np.testing.assert_array_equal(ours.alignment, theirs.alignment)
        assert ours.words == (theirs.words and list(theirs.words))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        kind: write_bundle(folder / kind, image_model(**graph), **facts)
        for kind, (graph, facts) in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_python(kind: str, bundles: dict[str, Path], open_runtime: Callable) -> None:
    runtime, python = open_runtime(bundles[kind]), Predictor(bundles[kind], threads=1)
    for sentence in (TEXT, "a", "Café, the umbrella's left one of the two"):
        ids, mask, _ = runtime.tokenize(sentence.encode())
        with warnings.catch_warnings(action="ignore"):
            np.testing.assert_array_equal([ids, mask], [v[0] for v in python.tokenize(sentence)])
    some, told, counts = 0, set(), set()
    for number, size in enumerate(SIZES):
        form = list(FORMATS)[number % len(FORMATS)]
        pixels = picture(size, form)
        native = runtime.predict(make_image(pixels, form), TEXT)
        assert_equal(native, python(as_pillow(pixels, form), TEXT))
        some += native.mask.any() and not native.mask.all()
        told.add(native.no_target is not None and native.no_target > 0.5)
        counts.add(len(native.instances or ()))
    assert some > 1
    assert "target" not in kind or told == {True, False}
    assert "instances" not in kind or len(counts) > 1
    info = runtime.info()
    half = KINDS[kind][0].get("half", False)
    assert (info.logits_height, info.logits_width) == tuple(n // (1 + half) for n in SIZE)
    assert info.family == b"tfanet"
    expected = python.bundle.manifest.postprocessing.logit_threshold
    assert info.threshold == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["instances", "instances of word pieces"])
@pytest.mark.filterwarnings("ignore:the sentence has")
def test_words_of_instances(kind: str, bundles: dict[str, Path], open_runtime: Callable) -> None:
    """As long as the sentence is, cut within a word too, and whatever its characters are."""
    runtime, python = open_runtime(bundles[kind]), Predictor(bundles[kind], threads=1)
    pixels, seen = picture((48, 32)), set()
    for text in (
        "A", "Café unbelievably", "a red umbrella unbelievably", "the one of the two on it, left",
        "🙂x 犬 x\0y", "y" * 101, "<|endoftext|> [SEP]", "\x1b[1mred",
    ):  # fmt: skip
        native, expected = runtime.encode(text), python(as_pillow(pixels), text)
        found = runtime.predict(make_image(pixels, "RGB"), native)
        runtime.api.sentence_free(native)
        assert_equal(found, expected)
        for one in found.instances:
            assert sum(share for _, share in one.words) <= 1 + 1e-6
            seen.add(tuple(word for word, _ in one.words))
    bert = kind != "instances"
    assert ("cafe" if bert else "café", "unbelievably") in seen
    assert ("y" * 101,) in seen
    ids = (c_int64 * LENGTH)(*runtime.tokenize(b"a red dog")[0])
    mask, tokens = (c_float * LENGTH)(*[1.0] * LENGTH), c_void_p()
    runtime.check(runtime.api.encode_tokens(runtime.handle, ids, mask, LENGTH, byref(tokens)))
    found = runtime.predict(make_image(pixels, "RGB"), tokens)
    runtime.api.sentence_free(tokens)
    assert [one.words for one in found.instances] == [None] * len(found.instances)
    assert found.instances and all(one.alignment.any() for one in found.instances)


def test_equally_relevant_instances_keep_their_order(
    bundles: dict[str, Path], open_runtime: Callable
) -> None:
    runtime, seen = open_runtime(bundles["instances"]), 0
    for seed in range(20):
        found = runtime.predict(make_image(picture((40, 30), seed=seed), "RGB"), TEXT).instances
        relevances = [one.relevance for one in found]
        assert relevances == sorted(relevances, reverse=True)
        for first, second in itertools.pairwise(found):
            if first.relevance == second.relevance:  # the last two: the later has sharper shares
                assert first.alignment.max() < second.alignment.max()
                seen += 1
    assert seen > 0


@pytest.mark.parametrize("number", range(40))
def test_boxed_pictures_of_random_sizes(
    number: int, bundles: dict[str, Path], open_runtime: Callable
) -> None:
    """In Python's bits, with gaps between the rows; also where a side is one pixel in the box."""
    runtime = open_runtime(bundles["boxed"])
    rng = np.random.default_rng(number)
    sizes = [(2, 2), (2, 5000), (5000, 2), (10_000, 50), (24, 16), (96, 64), (48, 33), (5, 3)]
    drawn = [int(side) for side in np.exp(rng.uniform(np.log(2), np.log(700), 2))]
    size = sizes[number] if number < len(sizes) else (drawn[0], drawn[1])
    form = list(FORMATS)[number % len(FORMATS)]
    rows = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), np.uint8)
    pixels = np.ascontiguousarray(rows[..., 0] if form == "GREY" else rows[..., : len(form)])
    expected = Predictor(bundles["boxed"], threads=1).preprocess(as_pillow(pixels, form))[0]
    row, gap = pixels[0].size, number % 3
    room = np.full((size[1], row + gap), 99, np.uint8)
    room[:, :row] = pixels.reshape(size[1], row)
    image = make_image(pixels, form, row + gap)
    image.pixels = room.ctypes.data
    np.testing.assert_array_equal(runtime.preprocess(image), expected)


def test_a_threshold_that_is_a_pixel_s_probability(
    open_runtime: Callable, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """It is not above itself, and the next float below is not above it: to the last bit."""
    pixels = picture((48, 32))
    plane = open_runtime(bundles["probabilities"]).predict(make_image(pixels, "RGB"), TEXT).logits
    likely = probability(plane)
    for number, at in enumerate(np.linspace(0, plane.size - 1, 12).astype(int)):
        threshold = likely.flat[at]
        if number % 2:
            threshold = np.nextafter(threshold, np.float32(0))
        post = replace(PROBABILITIES, threshold=float(threshold))
        bundle = write_bundle(tmp_path / str(number), image_model(), postprocessing=post)
        native = open_runtime(bundle).predict(make_image(pixels, "RGB"), TEXT)
        np.testing.assert_array_equal(native.mask, (likely > threshold) * np.uint8(255))
        assert native.mask.flat[at] == (255 if number % 2 else 0)


@pytest.mark.parametrize("kind", ["instances", "boxed halves of probabilities"])
def test_batches(kind: str, bundles: dict[str, Path], open_runtime: Callable) -> None:
    runtime, python = open_runtime(bundles[kind]), Predictor(bundles[kind], threads=1)
    texts = ["red", "a blue dog", "the left one", "2", "it's there", "seven"]
    sentences = [runtime.encode(text) for text in texts]
    handles = (c_void_p * len(texts))(*(sentence.value for sentence in sentences))
    pixels = picture((60, 41))
    image, out = make_image(pixels, "RGB"), (c_void_p * len(texts))()
    runtime.check(
        runtime.api.predict_batch(runtime.handle, byref(image), 1, handles, len(texts), out)
    )
    for one, expected in zip(out, python(as_pillow(pixels), texts), strict=True):
        assert_equal(runtime.take(one), expected)
    height, width = (n // 2 for n in SIZE)
    tensors = np.stack([runtime.preprocess(image)] * 3)
    logits = np.zeros((3, 1, height, width), np.float32)
    arguments = (runtime.handle, tensors.ctypes.data, handles, 3, logits.ctypes.data)
    runtime.check(runtime.api.predict_tensors(*arguments, logits.size))
    for row, text in enumerate(texts[:3]):
        alone = python.predict_tensors(tensors[:1], python.encode_text(text))[0]
        np.testing.assert_allclose(logits[row], alone, rtol=1e-6, atol=1e-6)
    assert runtime.api.predict_tensors(*arguments, 4 * logits.size) == -1
    for sentence in sentences:
        runtime.api.sentence_free(sentence)


def test_callbacks_and_threads(bundles: dict[str, Path], open_runtime: Callable) -> None:
    runtime: Runtime = open_runtime(bundles["instances"], cache=1)
    texts, images = ["red", "a blue dog"], [picture((50, 40), seed=i) for i in range(3)]
    expected = {
        (i, text): runtime.predict(make_image(one, "RGB"), text)
        for i, one in enumerate(images)
        for text in texts
    }
    done, got = threading.Event(), []

    def take(user: int, status: int, prediction: int, message: bytes) -> None:
        got.append((user, status, runtime.take(prediction)))
        if len(got) == len(images):
            done.set()

    callback, sentence = CALLBACK(take), runtime.encode(texts[0])
    for number, one in enumerate(images, start=1):
        image = make_image(one, "RGB")
        runtime.check(
            runtime.api.predict_async(runtime.handle, byref(image), sentence, callback, number)
        )
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for (i, text), known in expected.items():
                found = runtime.predict(make_image(images[i], "RGB"), text)
                np.testing.assert_array_equal(found.mask, known.mask)
                for ours, theirs in zip(found.instances, known.instances, strict=True):
                    np.testing.assert_array_equal(ours.mask, theirs.mask)
        except BaseException as error:  # which is raised again below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert done.wait(HANGS)
    for user, status, found in got:
        assert status == 0
        np.testing.assert_array_equal(found.mask, expected[user - 1, texts[0]].mask)
        assert len(found.instances) == len(expected[user - 1, texts[0]].instances)
    runtime.api.sentence_free(sentence)


def test_a_sentence_of_another_bundle(
    bundles: dict[str, Path], long_bundle: Path, open_runtime: Callable
) -> None:
    runtime, other = open_runtime(bundles["boxed"]), open_runtime(long_bundle)
    sentence = other.encode(TEXT)
    with pytest.raises(Exception, match="comes from another bundle, whose 'word_features'") as why:
        runtime.predict(make_image(picture((20, 20)), "RGB"), sentence)
    assert why.value.status == "INVALID_ARGUMENT"
    runtime.api.sentence_free(sentence)


def test_version_1_gives_the_same_mask(tmp_path: Path, open_runtime: Callable) -> None:
    bundle = write_bundle(
        tmp_path / "bundle", image_model(), postprocessing=replace(LOGITS, threshold=0.125)
    )
    pixels = picture((97, 101))
    newest = open_runtime(bundle).predict(make_image(pixels, "RGB"), TEXT)
    path = bundle / "manifest.json"
    path.write_text(json.dumps(as_version_1(json.loads(path.read_text()))))
    runtime, python = open_runtime(bundle), Predictor(bundle, threads=1)
    assert runtime.info().family == b"tfanet"
    assert python.info()["family"] == "tfanet"
    assert runtime.info().text_length == LENGTH
    native = runtime.predict(make_image(pixels, "RGB"), TEXT)
    np.testing.assert_array_equal(native.mask, newest.mask)
    assert native.mask.any()
    assert_equal(native, python(as_pillow(pixels), TEXT))
