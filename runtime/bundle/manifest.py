"""The manifest of a bundle: what `manifest.json` says, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tfanet import __version__
from tfanet.runtime.bundle.contract import (
    BundleError,
    Interface,
    Postprocessing,
    Preprocessing,
    Tokenization,
)
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT

__all__ = ["FILES", "PRECISIONS", "SCHEMA_VERSION", "TARGETS", "BundleError", "Manifest"]

FILES = (IMAGE, TEXT, "tokenizer.json")
SCHEMA_VERSION = 2  # what is written; version 1 is read, see `_from_version_1`
TARGETS = ("tensorrt", "tensorrt-rtx")  # of engines, the faster first
PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")  # of engines, the fastest first


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, field by field.

    Attributes:
        schema_version: 2. tool: name and version of the writer.
        model: family, preset and config. inputs, outputs: per graph, name, dtype and shape, and of
            what the image graph gives, the role.
        preprocessing, text, postprocessing: of pictures, sentences and masks.
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
    preprocessing: Preprocessing
    text: Tokenization
    postprocessing: Postprocessing
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

    @property
    def family(self) -> str:
        """The model's family, empty where the manifest names none."""
        name = self.model.get("family")
        return name if isinstance(name, str) else ""

    @cached_property
    def interface(self) -> Interface:
        """What goes into the graphs and comes out, by name and role."""
        return Interface.read(self.inputs, self.outputs, self, Path("manifest.json"))

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
        if version not in (1, SCHEMA_VERSION):
            tool = data.get("tool")
            writer = tool.get("version") if isinstance(tool, Mapping) else None
            raise BundleError(
                f"{path} has schema version {version!r:.20} (of tfanet {writer!r:.20}), tfanet "
                f"{__version__} here reads 1 and {SCHEMA_VERSION}: export the model again with it"
            )
        types = {field.name: _TYPES[str(field.type).split("[")[0]] for field in fields(cls)}
        if version == 1:
            types = {**types, "threshold": (int, float)}
            del types["postprocessing"]
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
        if version == 1:
            data = _from_version_1(data)
        pre = Preprocessing.read(data["preprocessing"], path)
        text = Tokenization.read(data["text"], path)
        post = Postprocessing.read(data["postprocessing"], path)
        values = {**data, "preprocessing": pre, "text": text, "postprocessing": post}
        manifest = cls(**values)
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """What the runtime computes with, besides what was checked as it was read."""
        Interface.read(self.inputs, self.outputs, self, path)
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
    "dict": dict,
    "list": list,
    "Preprocessing": dict,
    "Tokenization": dict,
    "Postprocessing": dict,
}


def _from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """What version 1 left unsaid: it knew one family, whose image graph gives a mask alone."""
    outputs = dict(data["outputs"])
    masks = outputs.get(IMAGE)
    if isinstance(masks, list):
        outputs[IMAGE] = [{**m, "role": "mask"} if isinstance(m, Mapping) else m for m in masks]
    old = {name: value for name, value in data.items() if name != "threshold"}
    return {
        **old,
        "schema_version": SCHEMA_VERSION,
        "model": {**data["model"], "family": "tfanet"},
        "outputs": outputs,
        "preprocessing": {**data["preprocessing"], "padding": None},
        "text": {**data["text"], "tokenizer": "clip-bpe", "truncation": "keep-end"},
        "postprocessing": {"value": "logit", "threshold": data["threshold"]},
    }
