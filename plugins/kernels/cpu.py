"""The CPU kernels: the C interface of libtfanet_cpu.so through ctypes.

Imports no PyTorch: operands are addresses, sizes and strides.
"""

from __future__ import annotations

import ctypes
from functools import cache

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.libraries import cpu_library_path
from tfanet.plugins.operands import SELECTIVE_SCAN, SS2D, TYPES, Operand

__all__ = [
    "DTYPES",
    "ISAS",
    "SS2DArgs",
    "ScanArgs",
    "ScanGradients",
    "backward",
    "backward_slabs",
    "forward",
    "gradient_name",
    "isa_name",
    "ss2d_forward",
    "ss2d_workspace",
]

_ABI = 3

DTYPES = {name: code for code, name in enumerate(TYPES)}
# What `isa` of the arguments may be; "automatic" is the best of this machine, or the one that the
# environment variable TFANET_SCAN_ISA names when the kernel runs for the first time.
ISAS = {"automatic": 0, "baseline": 1, "avx2": 2, "avx512": 3}


def _fields(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class SequenceStrides(ctypes.Structure):
    """`tfanet::SequenceStrides` of csrc/cpu/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "row")


class ProjectionStrides(ctypes.Structure):
    """`tfanet::ProjectionStrides` of csrc/cpu/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "group", "state")


# Operands of SelectiveScan that have `SequenceStrides`, and those that have `ProjectionStrides`.
_SEQUENCES, _PROJECTIONS = (
    [o.name for o in SELECTIVE_SCAN.torch_operands if not o.weight and len(o.axes) == rank]
    for rank in (3, 4)
)


class ScanArgs(ctypes.Structure):
    """`tfanet::ScanArgs` of csrc/cpu/selective_scan.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "dim", "length", "state", "groups"),
        *_fields(ctypes.c_int32, "dtype", "weight_dtype", "delta_softplus", "isa"),
        *_fields(ctypes.c_void_p, *SELECTIVE_SCAN.torch_inputs, "y"),
        *_fields(SequenceStrides, *(f"{name}_strides" for name in (*_SEQUENCES, "y"))),
        *_fields(ProjectionStrides, *(f"{name}_strides" for name in _PROJECTIONS)),
    )


def gradient_name(operand: Operand) -> str:
    """The field of `ScanGradients` for the gradient of an operand, or for parts to be summed."""
    return f"d{operand.name}" + ("" if operand.name in _SEQUENCES else "_parts")


class ScanGradients(ctypes.Structure):
    """`tfanet::ScanGradients` of csrc/cpu/selective_scan.h."""

    # Whole gradients come first.
    _fields_ = _fields(
        ctypes.c_void_p,
        "dy",
        *sorted(
            map(gradient_name, SELECTIVE_SCAN.torch_operands),
            key=lambda name: name.endswith("_parts"),
        ),
    )


class SS2DArgs(ctypes.Structure):
    """`tfanet::SS2DArgs` of csrc/cpu/ss2d.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "channels", "height", "width", "rank", "state"),
        *_fields(ctypes.c_int32, "dtype", "isa"),
        # Of x_proj_weight and its product with u, `rows`, one is null.
        *_fields(ctypes.c_void_p, *SS2D.inputs[:2], "rows", *SS2D.inputs[2:], "y", "workspace"),
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
    """Leading size of the arrays that take the parts of dB and dC."""
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
