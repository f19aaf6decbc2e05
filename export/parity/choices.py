"""What a network chose for each picture, and how nearly it chose another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from tfanet.model.checkpoint import family_of
from tfanet.model.family import Choice

__all__ = ["choices_of", "chosen", "in_words", "recorded"]


def choices_of(model: Any) -> tuple[Choice, ...]:
    """What a network takes one of, picture by picture; most take nothing."""
    choices = family_of(model).choices
    return () if choices is None else choices(model.config)


def chosen(
    choices: Sequence[Choice], scores: Mapping[str, np.ndarray], sample: int = 0
) -> list[dict[str, Any]]:
    """What one sample of a batch was given, for each of `choices`.

    Args:
        scores: (B, K, ...) of the K options, by the module that gives them.

    Returns:
        group; chosen: the option of the largest score, the first of equals; second: the next one;
        margin: how far the first is ahead of it, to two digits. Both are None of a single option.
    """
    rows = []
    for choice in choices:
        values = scores[choice.scores][sample].ravel().astype(np.float64)  # (K,)
        first, *rest = np.argsort(-values, kind="stable")
        row: dict[str, Any] = {"group": choice.group, "chosen": choice.options[first]}
        row |= {"second": None, "margin": None}
        if rest:
            row["second"] = choice.options[rest[0]]
            row["margin"] = float(f"{values[first] - values[rest[0]]:.1e}")
        rows.append(row)
    return rows


def in_words(made: Sequence[Mapping[str, Any]]) -> str:
    """What `chosen` gives, as in "low: block 1, 0.034 ahead of block 0; mid: block 2"."""
    parts = []
    for one in made:
        part = f"{one['group']}: {one['chosen']}"
        if one["second"] is not None:
            part += f", {one['margin']:g} ahead of {one['second']}"
        parts.append(part)
    return "; ".join(parts)


@contextmanager
def recorded(
    model: nn.Module, names: Sequence[str], found: dict[str, np.ndarray]
) -> Iterator[None]:
    """Within it, `found` gets what the modules of these names give, of several values the first."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            first = result[0] if isinstance(result, tuple) else result
            found[name] = first.numpy(force=True)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
