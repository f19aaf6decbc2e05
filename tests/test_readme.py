"""README and docs are true: their `run` blocks run, in order, and their links lead somewhere.

A block is marked "sh run" or "python run"; a module behind that says what it needs to be run here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "runtime/cpp/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(sh|python) run *(\w*)\n(.*?)^```", flags=re.M | re.S)


# The README and the first page of docs at every check, the others with the full-size ones.
QUICK = ("README.md", "docs/README.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=() if name in QUICK else pytest.mark.full)
        for name, page in zip(NAMES, PAGES, strict=True)
        if BLOCK.search(page.read_text())
    ],
)
def test_run_blocks_run(page, tmp_path):
    picture = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill="red")
    picture.save(tmp_path / "picture.png")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, needed, code in BLOCK.findall(page.read_text()):
        if needed and importlib.util.find_spec(needed) is None:
            continue
        command = ["sh", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    if page.name == "README.md" and page.parent == ROOT:
        assert (tmp_path / "overlay.png").is_file()


def test_pages_have_blocks_to_run():
    found = {
        name: len(BLOCK.findall(page.read_text())) for name, page in zip(NAMES, PAGES, strict=True)
    }
    assert found["README.md"] >= 4 and found["docs/runtimes.md"] >= 5
    assert sum(found.values()) >= 14


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_other_shell_block_is_known(page):
    """A make target, an installation, or a user's own command on files that are not here."""
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.M | re.S)
        for line in block.splitlines()
    ]
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile
        elif line.startswith("tfanet "):
            options = set(re.findall(r"--[a-z-]+", line))
            words = line.split()
            verb = words[1:3] if words[1] == "data" else words[1:2]
            help_text = subprocess.run(
                [sys.executable, "-m", "tfanet", *verb, "--help"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert all(option in help_text for option in options)
        else:
            known = ("pip install ", "git clone https://github.com/", "cd ", "cmake ", "build/")
            steps = ("git clone REPOSITORY ", "python -m pytest ", "export TFANET_")
            assert line.startswith((*known, *steps))


@pytest.mark.parametrize(
    ("page", "target"),
    [
        pytest.param(page, target, id=f"{name}:{target}")
        for name, page in zip(NAMES, PAGES, strict=True)
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ],
)
def test_links_lead_to_files(page, target):
    assert (page.parent / target).exists()
