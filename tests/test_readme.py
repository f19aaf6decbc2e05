"""README and docs are true: their `run` blocks run, in order, and their links lead somewhere.

A block is marked "sh run" or "python run"; a module behind that says what it needs to be run here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tfanet.runtime.shipped import shipped_bundle

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "runtime/cpp/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(sh|python) run *(\w*)\n(.*?)^```", flags=re.M | re.S)


# This at every check, the others with the full-size ones. The tutorial's blocks share a session:
# tests/test_tutorial.py runs them.
QUICK = ("README.md",)
TUTORIAL = "docs/tutorial.md"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=() if name in QUICK else pytest.mark.full)
        for name, page in zip(NAMES, PAGES, strict=True)
        if name != TUTORIAL and BLOCK.search(page.read_text())
    ],
)
def test_run_blocks_run(page, tmp_path):
    picture = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill="red")
    picture.save(tmp_path / "picture.png")
    if page != ROOT / "README.md":  # which makes the bundle that the other pages begin with
        shutil.copytree(shipped_bundle("tfanet-tiny"), tmp_path / "bundle")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, needed, code in BLOCK.findall(page.read_text()):
        if needed and importlib.util.find_spec(needed) is None:
            continue
        command = ["sh", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    if page == ROOT / "README.md":
        assert (tmp_path / "overlay.png").is_file()


def test_readme_opens_with_two_commands_and_a_picture():
    page = (ROOT / "README.md").read_text()
    opening, *_ = page.split("\n## ")
    first = re.search(r"^```sh\n(.*?)^```", opening, flags=re.M | re.S)
    assert first and opening.index("```") < 250
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]
    assert "](docs/images/masks.svg)" in opening
    assert len(page.splitlines()) <= 110


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@pytest.mark.parametrize("name", ["README.md", "docs/figures.md"])
def test_figures_are_those_of_the_results(name):
    """Every number of the table rounds one that was measured, or a thousandth of one."""
    page = (ROOT / name).read_text()
    rows = re.findall(r"^\| (.*) \|$", page.split("# Figures")[1].split("\n## ")[0], flags=re.M)
    results = (ROOT / "benchmarks/results").glob("*.md")
    text = "".join(path.read_text() for path in (*results, ROOT / "tfanet/assets/README.md"))
    measured = [Decimal(number) for number in numbers(text)]
    known = {*measured, *(number / 1000 for number in measured)}
    told = set().union(*(numbers(row.split(" | ", 1)[1]) for row in rows[2:]))
    assert len(told) > 5
    for number in told:
        step = Decimal(number).as_tuple().exponent
        assert any(
            n.quantize(Decimal((0, (1,), step)), ROUND_HALF_UP) == Decimal(number) for n in known
        ), number


def test_pages_have_blocks_to_run():
    found = {
        name: len(BLOCK.findall(page.read_text())) for name, page in zip(NAMES, PAGES, strict=True)
    }
    assert found["README.md"] >= 2 and found["docs/runtimes.md"] >= 5
    assert found[TUTORIAL] >= 8 and found["docs/int8.md"] >= 1
    assert sum(found.values()) >= 25


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
            steps = ("git clone REPOSITORY ", "python -m ", "export TFANET_")
            assert line.startswith((*known, *steps))


def anchors(page: str) -> set[str]:
    """The names of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


MORE = [ROOT / name for name in ("checkpoints/README.md", "tfanet/assets/README.md")]


@pytest.mark.parametrize(
    "page", [*PAGES, *MORE], ids=[*NAMES, *(str(page.relative_to(ROOT)) for page in MORE)]
)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, heading = target.partition("#")
        leads_to = (page.parent / file).resolve() if file else page
        assert leads_to.exists(), target
        assert ROOT in leads_to.parents, f"{target} leaves the repository"
        if heading:
            assert heading in anchors(leads_to.read_text()), target
