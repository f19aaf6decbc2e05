"""Files and folders that appear whole or not at all.

What is written grows under the name `.NAME.RANDOM.partial` beside its place, locked as long as its
writer lives, and takes its place in one step at the end. What a killed writer leaves is recognised
by its name and by its lock, which nobody holds any more.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "EXCHANGE",
    "NOREPLACE",
    "claim_folder",
    "lock",
    "move",
    "renameat2",
    "sync",
    "whole_file",
]

NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2


@contextmanager
def whole_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A file to fill, which becomes `target` when the block ends without an error.

    Raises FileExistsError where something stands there without `overwrite`, if the system can tell.
    """
    part, handle = _claim(target, folder=False)
    try:
        yield part
        move(part, target, overwrite=overwrite)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def claim_folder(target: Path) -> tuple[Path, int]:
    """A folder of its own beside `target`, and the descriptor that keeps it locked until closed."""
    return _claim(target, folder=True)


def _claim(target: Path, *, folder: bool) -> tuple[Path, int]:
    place: dict[str, Any] = {
        "prefix": f".{target.name}.",
        "suffix": ".partial",
        "dir": target.parent,
    }
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(**place))
        else:
            opened, name = tempfile.mkstemp(**place)
            os.close(opened)
            path = Path(name)
        handle = lock(path, if_possible=True)
        if handle is not None:
            return path, handle  # else another writer's sweep took it before it was locked


def move(part: Path, target: Path, *, overwrite: bool = True) -> None:
    """Give a finished file its place, on the same file system, in one step that outlives a crash.

    Raises FileExistsError where something stands there without `overwrite`, if the system can tell.
    """
    sync(part)
    part.chmod(0o644)  # tempfile makes it private
    if overwrite or not renameat2(part, target, NOREPLACE):
        os.replace(part, target)


def renameat2(one: Path, other: Path, flag: int) -> bool:
    """Linux's renameat2; False where this system or file system has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here = -100  # AT_FDCWD
    if function(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def sync(path: Path) -> None:
    """Have a file, or a directory's list of names, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(path: Path, *, if_possible: bool = False) -> int | None:
    """A descriptor that locks a path; None where another process holds the lock, or it is gone.

    On a file system without locks None too; with `if_possible` a descriptor that locks nothing.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except OSError as error:
        mine = if_possible and not isinstance(error, BlockingIOError)
    if mine and os.path.lexists(path) and os.path.samestat(os.fstat(handle), os.lstat(path)):
        return handle
    os.close(handle)
    return None
