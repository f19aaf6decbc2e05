"""What an ONNX file refers to, read from its bytes, so that the runtime needs no onnx package.

Tensors of an ONNX file may lie in other files, named by any path. ONNX Runtime 1.20 follows such a
path out of the model's directory, and no version compares what it finds with our checksums.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfanet.errors import InputError

__all__ = ["Buffer", "check_self_contained", "fields", "varint"]

# The messages of onnx.proto that can hold a tensor: number of a field -> message in that field.
CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of TensorProto
VARINT, LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes by wire type
Buffer = bytes | mmap.mmap


def check_self_contained(path: Path, content: bytes | BinaryIO) -> None:
    """Check that all tensors of an ONNX file are in the file itself.

    Args:
        path: its name, for messages. content: its bytes, or the open file.

    Raises:
        InputError: where one lies elsewhere, or the bytes are not an ONNX file.
    """
    size = len(content) if isinstance(content, bytes) else os.fstat(content.fileno()).st_size
    if size == 0:
        raise InputError(f"{path} is empty: it is not an ONNX file, copy the bundle again")
    try:
        if isinstance(content, bytes):
            external = _has_external_data(content)
        else:
            with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as data:
                external = _has_external_data(data)
    except (ValueError, IndexError):
        raise InputError(f"{path} is not an ONNX file: copy the bundle again") from None
    if external:
        raise InputError(
            f"{path} keeps tensors in another file: a bundle's graphs hold all their weights, "
            "export the model again"
        )


def _has_external_data(data: Buffer) -> bool:
    """Walks the messages that can hold tensors, and steps over the contents of all others."""
    waiting = [("ModelProto", 0, len(data))]
    while waiting:
        message, position, end = waiting.pop()
        children, is_tensor = CHILDREN[message], message == "TensorProto"
        for field, wire, value in fields(data, position, end):
            if is_tensor and field == DATA_LOCATION and wire == VARINT and value:
                return True
            if wire == LENGTH_DELIMITED:
                if is_tensor and field == EXTERNAL_DATA:
                    return True
                if field in children:
                    waiting.append((children[field], *value))
    return False


def fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field of the message between two positions.

    The value is an integer, or (position, end) of bytes; of fixed sizes too.

    Raises:
        ValueError, IndexError: where the bytes are no message.
    """
    while position < end:
        tag, position = varint(data, position)
        wire = tag & 7
        value: Any
        if wire == VARINT:
            value, position = varint(data, position)
        elif wire in _FIXED:
            value = position, position + _FIXED[wire]
            position = value[1]
        elif wire == LENGTH_DELIMITED:
            size, position = varint(data, position)
            value = position, position + size
            position += size
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field crosses the end of its message")
        yield tag >> 3, wire, value


def varint(data: Buffer, position: int) -> tuple[int, int]:
    """A base-128 number and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
