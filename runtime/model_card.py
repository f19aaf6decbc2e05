"""A bundle's model card for the Hugging Face hub, made of nothing but its manifest and timings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tfanet.errors import plain
from tfanet.runtime.bundle.read import TIMING, Bundle

__all__ = ["model_card"]

HEAD = """\
---
license: {licence}
library_name: tfanet
pipeline_tag: image-segmentation
tags:
- referring-image-segmentation
- onnx
- {family}
---

# {name}

Segments what a sentence names in a picture: {model}, as a bundle of [ONNX](https://onnx.ai) graphs
that needs no PyTorch.

```python
from tfanet import Predictor

with Predictor.from_pretrained("{repository}") as predictor:
    result = predictor("photo.jpg", "the man on the left")
result.save("overlay.png")
```

`pip install tfanet` installs all that this needs. Digest of the bundle, for `Predictor(digest=...)`
and `tfanet verify`: `{digest}`
"""


def model_card(bundle: Bundle, repository: str, licence: str) -> str:
    """The text of a repository's README.md.

    Args:
        repository: as owner/name. licence: of the weights, in the hub's spelling.
    """
    manifest = bundle.manifest
    model = _cell(manifest.preset or manifest.family or "a model of its own")
    parts = [
        HEAD.format(
            licence=licence,
            family=_cell(manifest.family or "tfanet"),
            name=repository.partition("/")[2],
            model=model,
            repository=repository,
            digest=bundle.digest,
        ),
        "## What it takes and gives",
        _table(("", ""), _facts(bundle)),
        "## Compared with PyTorch",
        *_parity(manifest.parity),
        *_certificate(manifest.parity.get("certificate")),
        *_engines(manifest.engines),
        *_timing(bundle),
        "## Licence and files",
        f"The licence of the weights is `{licence}`. tfanet itself is Apache-2.0.",
        _table(
            ("file", "bytes", "SHA-256"),
            (
                (name, f"{facts['size']:,}", f"`{facts['sha256']}`")
                for name, facts in sorted(manifest.files.items())
            ),
        ),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _facts(bundle: Bundle) -> Iterable[Sequence[Any]]:
    manifest = bundle.manifest
    height, width = manifest.preprocessing.size
    made = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    yield "picture", f"{height} x {width} pixels inside; any size goes in and comes out"
    yield "sentence", f"up to {manifest.text.length - 2} tokens, {manifest.text.tokenizer}"
    yield "outputs", ", ".join(manifest.interface.image_outputs)
    yield "precision", manifest.precision
    yield "batch", "any" if manifest.dynamic_batch else "1"
    yield "written by", f"{' '.join(map(str, manifest.tool.values()))}, with {made or 'unknown'}"


def _parity(parity: dict[str, Any]) -> list[str]:
    cases = parity.get("cases") or []
    if not cases:
        return ["It was not compared."]
    rows = [
        (case["name"], case["backend"], f"{case['max_rel_error']:.1e}", case["pixels_changed"])
        for case in cases
    ]
    said = "Of a quantised bundle, this is the bundle that it was made of."
    return [
        _table(("case", "backend", "largest relative error", "pixels changed"), rows),
        *([said] if parity.get("certificate") else []),
    ]


def _certificate(certificate: Any) -> list[str]:
    accuracy = (certificate or {}).get("accuracy")
    if not accuracy:
        return []
    data = accuracy.get("data", {})
    names = ("dataset", "split", "count")
    where = ", ".join(f"{name} {data[name]}" for name in names if name in data)
    rows = [
        (
            metric,
            f"{accuracy['fp32'][metric]:.2f}",
            f"{value:.2f}",
            f"{accuracy['drop'][metric]:.2f}",
            accuracy["max_drop"].get(metric, ""),
        )
        for metric, value in accuracy["quantised"].items()
        if metric in accuracy["fp32"] and metric in accuracy["drop"]
    ]
    header = ("metric", "FP32", certificate.get("precision", "quantised"), "lost", "may lose")
    return ["## Certificate", f"Measured in percent on {_cell(where)}.", _table(header, rows)]


def _engines(engines: list[dict[str, Any]]) -> list[str]:
    if not engines:
        return []
    rows = [
        (
            one["name"],
            one["precision"],
            f"{one['library']} {one['version']}",
            ", ".join(map(str, one["compute"])) or "any",
        )
        for one in engines
    ]
    header = ("engine", "precision", "library", "compute capability")
    return ["## Engines", _table(header, rows)]


def _timing(bundle: Bundle) -> list[str]:
    """What an export measured on its machine, if it did."""
    try:
        timing = json.loads((bundle.path / TIMING).read_text(encoding="utf-8"))
        rows = [(name, f"{value:.1f}") for name, value in timing["milliseconds"].items()]
        machine = f"{timing['machine']}, {timing['threads']} threads"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # nothing checks this file, and nothing needs it
    return [
        "## Times",
        f"Of one picture and sentence without preprocessing, on {_cell(machine)}.",
        _table(("graphs", "ms"), rows),
    ]


def _table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """Text that Markdown and HTML take as it is: a manifest's words must not become markup."""
    text = plain(str(value))
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\[")):
        text = text.replace(character, instead)
    return text
