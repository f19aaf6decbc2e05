"""The pictures of README are what their scripts draw today, small, and load nothing."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from make_badges import IMAGES, badges
from make_picture import ENLARGED, PICTURE, SCALE, SCENE, SENTENCES, answers, border, svg
from PIL import Image, ImageDraw

from tfanet.runtime import Predictor
from tfanet.runtime.shipped import shipped_bundle

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SVG = "{http://www.w3.org/2000/svg}"


def filled(corners: np.ndarray) -> np.ndarray:
    """Of corners in units of the scene, the pixels inside, (H, W) bools like a mask."""
    picture = Image.new("1", (SCENE.width * ENLARGED, SCENE.height * ENLARGED))
    points = [(float(x), float(y)) for x, y in corners * ENLARGED]
    ImageDraw.Draw(picture).polygon(points, fill=1)
    return np.asarray(picture)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def drawn_masks() -> list[np.ndarray]:
    tree = ElementTree.parse(PICTURE)
    paths = [p for p in tree.iter(f"{SVG}path") if p.get("id", "").startswith("mask")]
    return [
        np.array(NUMBER.findall(p.get("d", "")), dtype=np.float64).reshape(-1, 2) / SCALE
        for p in paths
    ]


@pytest.mark.parametrize("thing", SCENE.things, ids=lambda thing: thing.shape)
def test_a_border_encloses_what_its_mask_holds(thing):
    mask = filled(thing.outline())
    assert iou(filled(border(mask)), mask) > 0.97


def test_the_picture_has_the_masks_that_its_sentences_mean():
    masks = drawn_masks()
    assert len(masks) == len(SENTENCES)
    for corners, (_, index, _) in zip(masks, SENTENCES, strict=True):
        assert iou(filled(corners), filled(SCENE.things[index].outline())) > 0.85


def test_all_but_the_masks_is_what_the_script_draws():
    """Texts, and numbers to within rounding."""
    kept, made = PICTURE.read_text(), svg(drawn_masks())
    assert NUMBER.sub("#", kept) == NUMBER.sub("#", made)
    np.testing.assert_allclose(
        [float(n) for n in NUMBER.findall(kept)],
        [float(n) for n in NUMBER.findall(made)],
        atol=0.15,
    )


def test_badges_are_what_setup_cfg_says():
    made = badges()
    assert {path.name for path in IMAGES.glob("badge-*.svg")} == set(made)
    assert all((IMAGES / name).read_text() == text for name, text in made.items())
    assert "1.20+" in made["badge-onnxruntime.svg"]


@pytest.mark.parametrize("picture", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_small_and_load_nothing(picture):
    text = picture.read_text()
    ElementTree.fromstring(text)
    assert len(text.encode()) < 150_000
    loaded = re.findall(r"""(?:href|src)="([^"]*)"|url\(([^)]*)\)""", text)
    assert all("".join(target).startswith("#") for target in loaded)
    assert "<script" not in text and "@import" not in text


def test_the_shipped_model_gives_these_masks():
    predictor = Predictor(shipped_bundle("tfanet-tiny"), threads=1)
    for mask, drawn in zip(answers(predictor), drawn_masks(), strict=True):
        assert iou(filled(drawn), mask) > 0.97
