"""Wheels, source distributions and editable installations hold the packages, each file once.

They are built from a copy of the checkout. The quick tests leave the C++ libraries out, by a cmake
that does nothing; with the full-size tests they are built, twice.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import lazy_loader
import pytest
from checkouts import LINKED, checkout, tracked
from imports import ROOT, modules, packages

LIBRARIES = {
    "tfanet/plugins/lib/libtfanet_cpu.so",
    "tfanet/plugins/lib/libtfanet_ort.so",
    "tfanet/runtime/lib/libtfanet_runtime.so",
}


def build(what: str, source: Path, output: Path, cmake: Path | None = None) -> Path:
    """Runs one hook of the build backend, as pip does, and returns the file that it wrote."""
    output.mkdir(exist_ok=True)
    path = os.environ["PATH"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from setuptools import build_meta; "
            f"print('\\n' + build_meta.build_{what}(sys.argv[1]))",
            str(output),
        ],
        cwd=source,
        env={**os.environ, "PATH": f"{cmake}{os.pathsep}{path}" if cmake else path},
        capture_output=True,
        text=True,
    )
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
    """What was built without the C++ libraries."""

    wheel: dict[str, bytes]
    sdist: dict[str, bytes]
    unpacked: Path  # the source distribution, after a wheel was built in it
    wheel_of_sdist: dict[str, bytes]
    no_cmake: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    work = tmp_path_factory.mktemp("packaging")
    no_cmake = work / "bin"
    no_cmake.mkdir()
    (no_cmake / "cmake").write_text("#!/bin/sh\nexit 0\n")
    (no_cmake / "cmake").chmod(0o755)
    source = checkout(work / "checkout")
    unpacked = unpack(build("sdist", source, work / "sdist"), work / "unpacked")
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    sdist = {str(path.relative_to(unpacked)): path.read_bytes() for path in files}
    # A module that was moved since this folder's last build, which must not come back.
    for folder in (
        "build/lib",
        f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}",
    ):
        (source / folder / "tfanet").mkdir(parents=True)
        (source / folder / "tfanet/old.py").write_text("")
    wheel = contents(build("wheel", source, work / "wheel", no_cmake))
    again = contents(build("wheel", unpacked, work / "wheel-of-sdist", no_cmake))
    return Built(wheel, sdist, unpacked, again, no_cmake)


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


def test_a_wheel_made_from_the_source_distribution_is_the_same(built):
    assert built.wheel_of_sdist == built.wheel


@pytest.mark.parametrize("kind", ["checkout", "sdist"])
def test_an_editable_installation_finds_every_module(built, kind, tmp_path):
    source = checkout(tmp_path / "checkout") if kind == "checkout" else built.unpacked
    wheel = build("editable", source, tmp_path / "wheel", built.no_cmake)
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


@pytest.mark.full
def test_with_libraries_both_wheels_are_the_same_too(tmp_path):
    """But for code for GPUs: nvcc writes the names of its temporary files into it."""
    without_cuda = tmp_path / "bin"
    without_cuda.mkdir()
    script = f'[ "$1" = -S ] && set -- "$@" -DTFANET_CUDA=OFF\nexec {shutil.which("cmake")} "$@"\n'
    (without_cuda / "cmake").write_text(f"#!/bin/sh\n{script}")
    (without_cuda / "cmake").chmod(0o755)
    source = checkout(tmp_path / "checkout")
    sdist = unpack(build("sdist", source, tmp_path / "sdist"), tmp_path / "unpacked")
    wheel = contents(build("wheel", source, tmp_path / "wheel", without_cuda))
    again = contents(build("wheel", sdist, tmp_path / "wheel-of-sdist", without_cuda))
    assert wheel.keys() >= LIBRARIES
    assert again.keys() == wheel.keys()
    assert [name for name, content in wheel.items() if again[name] != content] == []
