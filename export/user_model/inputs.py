"""Inputs of a user's model, as text: `image:1x3x224x224`, `ids:1x16:int64`, `1x3xh=224xw=224`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfanet.errors import InputError

__all__ = ["BATCH", "InputSpec", "draw", "parse_inputs"]

BATCH = "batch"
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
# Whole numbers are most often indices of a table; few tables are shorter.
LARGEST_INTEGER = 15
_FORM = "[NAME:]AxBxC[:DTYPE] with sizes such as 224, or height=224 for one that stays open"
_AXIS = re.compile(r"(?:([A-Za-z_]\w*)=)?([0-9]+)(?:x|$)")


@dataclass(frozen=True)
class InputSpec:
    """One input. `axes` names those that stay open in the graph; equal names are equal sizes.

    `argument`: the name was given, and not made up.
    """

    name: str
    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    axes: tuple[tuple[int, str], ...] = ()
    argument: bool = False

    def resized(self, sizes: dict[str, int]) -> InputSpec:
        """The same with other sizes of open axes, by their names."""
        names = dict(self.axes)
        new = tuple(sizes.get(names.get(i, ""), size) for i, size in enumerate(self.sizes))
        return InputSpec(self.name, new, self.dtype, self.axes, self.argument)

    def __str__(self) -> str:
        return (
            f"{self.name} {'x'.join(map(str, self.sizes))} {str(self.dtype).removeprefix('torch.')}"
        )


def parse_inputs(texts: Sequence[str], dynamic_batch: bool = True) -> list[InputSpec]:
    """One spec per text; with `dynamic_batch` the first axis of every input is the open batch.

    Raises:
        InputError: for a text that has not the form, a name twice, an unknown dtype, a size of 0,
            a first axis that has another open name, or an open axis of two sizes.
    """
    if not texts:
        raise InputError(f"no input is given: name one as {_FORM}")
    specs = [_parse(text, index, dynamic_batch) for index, text in enumerate(texts)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"input {name!r} is given twice: give every input its own name")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for axis, name in spec.axes:
            size, owner = sizes.setdefault(name, (spec.sizes[axis], spec.name))
            if size != spec.sizes[axis]:
                raise InputError(
                    f"{name} is {spec.sizes[axis]} in input {spec.name!r} but {size} in {owner!r}: "
                    "give them the same size, or different names"
                )
    return specs


def _parse(text: str, index: int, dynamic_batch: bool) -> InputSpec:
    parts = text.split(":")
    named = len(parts) > 1 and not _axes(parts[0])
    name = parts.pop(0) if named else ("input" if index == 0 else f"input_{index}")
    axes = _axes(parts[0]) if parts else []
    dtype = DTYPES.get(parts[1] if len(parts) > 1 else "float32")
    if len(parts) > 2 or not axes or not name.isidentifier() or any(not s for _, s in axes):
        raise InputError(f"input {text!r} is not of the form {_FORM}")
    if dtype is None:
        raise InputError(f"input {text!r}: dtype {parts[1]!r}, expected one of {', '.join(DTYPES)}")
    open_axes = {i: axis for i, (axis, _) in enumerate(axes) if axis}
    if dynamic_batch:
        if open_axes.setdefault(0, BATCH) != BATCH:
            raise InputError(
                f"input {text!r} calls its first axis {open_axes[0]!r}, which is the open batch: "
                "leave that name out, or give --no-dynamic-batch"
            )
    elif BATCH in open_axes.values():
        raise InputError(f"input {text!r} has an open batch, and the batch is to be fixed")
    sizes = tuple(size for _, size in axes)
    return InputSpec(name, sizes, dtype, tuple(sorted(open_axes.items())), named)


def _axes(text: str) -> list[tuple[str, int]]:
    """Name ("" for none) and size of every axis; empty where the text is no shape."""
    found = list(_AXIS.finditer(text))
    whole = bool(found) and "".join(m[0] for m in found) == text and not text.endswith("x")
    return [(m[1] or "", int(m[2])) for m in found] if whole else []


def draw(specs: Sequence[InputSpec], seed: int = 0) -> tuple[Tensor, ...]:
    """Random values: normal, 0 to 15 for whole numbers, ones for bool (a mask that lets pass)."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for spec in specs:
        if spec.dtype.is_floating_point:
            value = torch.randn(spec.sizes, generator=generator).to(spec.dtype)
        elif spec.dtype == torch.bool:
            value = torch.ones(spec.sizes, dtype=torch.bool)
        else:
            value = torch.randint(0, LARGEST_INTEGER + 1, spec.sizes, generator=generator)
            value = value.to(spec.dtype)
        values.append(value)
    return tuple(values)
