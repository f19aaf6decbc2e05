"""`Calibration`: ranges of a model's activations as a small JSON, to save, compare and reuse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tfanet import __version__
from tfanet.calibration.grid import GRIDS, Grid, grid_of
from tfanet.errors import InputError, shown
from tfanet.runtime.bundle.write import new_file

__all__ = ["SCHEMA_VERSION", "Calibration", "GraphRanges", "diff"]

SCHEMA_VERSION = 2
MAX_BYTES = 16 << 20
LARGEST = 3.4e38  # of float32


@dataclass(frozen=True)
class GraphRanges:
    """What was measured in one graph.

    Attributes:
        amax: by value name, the magnitude that the grid's largest number stands for.
        smooth: by value name, log2 of what each channel is divided by (SmoothQuant).
        means: by value name, the mean of each channel (bias correction).
        outliers: by value name, the channels that are kept apart, and the amax of the others and
            of these. regions: by value name, where the crowd ends and log2 of how much larger the
            tail's step is (see `rewrite.split`).
    """

    amax: dict[str, float]
    smooth: dict[str, list[int]]
    means: dict[str, list[float]]
    outliers: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A calibration of one model.

    Attributes:
        model: preset, image_size, fingerprint of the structure and weights of the values.
        precision: int8 or fp8. observer: its name.
        data: dataset, split, seed, sentence ids and fingerprint.
        graphs: `GraphRanges` by file name.
    """

    model: dict[str, Any]
    precision: str
    observer: str
    data: dict[str, Any]
    graphs: dict[str, GraphRanges]

    @property
    def grid(self) -> Grid:
        """The numbers that values are rounded to."""
        return grid_of(self.precision)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the JSON, whole or not at all. The same calibration gives the same bytes.

        Raises InputError where nothing can be written, or a file is there without `overwrite`.
        """
        document = {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "tfanet", "version": __version__},
            **asdict(self),
        }
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
        with new_file(path, overwrite=overwrite) as part:
            part.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            InputError: naming what is wrong with the file.
        """
        source = Path(path)
        if not source.is_file():
            raise InputError(f"{source} is not a file: make a calibration with `tfanet calibrate`")
        if source.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{source} is larger than {MAX_BYTES:,} bytes: it is not a calibration"
            )
        try:
            document = json.loads(source.read_bytes())
            json.dumps(document, allow_nan=False)  # nor does JSON know infinity, though Python does
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source} is not JSON ({error}): calibrate again") from error
        if not isinstance(document, Mapping) or document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{source} is not a calibration of schema version {SCHEMA_VERSION}: calibrate "
                f"again with tfanet {__version__}"
            )
        names = [part.name for part in fields(cls)]
        missing = [name for name in names if name not in document]
        if missing:
            raise InputError(f"{source} lacks the field '{missing[0]}': calibrate again")
        _check(document, source)
        graphs = {name: GraphRanges(**ranges) for name, ranges in document["graphs"].items()}
        return cls(graphs=graphs, **{name: document[name] for name in names if name != "graphs"})

    def check_model(self, model: Mapping[str, Any]) -> bool:
        """Whether the model's weights are those that the calibration was made with.

        Args:
            model: preset, image_size, fingerprint and weights, as in `Calibration.model`.

        Raises:
            InputError: where the model has another structure or image size.
        """
        if list(self.model["image_size"]) != list(model["image_size"]):
            raise InputError(
                f"the calibration is for images of {self.model['image_size']}, the model takes "
                f"{list(model['image_size'])} (H, W): calibrate this model"
            )
        if self.model["fingerprint"] != model["fingerprint"]:
            raise InputError(
                f"the calibration is of another model ({self.model['preset']}, this one is "
                f"{model['preset']}), or of another export of it: calibrate this model"
            )
        return bool(self.model["weights"] == model["weights"])


