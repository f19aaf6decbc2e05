"""The native libraries: where they are, and the C interface of libtfanet_cpu.so through ctypes.

Imports no PyTorch: operands are addresses, sizes and strides.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from tfanet.errors import InputError, MissingDependencyError

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
    "cpu_library_path",
    "forward",
    "isa_name",
    "ort_library_path",
    "ss2d_forward",
    "ss2d_workspace",
    "trt_library_path",
]

_ABI = 3
_LIBRARIES = Path(__file__).resolve().parent / "lib"

DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
# What `isa` of the arguments may be; "automatic" is the best of this machine, or the one that the
# environment variable TFANET_SCAN_ISA names when the kernel runs for the first time.
ISAS = {"automatic": 0, "baseline": 1, "avx2": 2, "avx512": 3}
MAX_STATE = 256
DIRECTIONS = 4  # of a 2-D scan: rows, columns, rows reversed, columns reversed


def _fields(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class SequenceStrides(ctypes.Structure):
    """`tfanet::SequenceStrides` of csrc/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "row")


class ProjectionStrides(ctypes.Structure):
    """`tfanet::ProjectionStrides` of csrc/selective_scan.h, in elements."""

    _fields_ = _fields(ctypes.c_int64, "batch", "group", "state")


class ScanArgs(ctypes.Structure):
    """`tfanet::ScanArgs` of csrc/selective_scan.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "dim", "length", "state", "groups"),
        *_fields(ctypes.c_int32, "dtype", "weight_dtype", "delta_softplus", "isa"),
        *_fields(ctypes.c_void_p, "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "y"),
        *_fields(SequenceStrides, "u_strides", "delta_strides", "z_strides", "y_strides"),
        *_fields(ProjectionStrides, "B_strides", "C_strides"),
    )


class ScanGradients(ctypes.Structure):
    """`tfanet::ScanGradients` of csrc/selective_scan.h."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "dy", "du", "ddelta", "dz"),
        *_fields(ctypes.c_void_p, "dA_parts", "dB_parts", "dC_parts", "dD_parts"),
        *_fields(ctypes.c_void_p, "ddelta_bias_parts"),
    )


class SS2DArgs(ctypes.Structure):
    """`tfanet::SS2DArgs` of csrc/ss2d.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch", "channels", "height", "width", "rank", "state"),
        *_fields(ctypes.c_int32, "dtype", "isa"),
        *_fields(ctypes.c_void_p, "u", "x_proj_weight", "rows", "dt_weight", "dt_bias", "A", "D"),
        *_fields(ctypes.c_void_p, "y", "workspace"),
    )


def cpu_library_path() -> Path:
    """libtfanet_cpu.so, which the operator runs on the CPU in PyTorch.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built("libtfanet_cpu.so", "")


def ort_library_path() -> Path:
    """libtfanet_ort.so, to be given to `SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built("libtfanet_ort.so", " (it needs the headers of ONNX Runtime)")


def trt_library_path() -> Path:
    """libtfanet_trt.so, for `trtexec --dynamicPlugins` or `IPluginRegistry.load_library`.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built(
        "libtfanet_trt.so",
        " (it needs the CUDA compiler, and the headers of TensorRT in TENSORRT_ROOT/include)",
    )


def _built(name: str, need: str) -> Path:
    path = _LIBRARIES / name
    if not path.is_file():
        raise MissingDependencyError(
            f"{path} has not been built{need}: run `make native` in a checkout, or install tfanet "
            "again with cmake and a C++17 compiler at hand"
        )
    return path


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
