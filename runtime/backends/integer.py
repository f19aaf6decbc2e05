"""What the processor's integer instructions make of INT8 graphs, and which graphs they run right.

ONNX Runtime multiplies uint8 activations by int8 weights. On x86 without VNNI its kernels use
`vpmaddubsw`, which adds two such products in 16 bits and saturates: 255 * 127 * 2 = 64770 becomes
32767, and masks are silently wrong. VNNI and 64-bit ARM add in 32 bits. A graph is right everywhere
where no two weights of an output channel can take such a pair out of 16 bits, whichever two the
kernel pairs: the two largest of either sign sum to at most `PAIR`. `calibration` writes such graphs
for ONNX Runtime. Any other one, old or meant for TensorRT, runs here with its Q/DQ nodes as they
stand, in floating point: slower, and the same masks.
"""

from __future__ import annotations

import math
import mmap
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.errors import InputError
from tfanet.runtime.bundle.onnx_file import LENGTH_DELIMITED, VARINT, Buffer, fields, varint

__all__ = [
    "INSTRUCTIONS",
    "PAIR",
    "describe",
    "instructions",
    "is_exact",
    "needs_floats",
    "overflowing",
    "pair_sums",
]

PAIR = 128  # 255 * 128 = 32640 is the largest multiple of 255 within 16 bits
# By name, whether pairs of products are exact; of each architecture the best first.
INSTRUCTIONS = {
    "avx512-vnni": True,
    "avx-vnni": True,
    "avx512": False,
    "avx2": False,
    "sse": False,
    "i8mm": True,
    "dotprod": True,
    "neon": True,
    "unknown": False,
}
CPUINFO = Path("/proc/cpuinfo")
VARIABLE = "TFANET_INTEGER"  # takes one of INSTRUCTIONS for the processor's own
_FLAGS = {  # as Linux names what ONNX Runtime asks the processor for
    "avx512-vnni": {"avx512_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx-vnni": {"avx_vnni", "avx2"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma"},
    "sse": {"sse2"},
    "i8mm": {"i8mm"},
    "dotprod": {"asimddp"},
    "neon": {"asimd"},
}
_ARM = ("i8mm", "dotprod", "neon")
_LAYERS = (b"Conv", b"MatMul", b"Gemm")
_INT8 = 3  # TensorProto.INT8


def instructions() -> str:
    """The integer instructions that ONNX Runtime's kernels use here, one of `INSTRUCTIONS`.

    Raises:
        InputError: where the environment variable TFANET_INTEGER names none of them.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        return _of_processor()
    if chosen not in INSTRUCTIONS:
        raise InputError(f"{VARIABLE} is {chosen!r}: choose one of {', '.join(INSTRUCTIONS)}")
    return chosen


@cache
def _of_processor() -> str:
    arm = platform.machine() in ("arm64", "aarch64")
    flags = _processor_flags()
    found = (kind for kind, asked in _FLAGS.items() if asked <= flags and (kind in _ARM) == arm)
    return next(found, "unknown")


def _processor_flags() -> set[str]:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    named = (line.partition(":") for line in lines)
    return next((set(v.split()) for k, _, v in named if k.strip() in ("flags", "Features")), set())


def is_exact() -> bool:
    """Whether this processor's kernels add products of any INT8 graph without saturation."""
    return INSTRUCTIONS[instructions()]


def describe() -> str:
    """One sentence: what INT8 graphs do on this processor."""
    name = instructions()
    if is_exact():
        return f"{name}: products are added in 32 bits, every INT8 graph runs in integers"
    return (
        f"{name}: pairs of products saturate at 16 bits; graphs made for ONNX Runtime avoid that "
        "and run in integers, others run in floating point; INT8 may be no faster than FP32"
    )


def pair_sums(weight: np.ndarray, axis: int) -> np.ndarray:
    """The largest magnitude that two elements of one sign sum to, by channel of `axis`.

    Args:
        weight: any rank and numeric dtype.

    Returns:
        (channels,) of the weight's dtype, of at least 16 bits.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    wide = np.result_type(rows.dtype, np.int16)
    if rows.shape[1] < 2:
        return np.abs(rows.astype(wide)).max(axis=1, initial=0)
    last = rows.shape[1] - 2
    high = np.partition(rows, last, axis=1)[:, last:].astype(wide).clip(0).sum(1, wide)
    low = np.partition(rows, 1, axis=1)[:, :2].astype(wide).clip(None, 0).sum(1, wide)
    return np.maximum(high, -low)


def needs_floats(model: str | Path | bytes) -> bool:
    """Whether an ONNX file's integer layers would come out wrong here: run it without them."""
    if is_exact():
        return False
    try:
        if isinstance(model, bytes):
            return bool(overflowing(model))
        with (
            open(model, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return bool(overflowing(data))
    except (OSError, ValueError, IndexError):
        return True  # ONNX Runtime says what is wrong with it


def overflowing(data: Buffer) -> str:
    """The name of the first weight of an ONNX file of which a pair can leave 16 bits, "" if none.

    Weights are int8 constants that a Conv, MatMul or Gemm takes through DequantizeLinear, beside a
    dequantised activation: ONNX Runtime makes integer layers of those.

    Raises:
        ValueError, IndexError: where the bytes are not an ONNX file.
    """
    if data.find(b"DequantizeLinear") < 0:
        return ""
    dequantised: dict[bytes, tuple[bytes, int]] = {}
    layers: list[list[bytes]] = []
    tensors: dict[bytes, _Message] = {}
    for field, wire, graph in fields(data, 0, len(data)):
        if field != 7 or wire != LENGTH_DELIMITED:
            continue
        for kind, wire, place in fields(data, *graph):
            if wire != LENGTH_DELIMITED or kind not in (1, 5):
                continue
            message = _Message(data, place)
            if kind == 5:
                tensors[message.bytes(8)] = message
                continue
            inputs = [data[slice(*place)] for place in message.places.get(1, ())]
            op = message.bytes(4)
            if op == b"DequantizeLinear" and inputs:
                dequantised[message.bytes(2)] = inputs[0], _axis(message)
            elif op in _LAYERS and len(inputs) > 1:
                layers.append(inputs[:2])
    for inputs in layers:
        if not all(name in dequantised for name in inputs):
            continue
        for name, axis in (dequantised[name] for name in inputs):
            tensor = tensors.get(name)
            if tensor is not None and not _fits(tensor, axis):
                return name.decode("utf-8", "replace")
    return ""


class _Message:
    """Fields of a protobuf message by number: what is a number, and places of bytes."""

    def __init__(self, data: Buffer, place: tuple[int, int]) -> None:
        self.data = data
        self.numbers: dict[int, list[int]] = {}
        self.places: dict[int, list[tuple[int, int]]] = {}
        kinds: dict[int, dict[int, list[Any]]] = {
            VARINT: self.numbers,
            LENGTH_DELIMITED: self.places,
        }
        for field, wire, value in fields(data, *place):
            if wire in kinds:
                kinds[wire].setdefault(field, []).append(value)

    def number(self, field: int) -> int:
        """The last one of this field, 0 without one."""
        return self.numbers.get(field, [0])[-1]

    def bytes(self, field: int) -> bytes:
        """The last ones of this field, none without any."""
        return self.data[slice(*self.places[field][-1])] if field in self.places else b""


def _axis(node: _Message) -> int:
    axis = 1
    for place in node.places.get(5, ()):
        attribute = _Message(node.data, place)
        if attribute.bytes(1) == b"axis":
            value = attribute.number(3)
            axis = value - (1 << 64) if value >> 63 else value
    return axis


def _fits(tensor: _Message, axis: int) -> bool:
    """Whether an initializer is no int8 weight, or one whose pairs stay within 16 bits."""
    if tensor.number(2) != _INT8:
        return True
    raw = tensor.bytes(9)
    if not raw:
        return False  # kept in another form than ours: not proved
    dims = list(tensor.numbers.get(1, ()))
    for position, end in tensor.places.get(1, ()):  # packed
        while position < end:
            number, position = varint(tensor.data, position)
            dims.append(number)
        if position != end:
            raise ValueError("a number crosses the end of its list")
    if math.prod(dims) != len(raw):
        raise ValueError("a tensor's size is not that of its bytes")
    weight = np.frombuffer(raw, np.int8).reshape(dims)
    if weight.max() <= PAIR // 2 and weight.min() >= -(PAIR // 2):
        return True
    return -weight.ndim <= axis < weight.ndim and int(pair_sums(weight, axis).max()) <= PAIR