def diff(before: Calibration, after: Calibration) -> list[dict[str, Any]]:
    """Ranges side by side, the most changed first.

    Returns:
        Rows of graph, value, before, after (None where a side lacks it) and ratio (the larger by
        the smaller, None where one is missing or zero).
    """
    rows: list[tuple[float, dict[str, Any]]] = []
    for name in sorted(set(before.graphs) | set(after.graphs)):
        sides = [c.graphs[name].amax if name in c.graphs else {} for c in (before, after)]
        for value in sorted(set(sides[0]) | set(sides[1])):
            a, b = (side.get(value) for side in sides)
            ratio = max(a, b) / min(a, b) if a and b else None
            row = {"graph": name, "value": value, "before": a, "after": b, "ratio": ratio}
            rows.append((math.inf if ratio is None else ratio, row))
    rows.sort(key=lambda pair: -pair[0])
    return [row for _, row in rows]


def _check(document: Mapping[str, Any], path: Path) -> None:
    model, data, graphs = (document[name] for name in ("model", "data", "graphs"))
    for name, value in (("model", model), ("data", data), ("graphs", graphs)):
        if not isinstance(value, Mapping):
            raise InputError(f"{path}: '{name}' is not a JSON object: calibrate again")
    for name in ("preset", "image_size", "fingerprint", "weights"):
        if name not in model:
            raise InputError(f"{path}: the model lacks '{name}': calibrate again")
        kind = _is_size if name == "image_size" else _is_text
        _admit(kind(model[name]), path, f"the model's '{name}'", model[name])
    if not _is_text(document["precision"]) or document["precision"] not in GRIDS:
        raise InputError(
            f"{path}: the precision is {shown(document['precision'])}, expected one of "
            f"{', '.join(GRIDS)}: calibrate again"
        )
    _admit(_is_text(document["observer"]), path, "the observer", document["observer"])
    if not isinstance(data.get("sent_ids"), list):
        raise InputError(f"{path}: the data lack 'sent_ids': calibrate again")
    _admit(all(map(_is_index, data["sent_ids"])), path, "'sent_ids'", data["sent_ids"])
    count = data.get("count", 0)
    _admit(_is_index(count), path, "the data's 'count'", count)
    for name, ranges in graphs.items():
        _check_ranges(name, ranges, path)


def _check_ranges(name: str, ranges: Any, path: Path) -> None:
    parts = [part.name for part in fields(GraphRanges)]
    if not isinstance(ranges, Mapping) or set(ranges) != set(parts):
        raise InputError(
            f"{path}: the ranges of {shown(name)} should be {', '.join(parts)}: calibrate again"
        )
    for part in parts:
        if not isinstance(ranges[part], Mapping):
            raise InputError(f"{path}: '{part}' of {shown(name)} is not a JSON object")
    for value, amax in ranges["amax"].items():
        if not _is_range(amax):
            raise InputError(
                f"{path}: the range of {shown(value)} is {shown(amax)}, expected a number of 0 or "
                "more"
            )
    for value, steps in ranges["smooth"].items():
        whole = isinstance(steps, list) and all(_is_whole(n) and abs(n) < 64 for n in steps)
        _admit(whole, path, f"'smooth' of {value!r:.60}", steps)
    for value, means in ranges["means"].items():
        numbers = isinstance(means, list) and all(map(_is_number, means))
        _admit(numbers, path, f"'means' of {value!r:.60}", means)
    for value, split in (*ranges["outliers"].items(), *ranges["regions"].items()):
        if not _is_split(split, value in ranges["outliers"]):
            raise InputError(f"{path}: the split of {shown(value)} makes no sense: calibrate again")


def _admit(fits: bool, path: Path, what: str, value: Any) -> None:
    if not fits:
        raise InputError(f"{path}: {what} is {shown(value)}, which makes no sense: calibrate again")


def _is_split(split: Any, apart: bool) -> bool:
    """Whether it is [channels, [amax, amax]] (`apart`), or [end of the crowd, log2 of steps]."""
    if not isinstance(split, list) or len(split) != 2:
        return False
    if not apart:
        return _is_range(split[0]) and _is_whole(split[1]) and 0 <= split[1] < 32
    channels, ends = split
    return (
        isinstance(channels, list)
        and bool(channels)
        and all(map(_is_index, channels))
        and isinstance(ends, list)
        and len(ends) == 2
        and all(map(_is_range, ends))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1000


def _is_size(value: Any) -> bool:
    """Whether it is [H, W]."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_index, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    """Whether a float32 may hold it; a whole number may be too long to become a float."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST


def _is_range(value: Any) -> bool:
    return _is_number(value) and value >= 0
