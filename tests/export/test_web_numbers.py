"""The browser page's JavaScript against the runtime in Python: tokens, pixels, masks, messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from javascript import call_page
from PIL import Image
from sentences import texts
from tokenizers import Tokenizer

import tfanet
from tfanet.errors import InputError
from tfanet.runtime import TextTokenizer, load_image
from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing
from tfanet.runtime.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    picture_to_tensor,
    plane_to_mask,
    probability,
)

ASSETS = Path(tfanet.__file__).parent / "assets"
FILES = {
    "clip-bpe": ASSETS / "clip_tokenizer.json",
    "bert-wordpiece": ASSETS / "bert_tokenizer.json",
}
STRETCHED = Preprocessing((24, 33), IMAGENET_MEAN, IMAGENET_STD)
BOXED = replace(STRETCHED, resize="letterbox-area", padding=(123, 116, 103))
LOGITS, PROBABILITIES = Postprocessing("logit", 0.25), Postprocessing("probability", 0.35)


def tokenization(kind: str, length: int, truncation: str) -> tuple[TextTokenizer, dict[str, Any]]:
    python = TextTokenizer(FILES[kind], length, kind=kind, truncation=truncation)
    facts = {name: getattr(python, name) for name in ("length", "sos_id", "eos_id", "pad_id")}
    return python, {**facts, "tokenizer": kind, "truncation": truncation}


@pytest.mark.parametrize("kind", FILES)
def test_tokens_of_2000_texts_are_those_of_tokenizers(kind):
    corpus = list(texts(2000, seed=15))
    reference = Tokenizer.from_file(str(FILES[kind]))
    reference.encode_special_tokens = kind == "bert-wordpiece"
    _, facts = tokenization(kind, 20, "cut")
    found = call_page("tokens", path=str(FILES[kind]), text=facts, texts=corpus)
    expected = reference.encode_batch_fast(corpus, add_special_tokens=False)
    for text, ids, right in zip(corpus, found, expected, strict=True):
        assert ids == right.ids, repr(text)


@pytest.mark.filterwarnings("ignore:the sentence has")
@pytest.mark.parametrize(
    ("kind", "length", "truncation"),
    [("clip-bpe", 9, "keep-end"), ("clip-bpe", 6, "cut"), ("bert-wordpiece", 8, "cut")],
)
def test_sentences_are_cut_padded_and_refused_as_in_python(kind, length, truncation):
    bad = ["", " \t\u3000\x85", "\u0301", "\u200b\x07", "é" * 2049, "a\ud800b", "\udfff"]
    corpus = [*bad, "a big dog", *texts(60, seed=7)]
    python, facts = tokenization(kind, length, truncation)

    def expected() -> Iterator[dict[str, Any]]:
        for text in corpus:
            try:
                ids, mask = python(text)
            except InputError as error:
                yield {"error": str(error)}
            else:
                yield {"ids": ids[0].tolist(), "mask": mask[0].tolist()}

    found = call_page("encode", path=str(FILES[kind]), text=facts, texts=corpus)
    dropped = [one.pop("dropped", 0) for one in found]
    assert found == list(expected())
    assert any(dropped) and not all(dropped)
    assert sum("error" in one for one in found) > 4


def browser_picture(array: np.ndarray, band: int) -> dict[str, Any]:
    """An RGB array (H, W, 3) as a canvas gives it, `band` rows at a time."""
    height, width, _ = array.shape
    opaque = np.dstack([array, np.full((height, width), 255, np.uint8)])
    return {"width": width, "height": height, "pixels": opaque.ravel().tolist(), "band": band}


@pytest.mark.parametrize("facts", [STRETCHED, BOXED], ids=["stretched", "boxed"])
def test_pictures_become_the_tensors_of_python(facts):
    rng = np.random.default_rng(4)
    sizes = [
        (24, 33),
        (24, 70),
        (90, 33),
        (7, 5),
        (2, 300),
        (300, 2),
        (61, 83),
        (12, 200),
        (48, 66),
    ]
    sizes += [tuple(map(int, rng.integers(2, 130, 2))) for _ in range(8)]
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    pictures += [np.full((31, 47, 3), 255, np.uint8), np.zeros((50, 9, 3), np.uint8)]
    given = [browser_picture(one, int(rng.integers(1, 40))) for one in pictures]
    found = call_page("tensors", pictures=given, facts=asdict(facts))
    for picture, values in zip(pictures, found, strict=True):
        expected = picture_to_tensor(Image.fromarray(picture), facts)
        np.testing.assert_array_equal(np.float32(values), expected.ravel(), str(picture.shape))


def test_pictures_that_cannot_be_used_are_refused_in_the_words_of_python():
    tall = replace(STRETCHED, size=(4, 5000))
    shapes = [(1, 40), (60_000, 2)]

    def expected(size: tuple[int, int]) -> str:
        with pytest.raises(InputError) as caught:
            picture_to_tensor(load_image(Image.new("RGB", size[::-1])), tall)
        return str(caught.value)

    given = [{"width": w, "height": h, "pixels": [], "band": 1} for h, w in shapes]
    found = call_page("tensors", pictures=given, facts=asdict(tall))
    assert [one["error"] for one in found] == [expected(size) for size in shapes]


@pytest.mark.parametrize("pre", [STRETCHED, BOXED], ids=["stretched", "boxed"])
@pytest.mark.parametrize("post", [LOGITS, PROBABILITIES], ids=["logits", "probabilities"])
def test_logits_become_the_masks_of_python(pre, post):
    rng = np.random.default_rng(5)
    cases, expected = [], []
    for size in [(24, 33), (50, 70), (13, 200), (97, 11), (9, 9), (2, 160)]:
        for shape in [(24, 33), (12, 16)]:
            logits = rng.standard_normal(shape).astype(np.float32) * 3
            case = {"logits": logits.ravel().tolist(), "from": shape, "size": size}
            cases.append({**case, "pre": asdict(pre), "post": asdict(post)})
            expected.append(plane_to_mask(logits, size, pre, post))
    for answer, (mask, values) in zip(call_page("masks", cases=cases), expected, strict=True):
        np.testing.assert_array_equal(np.float32(answer["values"]), values.ravel())
        np.testing.assert_array_equal(np.array(answer["mask"], bool), mask.ravel())


def test_probabilities_have_the_bits_of_python():
    rng = np.random.default_rng(6)
    spread = rng.standard_normal(3000) * 10 ** rng.uniform(-8, 3, 3000)
    logits = np.concatenate([spread, [0.0, -0.0, 1e30, -1e30, 88.0, -103.9]]).astype(np.float32)
    found = call_page("probabilities", logits=logits.tolist())
    np.testing.assert_array_equal(np.float32(found), probability(logits))
