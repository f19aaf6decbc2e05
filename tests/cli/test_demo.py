"""`tfanet demo`: the first thing that somebody runs, without PyTorch and without a checkout."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tfanet.cli import build_parser, main
from tfanet.runtime import Predictor, load_image
from tfanet.runtime.overlay import overlay
from tfanet.runtime.shipped import shipped_bundle, shipped_picture


def test_it_writes_what_the_predictor_gives(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--text", "the red circle", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    picture = load_image(shipped_picture())
    expected = Predictor(shipped_bundle("tfanet-tiny"))(picture, "the red circle")
    mask = np.asarray(Image.open(tmp_path / result["mask"]))
    assert np.array_equal(mask, 255 * expected.mask) and mask.any()
    shown = np.asarray(Image.open(tmp_path / result["overlay"]))
    assert np.array_equal(shown, np.asarray(overlay(picture, expected.mask)))
    assert (result["pixels"], result["score"]) == (expected.mask.sum(), expected.score)
    assert result["timings_ms"]["text"] > 0 and result["start_ms"] > 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "mask.png",
        "overlay.png",
        "tfanet-demo",
    ]


def test_what_it_says_to_try_next_can_be_typed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (70, 50), "teal").save("mine.png")
    assert main(["demo", "--image", "mine.png", "--output", "a folder"]) == 0
    said = capsys.readouterr().out
    assert "nothing but drawn shapes" in said and "a folder/overlay.png" in said
    commands = [
        shlex.split(line, comments=True)
        for line in said.splitlines()
        if line.startswith("  tfanet ")
    ]
    assert len(commands) == 3
    for command in commands:
        build_parser().parse_args(command[1:])
    other = commands[0][1:]  # another sentence, into the same folder
    before = (tmp_path / "a folder/mask.png").read_bytes()
    assert main(other) == 0
    assert (tmp_path / "a folder/mask.png").read_bytes() != before


def test_nothing_is_replaced_unasked(capsys, tmp_path):
    (tmp_path / "overlay.png").write_text("mine")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]
    assert (tmp_path / "overlay.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--image", "nowhere.png"], ["nowhere.png"]),
        (["--text", " "], ["sentence"]),
        (["--output", "file"], ["file", "name a directory"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["demo", *given]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_needs_no_pytorch(tmp_path):
    code = (
        "import sys; from tfanet.cli import main; code = main(['demo']); "
        "print('torch' in sys.modules, 'onnx' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
