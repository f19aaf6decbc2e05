"""The bundle: a directory with a manifest, two ONNX graphs and a tokenizer, and every check on it.

`export` writes what `Manifest` describes; every runtime opens a bundle through `Bundle.open`, which
trusts nothing in it: sizes and SHA-256 of all files are compared before one of them is used, and
what is used are the bytes that were compared, never the file read a second time.

The digest of a bundle is the SHA-256 of the bytes of manifest.json, as 64 hexadecimal digits. The
manifest lists the SHA-256 of every other file, so this one number stands for the whole bundle. The
manifest is written in one canonical form (sorted keys, two spaces, ASCII, nothing that depends on
the time), and its bytes are compared, not what they parse to: so no second spelling of a number or
a key has the same digest, C needs no printer of numbers, and `sha256sum manifest.json` prints it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from tfanet import __version__
from tfanet.errors import GateError, InputError
from tfanet.runtime.onnx_file import check_self_contained

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
FILES = ("image.onnx", "text.onnx", "tokenizer.json")
SCHEMA_VERSION = 1
PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")  # of engines, the fastest first
MAX_MANIFEST_BYTES = 1 << 20
MAX_DEPTH = 64  # a manifest has 6


class BundleError(InputError):
    """A bundle that is incomplete, altered, of another version, or that points outside itself."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, field by field.

    Attributes:
        schema_version: 1. tool: name and version of the writer.
        model: preset and config. inputs, outputs: per graph, name, dtype and shape.
        preprocessing: size (H, W), resize, mean, std, color.
        text: length, pad_id, sos_id, eos_id. threshold: a pixel is set where its logit is above.
        scan: domain, op, version, function, calls, and how many of these are SS2D nodes (fused).
        precision: of the graphs, fp32, int8 or fp8.
        dynamic_batch: 1 or any batch.
        versions: of the libraries that wrote it. files: size and sha256 by name.
        engines: built from the graphs, each with name, target, precision, library, version,
            profile, compute and files, the engine file of each graph.
        parity: largest relative error and changed pixels against PyTorch, and the cases; of an
            INT8 bundle those of the FP32 one, and its certificate.
    """

    schema_version: int
    tool: dict[str, str]
    model: dict[str, Any]
    inputs: dict[str, list[dict[str, Any]]]
    outputs: dict[str, list[dict[str, Any]]]
    preprocessing: dict[str, Any]
    text: dict[str, int]
    threshold: float
    scan: dict[str, Any]
    precision: str
    dynamic_batch: bool
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    engines: list[dict[str, Any]]
    parity: dict[str, Any]

    @property
    def preset(self) -> str:
        """The model's preset, empty where the manifest names none."""
        name = self.model.get("preset")
        return name if isinstance(name, str) else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def to_json(self) -> str:
        """The text of `manifest.json`: sorted keys, no NaN, nothing that depends on the time."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Any, path: Path) -> Manifest:
        """Raises BundleError for a wrong version, a missing or unknown field, or a wrong type."""
        if not isinstance(data, Mapping):
            raise BundleError(f"{path} holds a {type(data).__name__}: expected a JSON object")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            tool = data.get("tool")
            writer = tool.get("version") if isinstance(tool, Mapping) else None
            raise BundleError(
                f"{path} has schema version {version!r:.20} (of tfanet {writer!r:.20}), tfanet "
                f"{__version__} here reads {SCHEMA_VERSION}: export the model again with it"
            )
        types = {field.name: _TYPES[str(field.type).split("[")[0]] for field in fields(cls)}
        for name, kind in types.items():
            if name not in data:
                raise BundleError(f"{path} lacks the field '{name}': export the model again")
            if not isinstance(data[name], kind) or (
                isinstance(data[name], bool) and kind is not bool
            ):
                raise BundleError(
                    f"{path}: '{name}' is {data[name]!r:.60}, which has the wrong type"
                )
        unknown = sorted(set(data) - set(types))
        if unknown:
            raise BundleError(f"{path} has the unknown field '{unknown[0]:.80}': it was edited")
        manifest = cls(**data)
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """The values that the runtime computes with."""
        pre, text = self.preprocessing, self.text
        sizes: Any = pre.get("size")
        channels: Any = (pre.get("mean"), pre.get("std"))
        if not (_numbers(sizes, 2, int) and all(0 < side <= 16384 for side in sizes)):
            raise BundleError(f"{path}: preprocessing.size is {sizes!r:.60}, expected [H, W]")
        if not all(_numbers(values, 3, (int, float)) for values in channels) or 0 in channels[1]:
            raise BundleError(f"{path}: preprocessing.mean and std must be three numbers each")
        if not _finite(self.threshold):
            raise BundleError(
                f"{path}: threshold is {self.threshold!r:.60}, expected a finite number"
            )
        if pre.get("resize") != "pillow-bilinear" or pre.get("color") != "RGB":
            raise BundleError(f"{path}: preprocessing is not RGB with the resize pillow-bilinear")
        names = ("length", "pad_id", "sos_id", "eos_id")
        if not all(_numbers([text.get(name)], 1, int) for name in names):
            raise BundleError(f"{path}: text lacks length, pad_id, sos_id or eos_id")
        expected = [*FILES, *(name for record in self.engines for name in _engine(record, path))]
        if sorted(self.files) != sorted(expected):
            raise BundleError(
                f"{path} lists the files {sorted(self.files)!s:.300}, expected {expected!s:.300}"
            )
        for name, facts in self.files.items():
            if not isinstance(facts, Mapping) or set(facts) != {"size", "sha256"}:
                raise BundleError(f"{path}: the facts of {name:.80} are not size and sha256")


_ENGINE_FIELDS = {
    "name": str,
    "target": str,
    "precision": str,
    "library": str,
    "version": str,
    "profile": dict,
    "compute": list,
    "files": dict,
}


def _engine(record: Any, path: Path) -> list[str]:
    """The file names of an engine's record, checked."""
    for name, kind in _ENGINE_FIELDS.items():
        if not isinstance(record, Mapping) or not isinstance(record.get(name), kind):
            raise BundleError(f"{path}: an engine has no '{name}': build it again")
    if record["precision"] not in PRECISIONS:
        raise BundleError(f"{path}: an engine has the precision {record['precision']!r:.20}")
    names = list(record["files"].values())
    if set(record["files"]) != {"text.onnx", "image.onnx"} or not all(
        isinstance(name, str) for name in names
    ):
        raise BundleError(f"{path}: engine {record['name']!r:.40} lacks a file: build it again")
    return names


_TYPES: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
    "dict": dict,
    "list": list,
}


def _numbers(values: Any, count: int, kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        and all(map(_finite, values))
    )


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


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
    level = [data]
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
    path = root / name
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


def _check_plain(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        raise BundleError(f"{path} is a link or no regular file: a bundle holds its own files only")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest lists them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}
