"""The trained checkpoints beside the package: small, of their presets, and they have learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from tfanet.data import make_shapes
from tfanet.evaluation.evaluate import evaluate
from tfanet.model.checkpoint import load_model
from tfanet.model.family import find_preset

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints"
FILES = sorted(FOLDER.glob("*.safetensors"))
# On pictures that nobody has trained on or chosen by, a little under what the page says.
LEAST = {
    "asda-tiny": {"mIoU": 72.0},
    "crossvlt-tiny": {"mIoU": 75.0},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=0, val=16, testA=0, testB=0, seed=77)
    make_shapes(root, train=0, val=16, testA=0, testB=0, seed=77, generalised=True)
    return root


def test_all_are_there_and_told_of() -> None:
    page = (FOLDER / "README.md").read_text()
    assert {path.stem for path in FILES} == set(LEAST)
    for path in FILES:
        assert f"## {path.name}" in page
        assert path.stat().st_size <= 6_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_is_of_its_preset_in_half_precision(path: Path) -> None:
    _, config = find_preset(path.stem)
    assert load_model(path).config == config
    with safe_open(path, "pt") as file:
        parts = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
    sizes = {part.get_dtype(): 0 for part in parts}
    for part in parts:
        sizes[part.get_dtype()] += math.prod(part.get_shape())
    assert sizes["F16"] > 0.99 * sum(sizes.values())  # statistics of batch norms stay in float32


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_has_learned(path: Path, shapes: Path) -> None:
    dataset = "gshapes" if path.stem.startswith("instalign") else "shapes"
    report = evaluate(path, shapes, dataset)
    found = report[report["protocol"]["table"]]
    for metric, least in LEAST[path.stem].items():
        assert found[metric] >= least, found
