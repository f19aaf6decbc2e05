"""What setup.cfg cannot say: that a wheel begins with an empty folder, and how it is tagged."""

from __future__ import annotations

import shutil

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build


class FreshBuild(build):
    """Begins with an empty folder, or modules of an earlier build would go into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class WheelForAnyPython(bdist_wheel):
    """The libraries have a plain C interface: one wheel serves every Python 3 on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build": FreshBuild, "bdist_wheel": WheelForAnyPython})
