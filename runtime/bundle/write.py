"""Files and bundles on disk: whole or not at all, and nothing of the user's is lost.

What is written grows under the name `.NAME.RANDOM.partial` beside its place, locked as long as its
writer lives, and takes its place in one step at the end. What killed writers left behind is told by
its name and by the lock that nobody holds, and is removed by the next one. Needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfanet.errors import InputError
from tfanet.runtime.bundle.leftovers import (
    abandoned,
    engine_work,
    identity,
    is_own,
    lock,
    locked,
    others,
    own_names,
    sweep,
    writing,
)
from tfanet.runtime.bundle.read import MANIFEST, BundleError

__all__ = [
    "check_folder",
    "check_output",
    "check_target",
    "new_bundle",
    "new_file",
    "new_folder",
    "sync",
]

_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
MAX_NAME = 200  # bytes, of the 255 that a name may have beside its random part


def check_target(output: str | Path, *, overwrite: bool = False) -> Path:
    """The place of a new bundle, if one can be written there; what killed writers left is removed.

    Call it before work begins. A bundle that a killed writer had moved aside is put back.

    Raises:
        InputError: where a file, a link, a mount point, or a directory that is no bundle or holds
            other files too, stands there; where a bundle does, without `overwrite`; or where
            nothing can be written.
    """
    target = _place(output)
    sweep(target)
    if os.path.lexists(target):
        _check_replaceable(target, overwrite)
    return target


def check_output(output: str | Path, *, overwrite: bool = False) -> Path:
    """The place of a new file, if it can be written there; the directory must exist.

    Raises:
        InputError: where a directory or a link stands there, or a file without `overwrite`; where
            the directory is missing or nothing can be written.
    """
    target = _place(output)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: its directory does not exist; create it first")
    if target.is_dir():
        raise InputError(f"{target} is a directory: name a file")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: name another file, or give --overwrite")
    sweep(target)
    return target


def check_folder(output: str | Path) -> Path:
    """A directory to write files into, if that is possible; raises InputError if not."""
    target = Path(output).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a directory")
    return _writable(target, target)


def _place(output: str | Path) -> Path:
    """An absolute path whose parent can be written to and that is no link."""
    try:
        valid = bool(os.fsencode(output)) and "\0" not in str(output)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise InputError(f"the output is {str(output)!r:.80}: name a path")
    target = Path(output).absolute()
    if target.name in ("", ".."):
        target = target.resolve()
    if len(os.fsencode(target.name)) > MAX_NAME:
        raise InputError(
            f"the name {target.name[:40]}... has more than {MAX_NAME} bytes: shorten it"
        )
    target = target.parent.resolve() / target.name
    if target.is_symlink():
        raise InputError(
            f"{target} is a symbolic link to {os.readlink(target)}: name the place that it leads to"
        )
    return _writable(target, target.parent)


def _writable(target: Path, folder: Path) -> Path:
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {target}: {folder} is no directory, name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: {folder} is not writable for you")
    return target


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.is_dir():
        raise InputError(f"{target} is a file: name a directory for the bundle")
    if _is_mount(target):
        raise InputError(f"{target} is a mount point, which cannot be replaced: name a path in it")
    if Path.cwd().is_relative_to(target):
        raise InputError(f"{target} holds the current directory: name another one for the bundle")
    if not any(target.iterdir()):
        return
    foreign = others(target)
    if foreign is None:
        raise InputError(
            f"{target} is a directory that holds no bundle of tfanet's: it is not replaced, name "
            "another one"
        )
    if foreign:
        raise InputError(
            f"{target} holds {foreign[0].name!r}, which is not the bundle's: it is not replaced; "
            "move that file away, or name another directory"
        )
    for path in engine_work(target):
        with abandoned(path) as free:
            if not free:
                raise InputError(f"an engine is being built in {target}: wait until it is done")
    if not overwrite:
        raise InputError(
            f"{target} holds a bundle: name another directory, or give --overwrite (overwrite=True)"
        )


def _is_mount(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    try:  # a directory that is mounted at another place of the same file system
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    places = {
        re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), x.split()[4]) for x in lines
    }
    return os.fsencode(path) in places


@contextmanager
def new_bundle(output: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty directory to fill, which becomes `output` when the block ends without an error.

    A bundle that is there is replaced with `overwrite`: exchanged in one step where the system can,
    so that there is the old one or the new one at every moment, and removed then, file by file of
    its list.

    Raises:
        InputError: as `check_target`.
    """
    target = check_target(output, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as work:
        yield work
        for path in (*work.iterdir(), work):
            sync(path)
        work.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(work, target, overwrite)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to work in, which is removed at the end unless it was moved."""
    work, handle = _claimed(lambda **place: tempfile.mkdtemp(**place), target)
    own = identity(work)
    writing.add(own)
    try:
        yield work
    finally:
        with contextlib.suppress(FileNotFoundError):
            if identity(work) == own:
                shutil.rmtree(work, ignore_errors=True)
        writing.discard(own)
        os.close(handle)


@contextmanager
def new_file(output: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A file to fill, which becomes `output` when the block ends without an error.

    Raises:
        InputError: as `check_output`.
    """
    target = check_output(output, overwrite=overwrite)
    part, handle = _claimed(_empty_file, target)
    try:
        yield part
        sync(part)
        part.chmod(0o644)
        check_output(target, overwrite=overwrite)
        if overwrite or not _renameat2(part, target, _NOREPLACE):
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _claimed(make: Callable[..., str], target: Path) -> tuple[Path, int]:
    """A path of its own beside `target`, and the descriptor that keeps it locked."""
    while True:
        path = Path(make(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        handle = lock(path, or_not=True)
        if handle is not None:
            return path, handle  # else another writer's sweep took it before it was locked


def _empty_file(**place: Any) -> str:
    handle, name = tempfile.mkstemp(**place)
    os.close(handle)
    return name


def _move_into_place(work: Path, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        os.rename(work, target)
        sync(target.parent)
        return
    with locked(target):
        _check_replaceable(target, overwrite)  # again: it may have come, or changed, meanwhile
        if not any(target.iterdir()):
            os.rename(work, target)
            sync(target.parent)
            return
        old = work
        if not _renameat2(work, target, _EXCHANGE):
            old = work.with_suffix(".replaced")
            os.rename(target, old)
            os.rename(work, target)
        sync(target.parent)
        _remove_bundle(old)


def _renameat2(one: Path, other: Path, flag: int) -> bool:
    """Linux's renameat2; False where this system or file system has it not."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here = -100  # AT_FDCWD
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _remove_bundle(folder: Path) -> None:
    """Remove a bundle's own files, and the folder if nothing else is in it."""
    try:
        names = own_names(folder)
    except BundleError:
        names = set()
    # The manifest goes last: what is left of a removal that is killed can still be told.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        if is_own(path, names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        folder.rmdir()
    except OSError as error:
        warnings.warn(
            f"{folder} holds what came into the old bundle at the last moment ({error.strerror}): "
            "look at it, then remove it",
            stacklevel=2,
        )


def sync(path: Path) -> None:
    """Have a file, or a directory's list of names, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
