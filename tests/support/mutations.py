"""Documents of plain data (JSON, pickle) with a few things changed, for fuzzing their readers."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same cases on every run and machine; a reader is slow under load, so there is no deadline.
FUZZ = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def outcome(read: Callable[[], Any], *errors: type[BaseException]) -> Any:
    """What a reader gives; None where it refuses in one printable line by one of the errors."""
    try:
        return read()
    except errors as error:
        line = str(error)
        if not line.isprintable() or len(line) > 1000:
            raise AssertionError(f"not one plain line: {reprlib.repr(line)}") from error
        return None


def _deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, -(2**63), 10**6, 10**400, 0.5, -0.0, 1e308),
    *(math.inf, -math.inf, math.nan, "", "x", "\x00", "\x1b[2J", "\ud800", "a/b", "..", "1", "é\n"),
    *("n" * 5000, [], [[]], [1, 2], ["a"], [None], [-1], {}, {"a": 1}, _deep(60)),
]


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in it, its own left out."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    found = []
    for key, value in items:
        found += [(*path, key), *_places(value, (*path, key))]
    return found


def _change(document: Any, path: tuple[Any, ...], act: str, odd: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    key = path[-1]
    if act == "delete":
        del document[key]
    elif act == "add" and isinstance(document, dict):
        document[odd if isinstance(odd, str) else "extra"] = odd
    elif act == "add":
        document.append(odd)
    elif act == "repeat" and isinstance(document, list):
        document.append(copy.deepcopy(document[key]))
    else:
        document[key] = odd


def every_change(document: Any) -> Iterator[Any]:
    """The document with one value replaced, by every odd one in every place, or deleted."""
    for path in _places(document):
        for act, odd in [("delete", None), *(("replace", odd) for odd in ODD)]:
            changed = copy.deepcopy(document)
            _change(changed, path, act, copy.deepcopy(odd))
            yield changed


def mutated(make: Callable[[], Any]) -> st.SearchStrategy[Any]:
    """What `make` gives, with one to three values replaced by odd ones, deleted or added to."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        document = copy.deepcopy(make())
        for _ in range(draw(st.integers(1, 3))):
            places = _places(document)
            if places:
                act = draw(st.sampled_from(("replace", "replace", "delete", "add", "repeat")))
                odd = copy.deepcopy(draw(st.sampled_from(ODD)))
                _change(document, draw(st.sampled_from(places)), act, odd)
        return document

    return build()
