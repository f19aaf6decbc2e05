"""The CPU kernels: the C interface of libtfanet_cpu.so through ctypes.

Imports no PyTorch: operands are addresses, sizes and strides.
"""

from __future__ import annotations

import ctypes
from functools import cache

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.libraries import cpu_library_path

__all__ = [
    "DIRECTIONS",
    "DTYPES",
    "ISAS",
    "MAX_STATE",
    "SS2DArgs",
    "ScanArgs",
    "ScanGradients",
    "backward",
    "backward_slabs",
    "forward",
    "isa_name",
    "ss2d_forward",
    "ss2d_workspace",
]

_ABI = 3

DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
# What `isa` of the arguments may be; "automatic" is the best of this machine, or the one that the
# environment variable TFANET_SCAN_ISA names when the kernel runs for the first time.
ISAS = {"automatic": 0, "baseline": 1, "avx2": 2, "avx512": 3}
MAX_STATE = 256
DIRECTIONS = 4  # of a 2-D scan: rows, columns, rows reversed, columns reversed


def _fields(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class SequenceStrides(ctypes.Structure):
    """`tfanet::SequenceStrides` of csrc/cpu/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "row")


class ProjectionStrides(ctypes.Structure):
    """`tfanet::ProjectionStrides` of csrc/cpu/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "group", "state")


class ScanArgs(ctypes.Structure):
    """`tfanet::ScanArgs` of csrc/cpu/selective_scan.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "dim", "length", "state", "groups"),
        *_fields(ctypes.c_int32, "dtype", "weight_dtype", "delta_softplus", "isa"),
        *_fields(ctypes.c_void_p, "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "y"),
        *_fields(SequenceStrides, "u_strides", "delta_strides", "z_strides", "y_strides"),
        *_fields(ProjectionStrides, "B_strides", "C_strides"),
    )


class ScanGradients(ctypes.Structure):
    """`tfanet::ScanGradients` of csrc/cpu/selective_scan.h."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "dy", "du", "ddelta", "dz"),
        *_fields(ctypes.c_void_p, "dA_parts", "dB_parts", "dC_parts", "dD_parts"),
        *_fields(ctypes.c_void_p, "ddelta_bias_parts"),
    )


class SS2DArgs(ctypes.Structure):
    """`tfanet::SS2DArgs` of csrc/cpu/ss2d.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "channels", "height", "width", "rank", "state"),
        *_fields(ctypes.c_int32, "dtype", "isa"),
        *_fields(ctypes.c_void_p, "u", "x_proj_weight", "rows", "dt_weight", "dt_bias", "A", "D"),
        *_fields(ctypes.c_void_p, "y", "workspace"),
    )


@cache
def _library() -> ctypes.CDLL:
    path = cpu_library_path()
    library = ctypes.CDLL(str(path))
    found = library.tfanet_abi_version()
    if found != _ABI:
        raise MissingDependencyError(
            f"{path} has interface {found}, this tfanet needs {_ABI}: build it again with "
            "`make native`"
        )
    for function in (
        library.tfanet_isa_name,
        library.tfanet_scan_forward,
        library.tfanet_scan_backward,
        library.tfanet_ss2d_forward,
    ):
        function.restype = ctypes.c_char_p
    library.tfanet_scan_backward_slabs.restype = ctypes.c_int64
    library.tfanet_ss2d_workspace.restype = ctypes.c_int64
    return library


def isa_name(isa: str = "automatic") -> str | None:
    """The instruction set that `isa` stands for on this machine, None where it has not got it."""
    name = _library().tfanet_isa_name(ISAS[isa])
    return None if name is None else name.decode()


def forward(args: ScanArgs, threads: int) -> None:
    """Runs the scan; the memory behind `args` must live until it returns.

    Raises:
        InputError: sizes or types that the kernel refuses.
    """
    _raise("selective_scan", _library().tfanet_scan_forward(ctypes.byref(args), threads))


def backward_slabs(args: ScanArgs) -> int:
    """Leading size of the arrays behind `dB_parts` and `dC_parts`."""
    return _library().tfanet_scan_backward_slabs(ctypes.byref(args))


def backward(args: ScanArgs, gradients: ScanGradients, threads: int) -> None:
    """Runs the gradients of the scan; errors as in `forward`."""
    addresses = ctypes.byref(args), ctypes.byref(gradients)
    _raise("selective_scan", _library().tfanet_scan_backward(*addresses, threads))


def ss2d_workspace(args: SS2DArgs, threads: int) -> int:
    """Bytes that `args.workspace` must have for so many threads, aligned to 64 bytes."""
    return _library().tfanet_ss2d_workspace(ctypes.byref(args), threads)


def ss2d_forward(args: SS2DArgs, threads: int) -> None:
    """Runs the fused 2-D scan; errors as in `forward`."""
    _raise("ss2d", _library().tfanet_ss2d_forward(ctypes.byref(args), threads))


def _raise(operator: str, wrong: bytes | None) -> None:
    if wrong is not None:
        raise InputError(f"{operator}: {wrong.decode()}")
