"""What a manifest says of pictures, sentences, masks and graphs: versions, limits and meanings."""

from __future__ import annotations

import json
import math
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import SIZE, WORD_PIECES, as_version_1, image_model, write_bundle

from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.bundle.contract import (
    BundleError,
    Interface,
    Postprocessing,
    Preprocessing,
    Tokenization,
)
from tfanet.runtime.bundle.manifest import Manifest
from tfanet.runtime.letterbox import Letterbox
from tfanet.runtime.preprocess import logits_to_mask, plane_to_mask, probability

import onnxruntime

PATH = Path("manifest.json")


@pytest.fixture
def document(tmp_path) -> dict[str, Any]:
    return json.loads((write_bundle(tmp_path / "b", image_model()) / PATH).read_text())


def test_a_bundle_of_version_1_opens_and_gives_the_same_mask(tmp_path, document):
    path = tmp_path / "b"
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    expected = Predictor(path)(image, "red")
    (path / PATH).write_text(json.dumps(as_version_1(document)))
    opened = Bundle.open(path)
    assert opened.manifest.to_dict() == Manifest.from_dict(document, PATH).to_dict()
    result = Predictor(path)(image, "red")
    assert result.logits.tobytes() == expected.logits.tobytes()
    assert np.array_equal(result.mask, expected.mask)
    assert result.no_target is None and result.instances is None


@pytest.mark.parametrize("threshold", [0.25, -3, 10**400])
def test_the_threshold_of_version_1_is_a_logit_s(document, threshold):
    old = as_version_1(document) | {"threshold": threshold}
    if threshold == 10**400:
        with pytest.raises(BundleError, match="finite"):
            Manifest.from_dict(old, PATH)
        return
    post = Manifest.from_dict(old, PATH).postprocessing
    assert post == Postprocessing("logit", threshold)
    assert post.logit_threshold == threshold


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"resize": "crop"}, "letterbox-area"),
        ({"color": "BGR"}, "RGB"),
        ({"padding": [0, 0, 0]}, "padding"),
        ({"resize": "letterbox-area"}, "padding is None"),
        ({"resize": "letterbox-area", "padding": [0, 0, 256]}, "from 0 to 255"),
        ({"resize": "letterbox-area", "padding": [0, 0.5, 0]}, "padding"),
        ({"resize": "letterbox-area", "padding": [0, True, 0]}, "padding"),
        ({"extra": 1}, "nothing else"),
        ({"size": [32, 16385]}, "[H, W]"),
        ({"std": [1, 1, "1"]}, "three numbers"),
    ],
)
def test_preprocessing_that_no_runtime_can_do(document, change, word):
    with pytest.raises(BundleError) as caught:
        Preprocessing.read(document["preprocessing"] | change, PATH)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        (Tokenization, {"tokenizer": "sentencepiece"}, "bert-wordpiece"),
        (Tokenization, {"truncation": "left"}, "keep-end or cut"),
        (Tokenization, {"length": 8.0}, "lacks length"),
        (Tokenization, {"extra": 0}, "nothing else"),
        (Postprocessing, {"value": "score"}, "logit or probability"),
        (Postprocessing, {"threshold": math.nan}, "finite"),
        (Postprocessing, {"value": "probability", "threshold": 1}, "between 0 and 1"),
        (Postprocessing, {"value": "probability", "threshold": 0.0}, "between 0 and 1"),
    ],
)
def test_sentences_and_masks_that_no_runtime_can_do(document, kind, change, word):
    field = "text" if kind is Tokenization else "postprocessing"
    with pytest.raises(BundleError) as caught:
        kind.read(document[field] | change, PATH)
    assert word in str(caught.value)


