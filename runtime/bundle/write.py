"""Files and bundles on disk: whole or not at all, and nothing of the user's is lost.

Before work begins the place is checked, and what killed writers left there is removed
(`tfanet.files` says how it is recognised). Needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfanet import files
from tfanet.errors import InputError, StorageError
from tfanet.runtime.bundle.leftovers import (
    abandoned,
    engine_work,
    identity,
    is_own,
    locked,
    others,
    own_names,
    sweep,
    writing,
)
from tfanet.runtime.bundle.manifest import BundleError, Manifest
from tfanet.runtime.bundle.read import MANIFEST

__all__ = [
    "check_folder",
    "check_output",
    "check_target",
    "new_bundle",
    "new_file",
    "new_folder",
    "write_manifest",
]

MAX_NAME = 200  # bytes, of the 255 that a name may have beside its random part


def check_target(output: str | Path, *, overwrite: bool = False) -> Path:
    """The place of a new bundle, if one can be written there; what killed writers left is removed.

    Call it before work begins. A bundle that a killed writer had moved aside is put back.

    Raises:
        InputError: where a file, a link, a mount point, or a directory that is no bundle or holds
            other files too, stands there; or where a bundle does, without `overwrite`.
        StorageError: where nothing may be written.
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
            the directory is missing. StorageError: where nothing may be written.
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
    """A directory to write files into; raises InputError or StorageError where there can't be."""
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
        raise InputError(f"cannot write {target}: {folder} is not a directory: name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {target}: nothing may be written into {folder}")
    return target


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.is_dir():
        raise InputError(f"{target} is a file: name a directory for the bundle")
    if _is_mount(target):
        raise InputError(
            f"{target} is a mount point, which cannot be replaced: name a path inside it"
        )
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
            files.sync(path)
        work.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(work, target, overwrite)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to work in, which is removed at the end unless it was moved."""
    work, handle = files.claim_folder(target)
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
    with files.whole_file(target, overwrite=overwrite) as part:
        yield part
        check_output(target, overwrite=overwrite)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, in one step: with it, the files that it lists are a bundle."""
    with new_file(folder / MANIFEST, overwrite=True) as part:
        part.write_text(manifest.to_json(), encoding="utf-8")


def _move_into_place(work: Path, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        os.rename(work, target)
        files.sync(target.parent)
        return
    with locked(target):
        _check_replaceable(target, overwrite)  # again: it may have come, or changed, meanwhile
        if not any(target.iterdir()):
            os.rename(work, target)
            files.sync(target.parent)
            return
        old = work
        if not files.renameat2(work, target, files.EXCHANGE):
            old = work.with_suffix(".replaced")
            os.rename(target, old)
            os.rename(work, target)
        files.sync(target.parent)
        _remove_bundle(old)


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
