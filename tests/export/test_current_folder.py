"""Every verb in a folder of hostile modules: none of them runs, here or in a child process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# What may be installed and is looked for, but is not a dependency.
OPTIONAL = {
    "apex", "causal_conv1d", "cupy", "flash_attn", "mamba_ssm", "pandas", "scipy", "selective_scan",
    "sitecustomize", "tensorrt", "tensorrt_rtx", "triton", "usercustomize", "xformers",
}  # fmt: skip
DRIVER = """
import json, sys
from tfanet.cli import main
for words in json.loads(sys.stdin.read()):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    sys.stderr.write(json.dumps([words[0], code]) + "\\n")
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a module for every name that Python or a library could ask for."""
    folder = tmp_path / "data"
    folder.mkdir()
    installed = {
        name for name in importlib.metadata.packages_distributions() if name.isidentifier()
    }
    for name in (sys.stdlib_module_names | installed | OPTIONAL) - {"tfanet"}:
        words = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')\nraise ImportError"
        (folder / f"{name}.py").write_text(words)
    return folder


def run(command: list[str], folder: Path, words: str = "") -> str:
    """What a process says that runs there as from a shell; fails if a hostile module ran."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=kept,
        input=words,
        capture_output=True,
        text=True,
    )
    ran = folder.parent / "ran"
    assert not ran.exists(), f"ran: {ran.read_text()}"
    return done.stderr


def run_verbs(folder: Path, verbs: list[list[str]]) -> dict[str, int]:
    """The exit code of each verb, run as the `tfanet` command, which is a script elsewhere."""
    script = folder.parent / "bin" / "tfanet"
    script.parent.mkdir(exist_ok=True)
    script.write_text(DRIVER)
    said = run([str(script)], folder, json.dumps(verbs))
    codes = dict(json.loads(line) for line in said.splitlines() if line.startswith('["'))
    assert len(codes) == len({words[0] for words in verbs}), said
    return codes


def test_nothing_in_the_current_folder_runs(hostile, bundle, checkpoint):
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(hostile / "picture.png")
    place, weights = str(bundle.path), str(checkpoint)
    data = ["--data", "shapes"]
    small = ["--image-size", "64", "--steps", "1", "--batch", "2"]
    codes = run_verbs(
        hostile,
        [
            ["info", "--bundle", place],
            ["verify", "--bundle", place, "--digest", bundle.digest],
            ["doctor"],
            ["predict", "--bundle", place, "--image", "picture.png", "--text", "red", "--output",
             "mask.png"],
            ["data", "make-shapes", "--output", "shapes", "--train", "4", "--val", "2", "--testA",
             "0", "--testB", "0"],
            ["data", "check", *data],
            ["evaluate", "--bundle", place, *data, "--limit", "1"],
            ["calibrate", "--bundle", place, *data, "--count", "2", "--output", "ranges.json"],
            ["parity", "--bundle", place, "--checkpoint", weights],
            ["bench", "--bundle", place, "--checkpoint", weights, "--runs", "1", "--warmup", "1",
             "--backends", "pytorch-eager", "onnxruntime-cpu"],
            ["export", "--checkpoint", weights, "--output", "made"],
            ["train", *data, "--output", "trained", "--init", weights, *small],
        ],
    )  # fmt: skip
    assert codes == dict.fromkeys(codes, 0)
    # The same export gives the same bytes in another process.
    made = hostile / "made"
    assert {path.name for path in made.iterdir()} == {path.name for path in bundle.path.iterdir()}
    for path in bundle.path.iterdir():
        assert path.read_bytes() == (made / path.name).read_bytes(), path.name


def test_nor_while_an_engine_is_built(hostile, bundle):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed", exc_type=Exception)
    made = hostile / "copy"
    made.mkdir()
    for name in ("manifest.json", *bundle.manifest.files):
        (made / name).write_bytes((bundle.path / name).read_bytes())
    words = ["--bundle", "copy", "--engine", "tensorrt-rtx-fp32"]
    codes = run_verbs(
        hostile,
        [["engine", "--bundle", "copy", "--target", "tensorrt-rtx"], ["refit", *words]],
    )
    assert codes["engine"] == 0 and codes["refit"] in (1, 3)  # not built for it; no GPU


MODEL = """
import torch
from torch import nn
import numpy, json  # the real ones
from part import Part


def make():
    return nn.Sequential(Part())
"""
PART = """
from mamba_ssm import selective_scan_fn
from torch import nn


class Part(nn.Module):
    def forward(self, u):
        import csv
        import late
        return selective_scan_fn(u, u.abs(), -u[0, :, :1].abs(), u[:, :1], u[:, :1])
"""


def test_a_model_of_the_current_folder_is_the_only_code_of_it(hostile):
    for name in OPTIONAL:
        (hostile / f"{name}.py").unlink()  # for these it may be meant to be there
    (hostile / "model.py").write_text(MODEL)
    (hostile / "part.py").write_text(PART)
    (hostile / "late.py").write_text("")
    words = ["--model", "model:make", "--input", "u:1x4x8", "--output", "model.onnx"]
    assert run_verbs(hostile, [["onnx", *words]]) == {"onnx": 0}


def test_python_m(hostile):
    """Python itself looks in the current folder until our first line runs; then no more."""
    ours = {"argparse", "json", "tempfile", "tokenize"}  # of what nothing needs before that
    for name in (sys.stdlib_module_names | {"sitecustomize", "usercustomize"}) - ours:
        (hostile / f"{name}.py").unlink(missing_ok=True)
    assert run(["-m", "tfanet", "info", "--preset", "tfanet-huge"], hostile).count("\n") == 1