def value(name: str, *shape: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": ["batch", *shape], **more}


FULL = [
    value("mask_logit", 1, 16, 24, role="mask"),
    value("no_target_logit", 1, role="no_target"),
    value("relevance", 5, role="relevance"),
    value("instance_logits", 5, 8, 12, role="instances"),
    value("alignment", 5, 8, role="alignment"),
]


def read(document: dict[str, Any]) -> Interface:
    return Manifest.from_dict(document, PATH).interface


@pytest.mark.parametrize("kept", [(0,), (0, 1), (0, 2, 3), (0, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_outputs_are_found_by_role(document, kept):
    document["outputs"]["image.onnx"] = [FULL[n] for n in kept]
    found = read(document).image_outputs
    assert list(found) == [FULL[n]["role"] for n in kept]
    assert all(
        found[v["role"]] == (v["name"], tuple(v["shape"][1:])) for v in map(FULL.__getitem__, kept)
    )


def test_an_image_graph_may_take_less(document):
    document["inputs"]["image.onnx"] = document["inputs"]["image.onnx"][:2]
    document["outputs"]["text.onnx"] = document["outputs"]["text.onnx"][:1]
    assert list(read(document).image_inputs) == ["image", "word_features"]


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        FULL[1:],
        [FULL[1], FULL[0]],
        [FULL[0], FULL[0]],
        [FULL[0], FULL[2]],
        [FULL[0], FULL[3]],
        [FULL[0], FULL[4]],
        [FULL[0], value("x", 1, role="score")],
        [value("mask_logit", 2, 16, 24, role="mask")],
        [value("mask_logit", 1, 16, role="mask")],
        [value("mask_logit", 1, 33, 24, role="mask")],
        [value("mask_logit", 1, 16, 49, role="mask")],
        [*FULL[:3], value("i", 5, 33, 12, role="instances")],
        [*FULL[:3], value("i", 5, 8, 49, role="instances")],
        [FULL[0], value("r", 1025, role="relevance"), value("i", 1025, 8, 12, role="instances")],
        [value("mask_logit", 1, 0, 24, role="mask")],
        [value("mask_logit", 1, "h", "w", role="mask")],
        [value("mask_logit", 1, 16, 24)],
        [value("mask_logit", 1, 16, 24, role=["mask"])],
        [value(3, 1, 16, 24, role="mask")],
        [FULL[0], value("n", 2, role="no_target")],
        [*FULL[:3], value("i", 6, 8, 12, role="instances")],
        [*FULL[:4], value("a", 5, 9, role="alignment")],
        "mask_logit",
        None,
    ],
)  # fmt: skip
def test_outputs_that_say_no_mask_or_contradict_themselves(document, outputs):
    document["outputs"]["image.onnx"] = outputs
    with pytest.raises(BundleError, match="do not fit together: export the model again"):
        read(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["inputs"]["image.onnx"].pop(0),
        lambda d: d["inputs"]["image.onnx"].append(value("depth", 1)),
        lambda d: d["inputs"]["image.onnx"][1]["shape"].append(3),
        lambda d: d["inputs"]["text.onnx"].append(value("word_mask", 8)),
        lambda d: d["inputs"]["text.onnx"][0]["shape"].__setitem__(1, 9),
        lambda d: d["outputs"].update({"other.onnx": []}),
        lambda d: d["outputs"]["text.onnx"].append(value("image", 3)),
        lambda d: d["outputs"].update({"text.onnx": []}),
        lambda d: d["preprocessing"].update(size=[32, 32]),
        lambda d: d["text"].update(length=9),
    ],
)
def test_graphs_that_do_not_fit_together(document, change):
    change(document)
    with pytest.raises(BundleError, match="do not fit together"):
        read(document)


def test_probabilities_are_the_nearest_of_their_kind():
    getcontext().prec = 60
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, s, 60).astype(np.float32) for s in (0.1, 3, 30, 90)])
    z = np.concatenate([z, np.float32([0, -0.0, 88, -88, 104, -104, 1e-30, -1e-30])])
    for logit, found in zip(z, probability(z), strict=True):
        exact = 1 / (1 + (-Decimal(float(logit))).exp())
        below, above = (np.nextafter(found, np.float32(side)) for side in (-1, 2))
        nearest = min((found, below, above), key=lambda v: abs(Decimal(float(v)) - exact))
        assert found == nearest, logit


def test_probabilities_at_the_ends():
    z = np.float32([-np.inf, np.inf, np.nan, -3e38, 3e38])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        low, high, nothing, least, most = probability(z)
    assert low == least == 0
    assert high == most == 1 and np.isnan(nothing)


def bilinear(plane: np.ndarray, size: tuple[int, int], y: int, x: int) -> Fraction:
    """One value of an enlarged plane, with half-pixel centres, in exact numbers."""

    def places(index: int, old: int, new: int) -> list[tuple[int, Fraction]]:
        centre = Fraction(2 * index + 1, 2) * Fraction(old, new) - Fraction(1, 2)
        first = math.floor(centre)
        share = centre - first
        pairs = [(first, 1 - share), (first + 1, share)]
        inside = [(n, w) for n, w in pairs if 0 <= n < old]
        total = sum(w for _, w in inside)
        return [(n, w / total) for n, w in inside]

    rows, columns = places(y, plane.shape[0], size[0]), places(x, plane.shape[1], size[1])
    return sum(
        (a * b * Fraction(float(plane[j, i])) for j, a in rows for i, b in columns), Fraction(0)
    )


