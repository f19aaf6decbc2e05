"""What every family's configuration shares: plain data that is checked, and read back from JSON."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Self

from tfanet.errors import InputError, shown

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_WIDTH",
    "Config",
    "check_image_size",
    "check_kinds",
    "check_text",
    "check_text_length",
    "number",
    "tuples",
    "whole",
]

# Far above what anybody trains; a damaged file must not ask for a network that takes days to make.
MAX_WIDTH, MAX_DEPTH, MAX_ENTRIES = 65_536, 256, 2**24


@dataclass(frozen=True)
class Config:
    """Base of a family's configuration: a frozen dataclass of numbers, switches and others of them.

    A family adds its own fields and checks them in `__post_init__`. It stands in checkpoints and
    manifests, so a field that is renamed makes older files unreadable.

    Attributes:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export.
        text_length: L, the tokens per sentence, start and end included.
    """

    name: str
    image_size: tuple[int, int]
    text_length: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The config that `to_dict` described.

        Raises:
            InputError: for a missing or unknown field, or naming a value that no model can have.
        """
        return _read(cls, data, "model")

    def by_sizes(self) -> Self:
        """The same network, of which no part is opened from a file: all weights are to come."""
        return self


def _read(cls: Any, data: Any, what: str) -> Any:
    if not isinstance(data, Mapping):
        raise InputError(f"the {what} configuration is {shown(data)}, expected a JSON object")
    known = {field.name for field in fields(cls)}
    unknown = sorted(set(data) - known, key=str)
    missing = sorted(known - set(data)) if issubclass(cls, Config) else []  # a part has defaults
    if unknown or missing:
        raise InputError(
            f"the {what} configuration has unknown fields {shown(unknown)} and lacks {missing}: it "
            "was written by another version of tfanet"
        )
    kinds = typing.get_type_hints(cls)
    values = {
        name: _read(kinds[name], value, name)
        if is_dataclass(kinds[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in data.items()
    }
    return cls(**values)


def check_image_size(size: tuple[int, int], stride: int = 32) -> None:
    """Raises InputError unless (H, W) are positive multiples of the network's stride."""
    if len(size) != 2 or any(side <= 0 or side % stride for side in size):
        raise InputError(f"image size is {tuple(size)}: give (H, W), both multiples of {stride}")


def check_text(text: Any) -> None:
    """Check the sizes that every encoder of sentences has: widths, heads, vocabulary, positions.

    Raises InputError, naming one that no network can have.
    """
    for name in ("width", "heads", "intermediate", "positions"):
        whole(f"text.{name}", getattr(text, name), 1, MAX_WIDTH)
    whole("text.vocabulary", text.vocabulary, 1, MAX_ENTRIES)
    if text.width % text.heads:
        raise InputError(f"text.width {text.width} is not a multiple of text.heads {text.heads}")


def check_text_length(length: int, positions: int) -> None:
    """Raises InputError unless a sentence of `length` tokens has a word and finds room."""
    if not 3 <= length <= positions:
        raise InputError(f"text_length is {length}: give 3 to {positions} tokens")


def whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises InputError unless `value` is a whole number from `low` to `high`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (is_whole and low <= value <= high):
        raise InputError(f"{name} is {shown(value)}: give a whole number from {low} to {high}")


def number(name: str, value: Any, low: float, high: float) -> None:
    """Raises InputError unless `value` is a number from `low` to `high`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):
        raise InputError(f"{name} is {shown(value)}: give a number from {low} to {high}")


def tuples(config: Any, *expected: tuple[str, int, int, int]) -> None:
    """Check fields that are tuples of whole numbers.

    Args:
        expected: for each, its name, how many numbers, and their least and largest value.
    """
    for name, count, low, high in expected:
        values = getattr(config, name)
        if not isinstance(values, tuple) or len(values) != count:
            raise InputError(f"{name} is {shown(values)}: give {count} numbers")
        for value in values:
            whole(f"one of {name}", value, low, high)


def check_kinds(config: Any, **kinds: type) -> None:
    """Raises InputError where a field is of another type than the one given by its name."""
    for name, kind in kinds.items():
        if not isinstance(getattr(config, name), kind):
            value = shown(getattr(config, name))
            raise InputError(f"{name} is {value}, expected a {kind.__name__}")
