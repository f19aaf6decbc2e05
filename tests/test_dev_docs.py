"""The pages for contributors are true: paths, the picture of the packages, version numbers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from checkouts import checkout
from imports import ROOT

import tfanet
from tfanet.calibration import ranges
from tfanet.runtime.bundle import SCHEMA_VERSION

PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "dev").glob("*.md"))]
IDS = [page.name for page in PAGES]
# `export/trace.py`, `tests/zoo/`: what begins with a folder of the repository.
FOLDERS = sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith("."))
FOLDERS.remove("build")
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_named_is_there(page):
    named = {path for path in PATH.findall(page.read_text()) if "NAME" not in path}
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing, missing


def test_the_walks_name_many_files():
    page = (ROOT / "docs/dev/architecture.md").read_text()
    walks = page[page.index("## Five walks") :]
    assert len(re.findall(r"^### ", walks, flags=re.M)) == 5
    assert len(set(PATH.findall(walks))) > 40


def test_the_picture_is_what_the_imports_say():
    command = [sys.executable, str(ROOT / "tools/architecture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def number_in(file: str, pattern: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text())
    assert found, f"{file} has nothing like {pattern}"
    return found.group(1)


# What stands in the sources, in the order of the page's table; several places must agree.
NUMBERS = [
    {tfanet.__version__},
    {str(SCHEMA_VERSION), number_in("runtime/cpp/src/bundle.h", r"kSchemaVersion = (\d+)")},
    {str(ranges.SCHEMA_VERSION)},
    {
        number_in("plugins/operands.py", r"\nVERSION = (\d+)"),
        number_in("plugins/csrc/operands.h", r"kVersion = (\d+)"),
    },
    {
        number_in("plugins/tensorrt.py", r'_VERSION = "(\d+)"'),
        number_in("plugins/csrc/tensorrt/operator_plugin.h", r'kVersion = "(\d+)"'),
    },
    {
        number_in("plugins/kernels/cpu.py", r"_ABI = (\d+)"),
        number_in("plugins/csrc/cpu/selective_scan_c.cpp", r"abi_version\(\) \{ return (\d+)"),
    },
    {number_in("runtime/cpp/src/engine_library.h", r"kInterface = (\d+)")},
    {number_in("runtime/cpp/CMakeLists.txt", r"SOVERSION (\d+)")},
]


def test_versions_are_those_of_the_sources():
    page = (ROOT / "docs/dev/versions-and-formats.md").read_text()
    rows = re.findall(r"^\| .*? \| ([\d.]+) \|", page, flags=re.M)
    assert [{row} for row in rows] == NUMBERS


def test_the_lint_before_commits_is_that_of_make():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.M)
    assert recipe
    # The last one is given its files by `git ls-files`, or by pre-commit.
    make = [line.rpartition("xargs ")[2].strip() for line in recipe[1].splitlines()]
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert [line.replace("$(BIN)", ".venv/bin") for line in make] == hooks


@pytest.mark.full
def test_the_first_commands_of_contributing_run(tmp_path):
    page = (ROOT / "CONTRIBUTING.md").read_text()
    first, *rest = re.search(r"```sh\n(.*?)```", page, flags=re.S)[1].splitlines()
    assert first == "git clone REPOSITORY tfanet && cd tfanet" and rest
    checkout(tmp_path / "tfanet")
    done = subprocess.run(
        ["sh", "-ec", "\n".join(rest)], cwd=tmp_path / "tfanet", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d+ passed", done.stdout)
