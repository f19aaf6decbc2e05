"""The README is true: its `run` blocks run, in order, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python) run\n(.*?)^```", README, flags=re.M | re.S)


def test_run_blocks_run(tmp_path):
    picture = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill="red")
    picture.save(tmp_path / "picture.png")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert len(BLOCKS) >= 4
    for language, code in BLOCKS:
        command = ["sh", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "overlay.png").is_file()


def test_every_other_shell_block_is_a_make_target_or_an_installation():
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
        for line in block.splitlines()
    ]
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("make "):
            assert f"\n{line.removeprefix('make ')}:" in makefile
        else:
            assert line.startswith("pip install ")


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_to_files(target):
    assert (ROOT / target).exists()
