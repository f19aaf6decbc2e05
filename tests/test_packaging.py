"""Wheels, source distributions and editable installations hold the packages, each file once.

They are built from a copy of the checkout. The quick tests leave the C++ libraries out; with the
full-size tests they are built, twice.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lazy_loader
import pytest
from checkouts import LINKED, checkout, tracked
from imports import ROOT, modules, packages

LIMIT, MOST_OF_LIBRARIES = 25_000_000, 4_000_000  # bytes of a wheel, and what they take in it
LIBRARIES = {
    "tfanet/plugins/lib/libtfanet_cpu.so",
    "tfanet/plugins/lib/libtfanet_ort.so",
    "tfanet/runtime/lib/libtfanet_runtime.so",
}


pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
NO_LIBRARIES = {"cmake.define.TFANET_LIBRARIES": "OFF"}


def run_hook(what: str, source: Path, output: Path, settings: dict[str, str]) -> Any:
    """One hook of the build backend, as pip calls it; its last line names the file it wrote."""
    output.mkdir(exist_ok=True)
    code = (
        "import ast, sys; from scikit_build_core.setuptools import build_meta; "
        f"print('\\n' + build_meta.build_{what}(sys.argv[1], ast.literal_eval(sys.argv[2])))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(output), repr(settings)],
        cwd=source,
        capture_output=True,
        text=True,
    )


def build(what: str, source: Path, output: Path, settings: dict[str, str]) -> Path:
    done = run_hook(what, source, output, settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return output / done.stdout.splitlines()[-1]


def contents(archive: Path) -> dict[str, bytes]:
    """File name to bytes; a name that is there twice is an error."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            assert name not in found, f"{name} is in {archive.name} twice"
            found[name] = wheel.read(name)
    return found


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


@dataclass(frozen=True)
class Built:
    """What was built without the C++ libraries: of the checkout, and of what is made for users."""

    wheel: dict[str, bytes]
    sdist: dict[str, bytes]
    unpacked: Path  # the source distribution, after a wheel was built in it
    wheel_bytes: int


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    work = tmp_path_factory.mktemp("packaging")
    source = checkout(work / "checkout")
    unpacked = unpack(build("sdist", source, work / "sdist", {}), work / "unpacked")
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    sdist = {str(path.relative_to(unpacked)): path.read_bytes() for path in files}
    # A module that was moved since this folder's last build, which must not come back.
    for folder in (
        "build/lib",
        f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}",
    ):
        (unpacked / folder / "tfanet").mkdir(parents=True)
        (unpacked / folder / "tfanet/old.py").write_text("")
    # Nor is a library taken that was built there before: who knows when, and how.
    (unpacked / "plugins/lib").mkdir()
    (unpacked / "plugins/lib/libtfanet_old.so").write_text("")
    wheel = build("wheel", unpacked, work / "wheel", NO_LIBRARIES)
    return Built(contents(wheel), sdist, unpacked, wheel.stat().st_size)


def test_setup_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = [*packages(), "tfanet.assets"]
    assert listed == sorted(folders)


def test_a_wheel_holds_every_module_stub_and_asset_once(built):
    expected = {
        f"tfanet/{name}" if name.split("/")[0] in LINKED else name
        for name in tracked()
        if name.split("/")[0] in (*LINKED, "tfanet")
        and "/csrc/" not in name
        and not name.startswith("runtime/cpp/")
    }
    sources = {name for name in built.wheel if name.startswith("tfanet/plugins/csrc/")}
    facts = {name for name in built.wheel if ".dist-info/" in name}
    assert len(modules()) > 100
    assert built.wheel.keys() - sources - facts == expected


def test_a_wheel_holds_what_nvrtc_compiles_on_the_users_machine(built):
    folder = "tfanet/plugins/csrc/cuda/"
    waiting = [name for name in built.wheel if name.endswith("_entry.cu")]
    assert len(waiting) >= 2
    seen = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for included in re.findall(r'^#include "(.+)"', built.wheel[name].decode(), flags=re.M):
            path = os.path.normpath(os.path.join(os.path.dirname(name), included))
            assert path in built.wheel, f"{name} includes {path}, which is not in the wheel"
            if path not in seen:
                waiting.append(path)
    assert any(name.startswith(folder) and name.endswith(".cuh") for name in seen)


def test_a_source_distribution_is_the_repository(built):
    found = built.sdist.keys()
    added = {name for name in found if name == "PKG-INFO" or name.startswith("tfanet.egg-info/")}
    assert found - added == set(tracked())
    for name in found - added - {"setup.cfg"}:  # setuptools adds a tag to this one
        assert built.sdist[name] == (ROOT / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["checkout", "sdist"])
