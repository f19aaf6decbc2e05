"""Reads pickles that hold plain data. A pickle is a program: everything else in it is refused."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from tfanet.errors import InputError

__all__ = ["DataError", "load_pickle", "loads_pickle"]

# What follows each opcode: a fixed number of bytes, some lines, or a count of bytes (whose own size
# is given) with what it counts.
_ARGUMENTS = {code.code.encode("latin1")[0]: code.arg for code in pickletools.opcodes}
_FIXED = {op: 0 if arg is None else arg.n for op, arg in _ARGUMENTS.items() if not arg or arg.n > 0}
_COUNT_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_COUNTED = {op: _COUNT_SIZES[arg.n] for op, arg in _ARGUMENTS.items() if arg and arg.n < -1}
_LINES = {
    op: 2 if arg.name.endswith("pair") else 1
    for op, arg in _ARGUMENTS.items()
    if arg and arg.n == pickletools.UP_TO_NEWLINE
}
_STOP, _PUT, _LONG_BINPUT = b".pr"


class DataError(InputError):
    """A data file is missing, malformed or contradicts another one."""


class _PlainUnpickler(pickle.Unpickler):
    """dict, list, tuple, str, bytes, numbers, None: these need no global name but `encode`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")

    def _encode(self, text: object, encoding: object = "latin1") -> bytes:
        """What Python 3 writes for bytes under protocol 2; other codecs are not data.

        Each call has a text of its own in the file: one text for many would fill the memory.
        """
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r:.40} is not plain data")
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it unpacks to more bytes than it holds")
        return text.encode("latin1")


def _check_sizes(data: bytes) -> None:
    """That no instruction names more bytes, or a higher place in the memory, than a file of this
    length can need: the unpickler takes memory for what is named before it looks."""
    at, end = 0, len(data)
    while at < end:
        op = data[at]
        at += 1
        width = _FIXED.get(op)
        if width is not None:
            if op == _LONG_BINPUT and int.from_bytes(data[at : at + 4], "little") > end:
                raise pickle.UnpicklingError("it numbers more values than it can hold")
            if op == _STOP:
                return
            at += width
        elif op in _COUNTED:
            start = at + _COUNTED[op]
            at = start + int.from_bytes(data[at:start], "little")
        elif op in _LINES:
            start = at
            for _ in range(_LINES[op]):
                at = data.find(b"\n", at) + 1 or end + 1
            if op == _PUT and not (at - start < 20 and int(data[start : at - 1]) <= end):
                raise pickle.UnpicklingError("it numbers more values than it can hold")
        else:
            raise pickle.UnpicklingError(f"it holds no instruction {op:#04x}")
    raise EOFError


def loads_pickle(data: bytes, source: str) -> Any:
    """The plain data in `data`; Python 2 strings arrive as latin-1 text.

    Raises DataError, naming `source`, where the pickle is cut short, damaged, or asks for a global.
    """
    try:
        _check_sizes(data)
        return _PlainUnpickler(data).load()
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
