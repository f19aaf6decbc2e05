"""Builds the native libraries with CMake; everything else is declared in setup.cfg."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class FreshBuild(build):
    """Begins with an empty folder, or modules of an earlier build would go into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildWithCMake(build_ext):
    """Puts the libraries into `tfanet/*/lib` of a wheel, `*/lib` of a checkout."""

    def run(self) -> None:
        if shutil.which("cmake") is None:
            raise SystemExit(
                "tfanet needs cmake and a C++17 compiler to build its scan kernel: install them "
                "(Debian: apt-get install cmake g++) and run the installation again"
            )
        editable = self.editable_mode or self.inplace
        prefix = ROOT if editable else Path(self.build_lib).resolve() / "tfanet"
        build = str(ROOT / "build" / "native")
        configure = ["-S", str(ROOT), "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
        subprocess.run(["cmake", *configure], check=True)
        subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", str(prefix)], check=True)

    def get_outputs(self) -> list[str]:
        return []


class WheelForAnyPython(bdist_wheel):
    """The libraries have a plain C interface: one wheel serves every Python 3 on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # Named only so that setuptools runs build_ext and tags the wheel with the platform.
    ext_modules=[Extension("tfanet.plugins.lib", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": BuildWithCMake, "bdist_wheel": WheelForAnyPython},
)
