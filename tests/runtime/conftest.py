"""Good bundles, made by hand, and ways to change them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hand_made import image_model, write_bundle


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle, not to be changed."""
    return write_bundle(tmp_path_factory.mktemp("shared") / "bundle", image_model())


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle with a given image graph, by default `image_model(scan)`."""

    def make(
        image: onnx.ModelProto | None = None, scan: bool = False, dynamic_batch: bool = True
    ) -> Path:
        model = image_model(scan) if image is None else image
        return write_bundle(tmp_path / "made", model, dynamic_batch)

    return make


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A good bundle of the test's own."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))


@pytest.fixture
def edit(bundle: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Change the manifest of `bundle`."""

    def apply(change: Callable[[dict[str, Any]], Any]) -> Path:
        path = bundle / "manifest.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        return bundle

    return apply
