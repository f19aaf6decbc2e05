"""The bundle: a directory with a manifest, two ONNX graphs and a tokenizer, and every check on it.

`export` writes what `Manifest` describes; every runtime opens a bundle through `Bundle.open`, which
trusts nothing in it: sizes and SHA-256 of all files are compared before one of them is used, and
the bytes that were compared are the bytes that are used: no file is read a second time.

The digest of a bundle is the SHA-256 of the bytes of manifest.json, as 64 hexadecimal digits. The
manifest lists the SHA-256 of every other file, so this one number stands for the whole bundle. The
manifest is written in one canonical form (sorted keys, two spaces, ASCII, nothing that depends on
the time), and its bytes are compared, not what they parse to: so no second spelling of a number or
a key has the same digest, C needs no printer of numbers, and `sha256sum manifest.json` prints it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from tfanet.errors import GateError, InputError
from tfanet.runtime.bundle.manifest import (
    FILES,
    PRECISIONS,
    SCHEMA_VERSION,
    BundleError,
    Manifest,
)
from tfanet.runtime.bundle.onnx_file import check_self_contained
from tfanet.runtime.shipped import SHIPPED

__all__ = [
    "FILES",
    "MANIFEST",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "TIMING",
    "Bundle",
    "BundleError",
    "Manifest",
    "file_facts",
    "sha256",
    "verify",
]

MANIFEST = "manifest.json"
TIMING = "timing.json"  # beside it, and not in it: what an export measured, which nothing reads
MAX_MANIFEST_BYTES = 1 << 20
MAX_DEPTH = 64  # a manifest has 6


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its absolute path, its checked manifest and its digest."""

    path: Path
    manifest: Manifest
    digest: str = ""  # of one that is still being written
    _waiting: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        digest: str | None = None,
        verify: bool = True,
        engines: bool = True,
        later: Collection[str] = (),
    ) -> Bundle:
        """Read and check a bundle.

        Args:
            path: the directory. digest: what `tfanet info` printed of the bundle that is meant.
            verify: compare every file's SHA-256 too (default). Without it, still: every file is
                there, is the bundle's own, of the right size, and no ONNX file keeps tensors in
                another file. engines: look at their files too; without, one that is damaged can be
                mended. later: names of files of which `read` compares the SHA-256, so that they are
                read once; `check_unread` compares the rest of them.

        Raises:
            InputError: for a digest that is none. BundleError: naming the file or field that is
                wrong and what to do.
        """
        _check_digest(digest)
        root = _root(path)
        for last in (False, False, True):
            content = _read_manifest(root)
            try:
                bundle = cls._parsed(root, content, digest)
                bundle._check_files(None if engines else FILES, verify, later)
                break
            except BundleError:
                # Where an engine is added in this moment, its new manifest is read.
                if last or _read_manifest(root) == content:
                    raise
        return bundle

    @classmethod
    def listed(cls, path: str | Path) -> Bundle:
        """A bundle by its manifest alone: no file that it lists is looked at.

        Raises BundleError where that is no manifest of this version.
        """
        root = _root(path)
        return cls._parsed(root, _read_manifest(root), None)

    @classmethod
    def _parsed(cls, root: Path, content: bytes, digest: str | None) -> Bundle:
        found, path = hashlib.sha256(content).hexdigest(), root / MANIFEST
        if digest is not None and digest.lower() != found:
            raise BundleError(_another(path, found, digest))
        try:
            data = json.loads(content.decode("utf-8-sig"), parse_constant=_no_constant)
            _check_depth(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} is not JSON ({error}): export again") from error
        return cls(root, Manifest.from_dict(data, path), found)

    def file(self, name: str) -> Path:
        """Absolute path of one of the bundle's files; `read` gives its checked bytes."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path} holds no {name}: it holds {sorted(self.manifest.files)}"
            )
        return self.path / name

    def read(self, name: str) -> bytes:
        """The bytes of one of the bundle's files, after comparison with the manifest.

        They are read once into memory, so that what is used is what was compared, whatever becomes
        of the file. Raises BundleError where they are not what the manifest says.
        """
        self.file(name)
        content = self._verify(name, self.manifest.files[name], True, True)
        self._waiting.discard(name)
        assert content is not None
        return content

    def check_unread(self) -> None:
        """Compare the files that were left for `read` and have not been read."""
        self._check_files(sorted(self._waiting), True)
        self._waiting.clear()

    def holds_engine(self, name: str) -> bool:
        """Whether there is an engine of this name, its files whole."""
        for record in self.manifest.engines:
            if record["name"] == name:
                try:
                    self._check_files(list(record["files"].values()), True)
                except BundleError:
                    return False
                return True
        return False

    def check_engines(self, *, besides: str) -> None:
        """Check all engines but one; raises BundleError that says how to mend a damaged one."""
        for record in self.manifest.engines:
            if record["name"] != besides:
                try:
                    self._check_files(list(record["files"].values()), True)
                except BundleError as error:
                    rest = record.get("rest", record["precision"])
                    raise BundleError(
                        f"{error}; or build that engine again (`tfanet engine --target "
                        f"{record['target']} --precision {rest}`)"
                    ) from None

    def _check_files(
        self, names: Sequence[str] | None, verify: bool, later: Collection[str] = ()
    ) -> None:
        """Side by side, where there are cores for it; the first that is wrong is reported."""
        files = self.manifest.files
        names = list(files) if names is None else names

        def check(name: str) -> None:
            self._verify(name, files[name], verify and name not in later, False)

        self._waiting.update(later)
        with ThreadPoolExecutor(max(1, min(8, len(names)))) as pool:
            for _ in pool.map(check, names):
                pass

    def _verify(
        self, name: str, expected: Mapping[str, Any], compare: bool, read: bool
    ) -> bytes | None:
        """Checks one file; its bytes where they are to be read."""
        path = self.path / name
        with _own_file(self.path, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["size"]:
                raise BundleError(
                    f"{path} has {size:,} bytes, the manifest says {expected['size']!r:.40}: it is "
                    "truncated or altered, copy the bundle again"
                )
            content = file.read(size) if read else None
            if compare:
                found = (
                    hashlib.file_digest(file, "sha256")
                    if content is None
                    else hashlib.sha256(content)
                )
                if found.hexdigest() != expected["sha256"]:
                    raise BundleError(
                        f"{path} does not match its SHA-256 in the manifest: it was altered or "
                        "damaged, copy the bundle again"
                    )
            if path.suffix == ".onnx":
                try:
                    check_self_contained(path, file if content is None else content)
                except InputError as error:
                    raise BundleError(str(error)) from error
        return content


def verify(path: str | Path, *, digest: str | None = None) -> Bundle:
    """A bundle of which every file is what its manifest says, and the manifest what `digest` says.

    Raises:
        GateError: naming all that differs. BundleError: where there is no bundle to compare.
        InputError: for a digest that is none.
    """
    _check_digest(digest)
    root = _root(path)
    content = _read_manifest(root)
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and digest.lower() != found:
        raise GateError(_another(root / MANIFEST, found, digest))
    bundle = Bundle._parsed(root, content, None)
    wrong = []
    for name in bundle.manifest.files:
        try:
            bundle._check_files([name], True)
        except BundleError as error:
            wrong.append(str(error))
    if wrong:
        raise GateError("; ".join(wrong))
    return bundle


def _another(path: Path, found: str, digest: str) -> str:
    return (
        f"{path} has the digest {found}, expected {digest.lower()}: it is another bundle, or it "
        "was altered; take the bundle from where you got the digest"
    )


def _check_digest(digest: str | None) -> None:
    if digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise InputError(
            f"digest is {digest!r:.80}: give the 64 hexadecimal digits that `tfanet info` prints"
        )


def _root(path: str | Path) -> Path:
    root = Path(path)
    if not root.is_dir():
        raise BundleError(f"{root} is not a bundle directory: make one with `tfanet export`")
    return root.resolve()


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST
    if not path.is_file():
        raise BundleError(f"{root} holds no {MANIFEST}: it is not a bundle")
    with _own_file(root, MANIFEST) as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            size = os.fstat(file.fileno()).st_size
            raise BundleError(f"{path} has {size:,} bytes, the limit is {MAX_MANIFEST_BYTES:,}")
    return content


def _check_depth(data: Any) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        lists = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in lists for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} times")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _own_file(root: Path, name: str) -> BufferedReader:
    """A file of a bundle, open, if it is a plain file of the bundle's own."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or len(pure.parts) != 1:
        raise BundleError(f"{root}: the file name {name!r:.300} leaves the bundle")
    path = _in_hub_cache(root / name)
    try:
        # Looked at before it is opened, for a device must not be opened at all; and again after,
        # for it may have been exchanged in between.
        _check_plain(path, os.lstat(path))
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_plain(path, os.fstat(handle))
            return open(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except BundleError:
        raise
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the bundle again, with all its files") from None
    except ValueError as error:  # a zero byte, or a character that no file name has
        raise BundleError(f"{root}: {name!r:.80} is no file name: export again") from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be opened ({error.strerror}): make it readable"
        ) from error


def _in_hub_cache(path: Path) -> Path:
    """Where the Hugging Face hub's cache keeps a file, or the path itself.

    A snapshot there holds links to ../../blobs/NAME, and only such links are followed.
    """
    repository = path.parent.parent.parent
    blobs = repository / "blobs"
    if path.parent.parent.name == "snapshots" and path.is_symlink() and not blobs.is_symlink():
        target = PurePosixPath(os.readlink(path))
        if target.parts[:-1] == ("..", "..", "blobs") and target.name != "..":
            return blobs / target.name
    return path


def _check_plain(path: Path, facts: os.stat_result) -> None:
    # Installers such as uv give the files of a package two names: here, and in their cache.
    links = facts.st_nlink > 1 and not path.is_relative_to(SHIPPED)
    if not stat.S_ISREG(facts.st_mode) or links:
        raise BundleError(f"{path} is a link or no regular file: a bundle holds its own files only")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest lists them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}
