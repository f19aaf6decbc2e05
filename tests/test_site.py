"""The site of docs/: every page has its place, and MkDocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from imports import ROOT
from site_hooks import ELSEWHERE, RESULTS, public_names

CONFIG = (ROOT / "mkdocs.yml").read_text()
NAV = re.findall(r"^ +- (\S+\.md)$", CONFIG[CONFIG.index("\nnav:") :], flags=re.M)
PACKAGES = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference.md").read_text(), flags=re.M)


def test_every_page_has_one_place():
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(NAV) == sorted([*pages, *ELSEWHERE])
    figures = (ROOT / "docs/figures.md").read_text()
    assert all(f"](../{name})" in figures for name in RESULTS)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_names_what_the_stub_names(package):
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi")
    names = public_names(package)
    told = re.findall(r"import (\w+)", stub.read_text()) if stub.is_file() else []
    assert [name.rpartition(".")[2] for name in names] == told
    for module in {name.rpartition(".")[0] for name in names} or {package}:
        assert importlib.util.find_spec(module) is not None


def test_nothing_is_loaded_from_elsewhere():
    assert "\n  font: false\n" in CONFIG
    assert not re.search(r"https?://|extra_javascript|extra_css", CONFIG)


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'tfanet[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", page.read_text())
        for tag in loaded:
            assert 'rel="canonical"' in tag or not re.search(r'(?:src|href)="https?:', tag), tag
    reference = (tmp_path / "reference.html").read_text()
    for package in PACKAGES:
        assert all(f'id="{name}"' in reference for name in public_names(package))
