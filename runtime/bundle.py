"""The bundle: a directory with a manifest, two ONNX graphs and a tokenizer, and every check on it.

`export` writes what `Manifest` describes; every runtime opens a bundle through `Bundle.open`, which
trusts nothing in it: sizes and SHA-256 of all files are compared before one of them is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from tfanet import __version__
from tfanet.errors import InputError
from tfanet.runtime.onnx_file import check_self_contained

__all__ = [
    "FILES",
    "MANIFEST",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleError",
    "Manifest",
    "file_facts",
]

MANIFEST = "manifest.json"
FILES = ("image.onnx", "text.onnx", "tokenizer.json")
SCHEMA_VERSION = 1
PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")  # of engines, the fastest first
MAX_MANIFEST_BYTES = 1 << 20


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
            raise BundleError(f"{path} has the unknown field '{unknown[0]}': it was edited")
        manifest = cls(**data)
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """The values that the runtime computes with."""
        pre, text = self.preprocessing, self.text
        sizes: Any = pre.get("size")
        channels: Any = (pre.get("mean"), pre.get("std"))
        if not (_numbers(sizes, 2, int) and all(0 < side <= 16384 for side in sizes)):
            raise BundleError(f"{path}: preprocessing.size is {sizes!r}, expected [H, W]")
        if not all(_numbers(values, 3, (int, float)) for values in channels) or 0 in channels[1]:
            raise BundleError(f"{path}: preprocessing.mean and std must be three numbers each")
        if not math.isfinite(self.threshold):
            raise BundleError(f"{path}: threshold is {self.threshold}, expected a finite number")
        if pre.get("resize") != "pillow-bilinear" or pre.get("color") != "RGB":
            raise BundleError(f"{path}: preprocessing is not RGB with the resize pillow-bilinear")
        if not all(isinstance(text.get(k), int) for k in ("length", "pad_id", "sos_id", "eos_id")):
            raise BundleError(f"{path}: text lacks length, pad_id, sos_id or eos_id")
        expected = [*FILES, *(name for record in self.engines for name in _engine(record, path))]
        if sorted(self.files) != sorted(expected):
            raise BundleError(f"{path} lists the files {sorted(self.files)}, expected {expected}")
        for name, facts in self.files.items():
            if not isinstance(facts, Mapping) or set(facts) != {"size", "sha256"}:
                raise BundleError(f"{path}: the facts of {name} are not size and sha256")


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
    for field, kind in _ENGINE_FIELDS.items():
        if not isinstance(record, Mapping) or not isinstance(record.get(field), kind):
            raise BundleError(f"{path}: an engine has no '{field}': build it again")
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
        and all(map(math.isfinite, values))
    )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its absolute path and its checked manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read and check a bundle.

        Args:
            path: the directory. verify: compare every file's SHA-256 too (default). Without it,
                still: every file is there, is the bundle's own, of the right size, and no ONNX
                file keeps tensors in another file.

        Raises:
            BundleError: naming the file or field and what to do.
        """
        root = Path(path)
        if not root.is_dir():
            raise BundleError(f"{root} is not a bundle directory: make one with `tfanet export`")
        root = root.resolve()
        manifest_path = root / MANIFEST
        if not manifest_path.is_file():
            raise BundleError(f"{root} holds no {MANIFEST}: it is not a bundle")
        _regular_file(root, MANIFEST)
        size = manifest_path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{manifest_path} has {size:,} bytes, the limit is {MAX_MANIFEST_BYTES:,}"
            )
        try:
            data = json.loads(manifest_path.read_bytes(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{manifest_path} is not JSON ({error}): export again") from error
        bundle = cls(root, Manifest.from_dict(data, manifest_path))
        for name, expected in bundle.manifest.files.items():
            bundle._verify(name, expected, verify)
        return bundle

    def file(self, name: str) -> Path:
        """Absolute path of one of the bundle's files."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path} holds no {name}: it holds {sorted(self.manifest.files)}"
            )
        return self.path / name

    def _verify(self, name: str, expected: Mapping[str, Any], content: bool) -> None:
        path = _regular_file(self.path, name)
        size = path.stat().st_size
        if size != expected["size"]:
            raise BundleError(
                f"{path} has {size:,} bytes, the manifest says {expected['size']!r}: it is "
                "truncated or altered, copy the bundle again"
            )
        if content and sha256(path) != expected["sha256"]:
            raise BundleError(
                f"{path} does not match its SHA-256 in the manifest: it was altered or damaged, "
                "copy the bundle again"
            )
        if path.suffix == ".onnx":
            try:
                check_self_contained(path)
            except InputError as error:
                raise BundleError(str(error)) from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _regular_file(root: Path, name: str) -> Path:
    """The file of a bundle, if it is a plain file of the bundle's own."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or len(pure.parts) != 1:
        raise BundleError(f"{root}: the file name {name!r} leaves the bundle")
    path = root / name
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the bundle again, with all its files") from None
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        raise BundleError(f"{path} is a link or no regular file: a bundle holds its own files only")
    return path


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest lists them."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}
