"""What killed writers left behind, and the locks that tell it from the work of living ones.

A writer holds a lock on what it writes as long as it lives; the system releases the lock when it
dies. What has a writer's name and content, and no lock, belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tfanet.files import lock
from tfanet.runtime.bundle.manifest import TARGETS
from tfanet.runtime.bundle.read import FILES, MANIFEST, TIMING, Bundle, BundleError, sha256

__all__ = [
    "abandoned",
    "engine_file",
    "engine_work",
    "identity",
    "is_own",
    "leftovers",
    "locked",
    "others",
    "own_names",
    "sweep",
    "sweep_engines",
    "writing",
]

_RANDOM = "(?:[a-z0-9_]{8}|[0-9]+)"  # as tempfile makes it, or a process id of earlier versions
_TARGETS = "|".join(map(re.escape, sorted(TARGETS, reverse=True)))
# Earlier versions named engines without their content, and their work without `.partial`.
_ENGINE = re.compile(rf"(?:text|image)\.(?:{_TARGETS})-[a-z0-9-]+?(?:\.([0-9a-f]{{16}}))?\.engine")
_ENGINE_WORK = re.compile(rf"\.(?:{_TARGETS})-[a-z0-9-]+\.{_RANDOM}(?:\.partial)?")
_MANIFEST_WORK = re.compile(rf"\.{re.escape(MANIFEST)}\.(?:{_RANDOM}\.)?partial")
_WORK_FILES = {*FILES, MANIFEST, TIMING, "model.onnx", "plan"}
writing: set[tuple[int, int]] = set()  # folders of this process, by device and inode


def own_names(folder: Path) -> set[str]:
    """The names of the files that a bundle is written as; raises BundleError where it is none."""
    manifest = Bundle.listed(folder).manifest
    quantised = {TIMING} if "certificate" in manifest.parity else set()
    return {*manifest.files, MANIFEST, *quantised}


def others(folder: Path) -> list[Path] | None:
    """What is in a bundle's folder and not the bundle's own; None where there is no bundle."""
    try:
        names = own_names(folder)
    except BundleError:
        return None
    return [path for path in sorted(folder.iterdir()) if not is_own(path, names)]


def is_own(path: Path, names: set[str]) -> bool:
    """Whether tfanet wrote it: a file of these names or an engine, or what a killed build left."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return bool(_ENGINE_WORK.fullmatch(path.name)) and _is_work(path)
    own = path.name in names or _ENGINE.fullmatch(path.name) or _MANIFEST_WORK.fullmatch(path.name)
    return path.is_file() and bool(own)


def _is_work(folder: Path) -> bool:
    """Whether a folder holds nothing but what a writer puts into its `.partial` one."""
    for path in folder.iterdir():
        if path.is_symlink():
            return False
        if path.is_dir():
            known = path.name.startswith(".") and _is_work(path)
        else:
            known = path.suffix == ".engine" or is_own(path, _WORK_FILES)
        if not known:
            return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder, of this and other processes; others wait for it.

    The folder is the one that has the name when the lock is got.
    """
    while True:
        if identity(folder) in writing:  # nobody else's yet
            yield
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}): let no other process write into it",
                stacklevel=3,
            )
        if os.path.exists(folder) and os.path.samestat(os.fstat(handle), os.stat(folder)):
            break
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def identity(path: Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether no living process writes there; none begins to while the block runs."""
    handle = lock(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _left_beside(target: Path) -> list[Path]:
    """What writers of `target`, living or killed, have beside it."""
    name = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}\.(?:partial|replaced)")
    if not target.parent.is_dir():
        return []
    found = [path for path in sorted(target.parent.iterdir()) if name.fullmatch(path.name)]
    return [path for path in found if _may_remove(path)]


def _may_remove(path: Path) -> bool:
    """Whether a path of such a name is one that a writer of this user could have made."""
    if path.is_symlink() or path.lstat().st_uid != os.geteuid():
        return False
    return _is_work(path) if path.is_dir() else path.is_file()


def sweep(target: Path) -> None:
    """Remove what killed writers left; put a bundle back that was moved aside and not replaced."""
    for path in _left_beside(target):
        with abandoned(path) as free:
            if not free:
                continue
            if path.suffix == ".replaced" and not os.path.lexists(target):
                with contextlib.suppress(BundleError):
                    Bundle.open(path)
                    os.rename(path, target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def engine_work(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if _ENGINE_WORK.fullmatch(path.name) and path.is_dir() and _may_remove(path)
    ]


def engine_file(graph: str, engine: str, sha256: str) -> str:
    """An engine's file name, which tells its content: no file is ever written over another."""
    return f"{graph.removesuffix('.onnx')}.{engine}.{sha256[:16]}.engine"


def sweep_engines(folder: Path, listed: Collection[str]) -> None:
    """Remove what killed builds left in a bundle: call it with the bundle locked.

    Args:
        listed: the files in the manifest. Another engine is removed only if its name tells its
            content, that is if it was written here.
    """
    sweep(folder / MANIFEST)
    for path in engine_work(folder):
        with abandoned(path) as free:
            if free:
                shutil.rmtree(path)
    for path in sorted(folder.iterdir()):
        found = _ENGINE.fullmatch(path.name)
        if found is None or found[1] is None or path.name in listed or path.is_symlink():
            continue
        if path.is_file() and sha256(path).startswith(found[1]):
            path.unlink()


def leftovers(bundle: str | Path) -> dict[str, list[Path]]:
    """What a bundle's folder and its neighbourhood hold besides the bundle.

    Returns:
        "killed": what killed exports and builds left, which the next one removes or puts back.
        "foreign": files in the folder that the manifest does not list, which nothing reads.
    """
    target = Path(bundle).absolute()
    beside, inside, foreign = _left_beside(target), [], []
    if (target / MANIFEST).is_file():
        inside = [*_left_beside(target / MANIFEST), *engine_work(target)]
        known = {*own_names(target), *(path.name for path in inside)}
        foreign = [path for path in sorted(target.iterdir()) if path.name not in known]
    killed = []
    for path in (*beside, *inside):
        with abandoned(path) as free:
            if free:
                killed.append(path)
    return {"killed": killed, "foreign": foreign}
