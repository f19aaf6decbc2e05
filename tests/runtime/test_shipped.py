"""What is shipped runs as it is: the bundles are whole, the picture's sentences are understood."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import make_shipped
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tfanet.errors import InputError
from tfanet.runtime import Bundle, Predictor, shipped
from tfanet.runtime.bundle import read
from tfanet.runtime.bundle.read import BundleError, verify
from tfanet.runtime.shipped import shipped_bundle, shipped_names, shipped_picture


def test_each_shipped_bundle_is_whole():
    assert "tfanet-tiny" in shipped_names()
    for name in shipped_names():
        bundle = verify(shipped_bundle(name))
        assert (bundle.manifest.preset, bundle.manifest.precision) == (name, "fp32")
        assert sorted(path.name for path in bundle.path.iterdir()) == sorted(
            ["manifest.json", *bundle.manifest.files]
        )


@pytest.mark.parametrize("name", ["tfanet-tiyn", "", "..", "../assets/tfanet-tiny", "a\n" * 99])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="choose from tfanet-tiny"):
        shipped_bundle(name)


def test_the_picture_is_the_one_that_the_tool_draws():
    with Image.open(shipped_picture()) as picture:
        assert picture.format == "PNG"
        drawn = np.asarray(make_shipped.draw_picture(), dtype=int)
        assert np.abs(np.asarray(picture) - drawn).max() <= 1


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_bundle_finds_what_a_sentence_names(name):
    predictor = Predictor(shipped_bundle(name), threads=1)
    things = {
        "the red circle": 0,
        "the star": 1,
        "the circle on the right": 2,
        "the red triangle": 3,
        "the yellow square": 4,
        "the small green cross": 5,
    }
    found = predictor(shipped_picture(), list(things))
    for prediction, (text, index) in zip(found, things.items(), strict=True):
        truth = Image.new("1", (make_shipped.SCENE.width, make_shipped.SCENE.height))
        corners = make_shipped.SCENE.things[index].outline()
        ImageDraw.Draw(truth).polygon([(float(x), float(y)) for x, y in corners], fill=1)
        inside = np.asarray(truth)
        iou = (prediction.mask & inside).sum() / (prediction.mask | inside).sum()
        assert iou > 0.75, text


def test_an_installer_may_link_what_is_shipped(tmp_path, monkeypatch):
    """uv does, from its cache; a bundle of the user's own still holds its own files only."""
    installed = Path(shutil.copytree(shipped_bundle("tfanet-tiny"), tmp_path / "tfanet-tiny"))
    os.link(installed / "text.onnx", tmp_path / "cache")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(installed, verify=False)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    monkeypatch.setattr(read, "SHIPPED", tmp_path)
    assert Bundle.open(shipped_bundle("tfanet-tiny"), verify=False).path == installed
    (installed / "text.onnx").unlink()
    (installed / "text.onnx").symlink_to(tmp_path / "cache")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(installed, verify=False)
