"""A bundle's directory on disk: whole or not at all. Needs no PyTorch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfanet.errors import InputError
from tfanet.runtime.bundle import MANIFEST

__all__ = ["check_target", "new_bundle"]


def check_target(output: str | Path) -> None:
    """Raises InputError where a file, or a directory that is no bundle, stands at `output`."""
    target = Path(output).absolute()
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file: name a directory for the bundle")
    if any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise InputError(
            f"{target} is a directory that holds no bundle: it is not replaced, name another one"
        )


@contextmanager
def new_bundle(output: str | Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes `output` when the block ends without an error.

    A bundle that is there already is replaced.

    Raises:
        InputError: as `check_target`.
    """
    check_target(output)
    target = Path(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield work
        _move_into_place(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _move_into_place(work: Path, target: Path) -> None:
    """Rename the finished directory; an old bundle steps aside first, and is removed last."""
    for path in (*work.iterdir(), work):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    work.chmod(0o755)  # mkdtemp makes it private
    if not target.exists():
        work.rename(target)
        return
    aside = work.with_suffix(".replaced")
    target.rename(aside)
    work.rename(target)
    shutil.rmtree(aside)
