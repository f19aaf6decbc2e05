"""The manifest of a bundle: what `manifest.json` says, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tfanet import __version__
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT

__all__ = ["FILES", "PRECISIONS", "SCHEMA_VERSION", "TARGETS", "BundleError", "Manifest"]

FILES = (IMAGE, TEXT, "tokenizer.json")
SCHEMA_VERSION = 1
TARGETS = ("tensorrt", "tensorrt-rtx")  # of engines, the faster first
PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")  # of engines, the fastest first


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
    if set(record["files"]) != set(GRAPHS) or not all(isinstance(name, str) for name in names):
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