@pytest.mark.parametrize("picture", [(70, 90), (200, 97), (64, 64), (48, 300)])
def test_of_a_letterbox_the_probabilities_of_the_picture_are_resized(picture):
    """To the model's size, cut, to the picture's size: the official order, in exact numbers."""
    size = (64, 64)
    pre = Preprocessing(size, (0, 0, 0), (1, 1, 1), "letterbox-area", (124, 116, 104))
    post = Postprocessing("probability", 0.35)
    logits = np.random.default_rng(1).normal(0, 2, (32, 32)).astype(np.float32)
    mask, values = plane_to_mask(logits, picture, pre, post)
    assert mask.shape == values.shape == picture and mask.dtype == bool
    assert np.array_equal(mask, values > np.float32(0.35))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    top, left, bottom, right = Letterbox.of(picture, size).crop
    inside = np.array(
        [[float(bilinear(p, size, y, x)) for x in range(left, right)] for y in range(top, bottom)]
    )
    for y, x in np.random.default_rng(2).integers(0, picture, (40, 2)).tolist():
        if picture[0] >= inside.shape[0] and picture[1] >= inside.shape[1]:
            assert values[y, x] == pytest.approx(float(bilinear(inside, picture, y, x)), abs=2e-6)


def test_a_plane_of_another_size_is_resized_at_once():
    plane = np.random.default_rng(0).normal(0, 1, (16, 24)).astype(np.float32)
    pre = Preprocessing(SIZE, (0, 0, 0), (1, 1, 1))
    mask, values = plane_to_mask(plane, (50, 70), pre, Postprocessing("logit", 0.5))
    wanted = logits_to_mask(plane, (50, 70), 0.5)
    assert np.array_equal(values, wanted[1]) and np.array_equal(mask, wanted[0])


def test_a_probability_has_a_logit():
    assert Postprocessing("probability", 0.35).logit_threshold == pytest.approx(-0.6190392)


@pytest.mark.parametrize("lightness", [0, 255])
def test_objects_and_what_means_nothing(tmp_path, lightness):
    """By role, from what a session of the graph gives, counted one by one."""
    model = image_model(no_target=True, instances=6)
    predictor = Predictor(write_bundle(tmp_path / "b", model))
    rng = np.random.default_rng(3)
    image = np.clip(rng.integers(-60, 60, (50, 70, 3)) + lightness, 0, 255).astype(np.uint8)
    result, again = predictor(image, ["red", "a blue square"])
    tensor, size = predictor.preprocess(image)
    encoded = predictor.encode_text("red")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {"image": tensor[None], **encoded.features, "word_mask": encoded.mask}
    names = [output.name for output in session.get_outputs()]
    raw = dict(zip(names, session.run(None, feed), strict=True))

    nothing = 1 / (1 + math.exp(-raw["no_target_logit"][0, 0]))
    assert result.no_target == pytest.approx(nothing, abs=1e-7)
    assert (nothing > 0.5) == bool(lightness)  # a light picture shows nothing, here
    mask = logits_to_mask(raw["mask_logit"][0, 0], size)[0]
    assert mask.any() and np.array_equal(result.mask, mask & (not lightness))
    if lightness:
        assert result.score == 0

    relevance = raw["relevance"][0]
    meant = [n for n in range(6) if relevance[n] >= 0.5]
    order = sorted(meant, key=lambda n: (-relevance[n], n))
    assert result.instances is not None and again.instances is not None
    assert [one.relevance for one in result.instances] == [float(relevance[n]) for n in order]
    for one, n in zip(result.instances, order, strict=True):
        assert np.array_equal(one.mask, logits_to_mask(raw["instance_logits"][0, n], size)[0])
        assert one.alignment is not None and np.array_equal(one.alignment, raw["alignment"][0, n])


@pytest.mark.parametrize("kind", ["clip-bpe", "bert-wordpiece"])
def test_the_words_that_objects_align_with(tmp_path, kind):
    """Each has the shares of its tokens, added one to the other in float32."""
    facts: dict[str, Any] = {}
    words = {"unbelievably": 1, "café": 1, "🙂": 1, "qqxy": 2}
    if kind == "bert-wordpiece":
        facts = {
            "tokenizer": WORD_PIECES,
            "text": Tokenization(8, 0, 101, 102, kind, "cut"),
        }
        words = {"unbelievably": 5, "cafe": 1, "🙂qqxy": 1}
    predictor = Predictor(write_bundle(tmp_path / "b", image_model(instances=6), **facts))
    image = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    result = predictor(image, ["a", "Unbelievably Café 🙂qqxy"])[1]
    assert predictor.encode_text("Unbelievably Café 🙂qqxy").word_tokens == tuple(words.items())
    assert result.instances
    for one in result.instances:
        assert one.alignment is not None and one.words is not None
        assert [word.text for word in one.words] == list(words)
        at = 1
        for word, count in zip(one.words, words.values(), strict=True):
            total = np.float32(0)
            for n in range(at, at + count):
                total = np.float32(total + one.alignment[n])
            assert word == (word.text, float(total))
            assert word.share == pytest.approx(one.alignment[at : at + count].sum(), abs=1e-6)
            at += count
