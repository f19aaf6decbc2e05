"""No verb, and no living predictor, opens a socket of the internet family or looks up a name.

no_network.c stands before the C library in every process: it refuses both, and writes them down.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_config import SMALL

from tfanet.cli import build_parser

import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
# One process for all verbs: what an earlier one left behind lives on through the later ones.
VERBS = """
import json, sys
from tfanet.cli import main
print(json.dumps([main(argv) for argv in json.loads(sys.argv[1])]), file=sys.stderr)
"""
# The process lives until its input ends.
PREDICTOR = """
import sys
import numpy as np
from tfanet.runtime import Predictor
predictor = Predictor(sys.argv[1], threads=1)
predictor(np.zeros((40, 40, 3), np.uint8), "a red circle")
print("alive", flush=True)
sys.stdin.read()
predictor(np.zeros((40, 40, 3), np.uint8), "a blue square")
"""
MODEL = """
import torch
from tfanet.plugins import selective_scan

class Scan(torch.nn.Module):
    def forward(self, u):
        grouped = u[:, None, :1]
        return selective_scan(u, u.abs(), -torch.ones(4, 1), grouped, grouped)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, str], Path]]:
    """The environment of a process whose network is watched, and the folder of its log."""
    library = tmp_path_factory.mktemp("watch") / "no_network.so"
    source = Path(__file__).with_name("no_network.c")
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", source, "-o", library]
    subprocess.run([*command, "-ldl"], check=True)

    def environment(**variables: str) -> tuple[dict[str, str], Path]:
        folder = tmp_path_factory.mktemp("home")
        chosen = {
            "LD_PRELOAD": str(library), "TFANET_NETWORK_LOG": str(folder / "network.log"),
            "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        (folder / "network.log").touch()
        kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        return {**kept, **chosen, **variables}, folder

    return environment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tfanet.model.checkpoint import save_checkpoint
    from tfanet.model.tfanet.network import TFANet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, TFANet(replace(SMALL, text_length=20)).eval())
    return path


def verbs(folder: Path, checkpoint: Path) -> list[list[Any]]:
    """Every verb of the command line, in an order in which each finds what it needs."""
    bundle, data, ranges = folder / "bundle", folder / "data", folder / "ranges.json"
    picture, int8 = folder / "picture.png", folder / "int8"
    Image.new("RGB", (64, 64), "red").save(picture)
    on_data = ["--data", data, "--dataset", "shapes"]
    known = ["--checkpoint", checkpoint]
    found: list[list[Any]] = [
        ["doctor"],
        ["info", "--preset", "tfanet-tiny"],
        ["data", "make-shapes", "--output", data, "--train", 4, "--val", 4, "--testA", 0,
         "--testB", 0],
        ["data", "check", *on_data],
        ["export", *known, "--output", bundle],
        ["info", "--bundle", bundle],
        ["verify", "--bundle", bundle],
        ["predict", "--bundle", bundle, "--image", picture, "--text", "red", "--output",
         folder / "mask.png"],
        ["demo", "--output", folder / "demo"],
        ["help", "errors"],
        ["push", "--bundle", bundle, "--repo", "ada/red", "--licence", "mit", "--dry-run",
         folder / "repository"],
        ["parity", "--bundle", bundle, *known, "--report", folder / "report", "--picture",
         picture, "red"],
        ["bench", "--bundle", bundle, *known, "--runs", 1, "--warmup", 1, "--backends",
         "pytorch-eager", "onnxruntime-cpu"],
        ["onnx", "--model", "scan_of_a_user:Scan", "--input", "2x4x16", "--output",
         folder / "scan.onnx"],
        ["calibrate", "--bundle", bundle, *on_data, "--count", 2, "--output", ranges],
        ["calibrate", "diff", ranges, ranges],
        ["export", "--precision", "int8", "--bundle", bundle, *on_data, "--calibration", ranges,
         "--guard-count", 2, "--max-drop", 100, "--output", int8],
        ["parity", "--bundle", int8, *on_data],
        ["pretrain", *on_data, "--preset", "tfanet-tiny", "--output", folder / "backbone",
         "--steps", 1, "--batch", 1],
        ["train", *on_data, "--output", folder / "run", "--init", checkpoint, "--steps", 1,
         "--batch", 1],
        ["evaluate", "--bundle", bundle, *on_data],
        ["evaluate", *known, *on_data],
    ]  # fmt: skip
    if util.find_spec("tensorrt_rtx"):
        engine = ["--bundle", bundle, "--target", "tensorrt-rtx"]
        found.append(["engine", *engine, "--profile", 1])
    return found


def test_every_verb_stays_off_the_network(watched, checkpoint: Path) -> None:
    environment, folder = watched(PYTHONPATH=os.pathsep.join([str(ROOT)]))
    (folder / "scan_of_a_user.py").write_text(MODEL)
    argv = [[str(word) for word in words] for words in verbs(folder, checkpoint)]
    done = subprocess.run(
        [sys.executable, "-c", VERBS, json.dumps(argv)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stderr.splitlines()[-1])
    failed = [words for words, code in zip(argv, codes, strict=True) if code]
    assert not failed, done.stderr
    assert (folder / "network.log").read_text() == ""
    assert not list(folder.rglob("onnxruntime.db"))
    actions = build_parser()._subparsers._group_actions  # type: ignore[union-attr]
    # A page is made of what npm fetches; completion and refit need libraries that may be missing.
    others = {"completion", "refit", "web"}
    assert {words[0] for words in argv} | others == set(actions[0].choices or ())


def start(environment: dict[str, str], bundle: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PREDICTOR, bundle], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "alive\n"
    return process


def test_a_living_predictor_stays_off_the_network(watched, shared_bundle: Path) -> None:
    """Until one in which the user has switched telemetry on has looked a name up twice."""
    environment, folder = watched()
    asked, home = watched(ORT_DISABLE_TELEMETRY="0")
    with start(environment, shared_bundle) as quiet, start(asked, shared_bundle) as talking:
        telemetry = bool(list(home.rglob("onnxruntime.db")))  # from ONNX Runtime 1.29 on
        lookups = -2 if telemetry else 0
        while lookups < 0:
            time.sleep(0.1)
            lookups = (home / "network.log").read_text().count("getaddrinfo") - 2
        for process in (quiet, talking):
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait() == 0
    assert [path.name for path in folder.rglob("*")] == ["network.log"]
    assert (folder / "network.log").read_text() == ""
    if not telemetry:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has no telemetry to switch off")


def module_imports(path: Path) -> list[str]:
    """The packages that a file imports at its top level, in order."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module.split(".")[0])
    return names


def test_scripts_import_tfanet_before_onnxruntime() -> None:
    """The package switches telemetry off, which onnxruntime looks at when it is imported."""
    scripts = [*ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")]
    direct = {
        path.name: found for path in scripts if "onnxruntime" in (found := module_imports(path))
    }
    assert "demo.py" in direct
    for name, found in direct.items():
        assert "tfanet" in found[: found.index("onnxruntime")], name
