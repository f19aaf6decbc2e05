"""Copies of the checkout, to build and install in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from imports import ROOT

LINKED = ("calibration", "export", "plugins", "runtime")


def tracked() -> list[str]:
    """The files of the checkout that git knows or would add, links left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {name for name in listed.split("\0") if name}
    return sorted(name for name in names if os.path.isfile(ROOT / name))


def checkout(folder: Path) -> Path:
    """A copy of the checkout without anything that was built in it."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in LINKED:
        (folder / "tfanet" / name).symlink_to(f"../{name}")
    return folder
