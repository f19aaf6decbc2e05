"""Reads pickles that hold plain data. A pickle is a program: everything else in it is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from tfanet.errors import InputError

__all__ = ["DataError", "load_pickle", "loads_pickle"]


class DataError(InputError):
    """A data file is missing, malformed or contradicts another one."""


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """What Python 3 writes for bytes under protocol 2; other codecs are not data."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r} is not plain data")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """dict, list, tuple, str, bytes, numbers, None: these need no global name but `encode`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")


def loads_pickle(data: bytes, source: str) -> Any:
    """The plain data in `data`; Python 2 strings arrive as latin-1 text.

    Raises DataError, naming `source`, where the pickle is cut short, damaged, or asks for a global.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except EOFError as error:
        raise DataError(f"{source} is cut short: copy or download it again") from error
    except Exception as error:  # A damaged pickle raises nearly anything: KeyError, TypeError...
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(
            f"{source} is refused as a pickle of plain data: {reason}; use the published file"
        ) from error


def load_pickle(path: Path) -> Any:
    """`loads_pickle` of a file. Raises DataError where it cannot be read."""
    return loads_pickle(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises DataError where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
        raise DataError(f"{path} {reason}: give the folder that holds the dataset") from error
