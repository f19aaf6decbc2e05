"""The errors that users meet, and the exit code each one gives the command line.

Every message is one plain line: the offending value, what was expected, what to do next.
"""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Iterable

__all__ = [
    "GateError",
    "InputError",
    "MissingDependencyError",
    "StorageError",
    "TfanetError",
    "check_choice",
    "is_storage",
    "plain",
    "shown",
    "suggestion",
]


class TfanetError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the `tfanet` command returns."""

    exit_code = 1

    def __str__(self) -> str:
        return plain(super().__str__())


class InputError(TfanetError, ValueError):
    """The user's mistake: a bad argument, file or value (exit code 1)."""

    exit_code = 1


class GateError(TfanetError, RuntimeError):
    """A parity or accuracy gate failed (exit code 2)."""

    exit_code = 2


class MissingDependencyError(TfanetError, RuntimeError):
    """The environment lacks a library, a build or a device (exit code 3)."""

    exit_code = 3


class StorageError(TfanetError, OSError):
    """The disk is full, or may not be written to (exit code 3)."""

    exit_code = 3


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def is_storage(error: OSError) -> bool:
    """Whether the system refused to write: the disk is full, read-only, or not this user's."""
    return error.errno in _STORAGE


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError for a value that is not among those known, with what may be meant."""
    known = list(known)
    if value not in known:
        raise InputError(
            f"{name} is {value!r}: choose one of {', '.join(known)}{suggestion(value, known)}"
        )


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for a word that begins or resembles a known one; else nothing."""
    from difflib import get_close_matches

    names = {name.lower(): name for name in known}
    typed = word.lower().replace("_", "-")
    begun = [like for like in names if typed.strip("-") and like.startswith(typed)]
    found = [
        *begun,
        *(like for like in get_close_matches(typed, names, 2, 0.7) if like not in begun),
    ]
    likely = " or ".join(plain(names[like]) for like in found[:2])
    return f" (did you mean {likely}?)" if likely else ""


def plain(text: str) -> str:
    """One line of characters that a terminal prints: what files hold must not steer it."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def shown(value: object) -> str:
    """A value for a message: short and on one line, however large or deep it is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints
        return f"a huge {type(value).__name__}"