def test_an_editable_installation_finds_every_module(built, kind, tmp_path):
    source = checkout(tmp_path / "checkout") if kind == "checkout" else built.unpacked
    wheel = build("editable", source, tmp_path / "wheel", NO_LIBRARIES)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import site, sys, importlib.util
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[3])  # for what tfanet itself needs; its installation is not read
for name in sys.argv[4:]:
    found = importlib.util.find_spec(name)
    assert found and found.origin.startswith(sys.argv[2]), (name, found)
"""
    needed = str(Path(lazy_loader.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-ISc", code, str(tmp_path / "site"), str(source), needed, *modules()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_the_licence_and_stays_small(built):
    for name in ("LICENSE", "NOTICE"):
        (held,) = (file for file in built.wheel if file.endswith(f".dist-info/licenses/{name}"))
        assert built.wheel[held] == (ROOT / name).read_bytes()
    assert built.wheel_bytes < LIMIT - MOST_OF_LIBRARIES


@pytest.mark.parametrize(
    ("fetched", "given", "header"),
    [
        ("TFANET_FETCH_ONNXRUNTIME_HEADERS", "ONNXRUNTIME_INCLUDE_DIR", "onnxruntime_c_api.h"),
        ("TFANET_FETCH_JSON_HEADERS", "TFANET_JSON_INCLUDE_DIR", "nlohmann/json.hpp"),
    ],
)
def test_there_is_no_wheel_without_the_libraries(built, tmp_path, fetched, given, header):
    """Where headers are missing the build says what to do, and leaves nothing to install."""
    others = {"ONNXRUNTIME_INCLUDE_DIR": "onnxruntime_c_api.h"}
    others |= {"TFANET_JSON_INCLUDE_DIR": "nlohmann/json.hpp"}
    settings = {f"cmake.define.{fetched}": "OFF", "cmake.define.TFANET_CUDA": "OFF"}
    for name in others.keys() - {given}:
        place = tmp_path / "include" / others[name]
        place.parent.mkdir(parents=True)
        place.touch()
        settings[f"cmake.define.{name}"] = str(tmp_path / "include")
    # Those of this machine are not looked at.
    for kind in ("CMAKE_SYSTEM_PATH", "SYSTEM_ENVIRONMENT_PATH", "CMAKE_ENVIRONMENT_PATH"):
        settings[f"cmake.define.CMAKE_FIND_USE_{kind}"] = "OFF"
    done = run_hook("wheel", built.unpacked, tmp_path / "wheel", settings)
    said = " ".join(f"{done.stdout}{done.stderr}".split())
    assert done.returncode != 0 and f"No {header} is on this system" in said
    assert f"--config-settings=cmake.define.{given}=DIR" in said
    assert list((tmp_path / "wheel").iterdir()) == []


@pytest.mark.full
def test_with_libraries_both_wheels_are_the_same_too(tmp_path):
    """But for code for GPUs: nvcc writes the names of its temporary files into it."""
    settings = {"cmake.define.TFANET_CUDA": "OFF"}
    source = checkout(tmp_path / "checkout")
    sdist = unpack(build("sdist", source, tmp_path / "sdist", {}), tmp_path / "unpacked")
    first = build("wheel", source, tmp_path / "wheel", settings)
    wheel = contents(first)
    again = contents(build("wheel", sdist, tmp_path / "wheel-of-sdist", settings))
    assert wheel.keys() >= LIBRARIES
    assert sum(len(zlib.compress(wheel[name])) for name in LIBRARIES) < MOST_OF_LIBRARIES
    assert first.name.split("-")[2:4] == ["py3", "none"]
    assert again.keys() == wheel.keys()
    assert [name for name, content in wheel.items() if again[name] != content] == []


@pytest.mark.full
def test_the_source_distribution_is_built_and_runs_where_nothing_else_is(tmp_path):
    """pip alone, in an empty environment: it gets what builds it, and then what runs it."""
    sdist = build("sdist", checkout(tmp_path / "checkout"), tmp_path / "sdist", {})
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    commands = [
        [python, "-m", "pip", "install", str(sdist)],
        [python, "-m", "pip", "check"],
        [tmp_path / "venv/bin/tfanet", "demo", "--output", "seen", "--json"],
    ]
    for command in commands:
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(done.stdout)
    assert result["backend"]["scan"] == "operator library" and result["pixels"] > 0
    assert str(tmp_path / "venv") in result["backend"]["op_library"]
    assert (tmp_path / "seen/overlay.png").is_file()
    assert not list((tmp_path / "venv").rglob("torch"))
