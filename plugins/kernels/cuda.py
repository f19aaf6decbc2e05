"""The scan kernel for the GPU: compiled by NVRTC, and launched through the driver by cuda.bindings.

The kernels of the 2-D scan, in `cuda_ss2d`, are compiled and launched by the same functions.
Nothing here is linked against PyTorch, and PyTorch is not imported: operands are addresses. The
CUDA sources are those of the C++ libraries, in csrc/cuda.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

from tfanet.errors import InputError, MissingDependencyError
from tfanet.files import whole_file
from tfanet.plugins.kernels.geometry import Geometry, check_scan, launch_geometry
from tfanet.plugins.operands import CUDA_TYPES, SELECTIVE_SCAN

__all__ = [
    "CPP_TYPES",
    "Program",
    "ScanKernel",
    "architectures",
    "compute_capability",
    "enqueue",
    "launch",
    "ptx",
]

# Of C++, by name of the element type.
CPP_TYPES = dict(zip(CUDA_TYPES, ("float", "tfanet::Half", "tfanet::BFloat16"), strict=True))
_SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
_NAME = "tfanet_selective_scan"


class Program(Protocol):
    """What NVRTC compiles: a source, the headers that it includes, macros; its kernels' names."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Files of csrc/cuda: the source, then the headers."""

    @property
    def kernels(self) -> tuple[str, ...]: ...

    def macros(self) -> list[str]: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class ScanKernel:
    """What one kernel is compiled for.

    Attributes:
        io: "float32", "float16" or "bfloat16", the type of u, delta, B, C, z and y.
        weight: "float32" or `io`, the type of A, D and delta_bias.
        states: N, from 1 to 64.
        optional: the optional operands that are there: of "D", "delta_bias" and "z".

    Raises:
        InputError: naming the field that does not fit.
    """

    io: str
    weight: str
    states: int
    optional: tuple[str, ...]
    softplus: bool

    sources: ClassVar[tuple[str, ...]] = (
        "selective_scan_entry.cu",
        "selective_scan.cuh",
        "scan_launch.h",
        "scan_step.cuh",
        "scan_types.cuh",
    )
    kernels: ClassVar[tuple[str, ...]] = (_NAME,)

    def __post_init__(self) -> None:
        check_scan(self.io, self.states)
        if (self.io, self.weight) not in SELECTIVE_SCAN.cuda_types:
            raise InputError(
                f"selective_scan on CUDA: A is {self.weight}, expected float32 or {self.io} as u; "
                "cast it"
            )
        if unknown := {*self.optional} - {*SELECTIVE_SCAN.optional}:
            raise InputError(
                f"selective_scan on CUDA: optional names {', '.join(sorted(unknown))}, expected "
                f"some of {', '.join(SELECTIVE_SCAN.optional)}"
            )

    def operands(self) -> tuple[str, ...]:
        """The names of the operands that the kernel takes."""
        return tuple(
            operand.name
            for operand in SELECTIVE_SCAN.operands
            if not operand.optional or operand.name in self.optional
        )

    def macros(self) -> list[str]:
        values = {
            "IO": CPP_TYPES[self.io],
            "STATES": self.states,
            "NARROW_WEIGHTS": int(self.weight != "float32"),
            **{f"HAS_{n.upper()}": int(n in self.optional) for n in SELECTIVE_SCAN.optional},
            "SOFTPLUS": int(self.softplus),
        }
        return [f"--define-macro=TFANET_{name}={value}" for name, value in values.items()]


def ptx(
    io: str,
    weight: str,
    states: int,
    optional: tuple[str, ...],
    softplus: bool,
    arch: int,
) -> tuple[bytes, str]:
    """PTX of one kernel for compute capability `arch` (90 is 9.0) and newer, and its name.

    Its parameters are pointers to `ScanKernel.operands`, then the 32-bit integers batch, dim,
    length and groups, then the pointer to y. Launched as `geometry.launch_geometry` says. No GPU is
    needed. Kept on disk, see `_compile`.

    Raises:
        InputError: see `ScanKernel`, or an `arch` that NVRTC does not know.
        MissingDependencyError: cuda-bindings or NVRTC is not installed.
    """
    kernel = ScanKernel(io, weight, states, optional, softplus)
    known = architectures()
    if arch not in known:
        raise InputError(
            f"selective_scan on CUDA: arch is {arch}, expected one of "
            f"{', '.join(map(str, known))} (NVRTC {'.'.join(map(str, _nvrtc_version()))})"
        )
    return _compile(kernel, f"compute_{arch}"), _NAME


def _missing(what: str, error: Exception) -> MissingDependencyError:
    reason = " ".join(str(error).split())
    return MissingDependencyError(
        f"selective_scan on CUDA needs {what} ({reason}): pip install 'tfanet[cuda]'"
    )


@cache
def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise _missing("cuda-bindings", error) from error
    return nvrtc


def _call(function: Any, *arguments: Any) -> Any:
    """A call of cuda.bindings: its results without the status; raises if that is not success."""
    status, *results = function(*arguments)
    if status.value != 0:
        raise MissingDependencyError(
            f"selective_scan on CUDA: {function.__name__} failed with {status.name}; see "
            "`tfanet doctor` for the driver"
        )
    return results[0] if len(results) == 1 else tuple(results)


@cache
def _nvrtc_version() -> tuple[int, int]:
    try:
        return _call(_nvrtc().nvrtcVersion)
    except RuntimeError as error:  # cuda.bindings looks for the library when it is first called
        if isinstance(error, MissingDependencyError):
            raise
        raise _missing("NVRTC", error) from error


@cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities that NVRTC compiles for; 90 is 9.0."""
    _nvrtc_version()
    return tuple(_call(_nvrtc().nvrtcGetSupportedArchs))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tfanet" / "cuda"


@cache
def _compile(program: Program, target: str) -> bytes:
    """PTX for the target compute_NN, machine code for sm_NN.

    Kept in $XDG_CACHE_HOME/tfanet/cuda (~/.cache by default) under a name that covers sources,
    options and NVRTC's version. A folder that can't be written costs time, nothing else.
    """
    sources = {name: (_SOURCES / name).read_bytes() for name in program.sources}
    options = [f"--gpu-architecture={target}", "--std=c++17", *program.macros()]
    version = _nvrtc_version()
    key = hashlib.sha256(repr((version, options, sources)).encode()).hexdigest()[:32]
    kept = _cache_folder() / f"scan_{target}_{key}"
    with suppress(OSError):
        return kept.read_bytes()
    code = _compile_now(sources, options, machine_code=target.startswith("sm_"))
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(kept) as part:
            part.write_bytes(code)
    return code


def _compile_now(sources: dict[str, bytes], options: list[str], machine_code: bool) -> bytes:
    """Compiles the first of the sources, which includes the others."""
    nvrtc = _nvrtc()
    main, *names = [name.encode() for name in sources]
    source, *headers = sources.values()
    program = _call(nvrtc.nvrtcCreateProgram, source, main, len(names), headers, names)
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status.value != 0:
            log = bytearray(_call(nvrtc.nvrtcGetProgramLogSize, program))
            _call(nvrtc.nvrtcGetProgramLog, program, log)
            text = " ".join(log.decode(errors="replace").strip("\0").split())
            raise MissingDependencyError(
                f"NVRTC {'.'.join(map(str, _nvrtc_version()))} does not compile the scan "
                f"({' '.join(options)}): {text}"
            )
        size, get = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if machine_code
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        code = bytearray(_call(size, program))
        _call(get, program, code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)


@cache
def _driver() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise _missing("cuda-bindings", error) from error
    return driver


def compute_capability(device: int = 0) -> int:
    """Of a GPU, by the driver's numbering of those that are visible; 90 is 9.0.

    Raises:
        MissingDependencyError: no cuda-bindings, no driver, or no such GPU.
    """
    driver = _driver()
    try:
        _call(driver.cuInit, 0)
        number = _call(driver.cuDeviceGet, device)
        kinds = driver.CUdevice_attribute
        major, minor = (
            _call(driver.cuDeviceGetAttribute, kind, number)
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
    except RuntimeError as error:  # cuda.bindings looks for the driver when it is first called
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(
            f"selective_scan on CUDA needs NVIDIA's driver ({' '.join(str(error).split())}): "
            "install it, or name the compute capability to compile for"
        ) from error
    return 10 * major + minor


@cache
def _context(device: int) -> Any:
    """The primary context of a device: the one that PyTorch and the CUDA runtime use."""
    driver = _driver()
    return _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, device))


@cache
def _load(program: Program, arch: int) -> tuple[Any, ...]:
    """The kernels' handles, for every device of compute capability `arch`; live as the process."""
    known = [a for a in architectures() if a <= arch]
    if not known:
        raise InputError(
            f"selective_scan on CUDA: the device has compute capability {arch / 10}, expected "
            f"{min(architectures()) / 10} or newer"
        )
    # A device newer than NVRTC gets PTX, which its driver compiles.
    code = _compile(program, f"sm_{arch}" if arch in known else f"compute_{max(known)}")
    driver = _driver()
    library = _call(driver.cuLibraryLoadData, code, None, None, 0, None, None, 0)
    return tuple(_call(driver.cuLibraryGetKernel, library, k.encode()) for k in program.kernels)


def launch(
    program: Program,
    geometries: Sequence[Geometry],
    parameters: Sequence[tuple[type, int]],
    device: int,
    arch: int,
    stream: int,
) -> None:
    """Puts all kernels of a program on a stream, in their order, with the same parameters.

    Args:
        geometries: of each kernel grid, block and bytes of dynamic shared memory.
        parameters: the C type and the value of each. device, arch, stream: see `enqueue`.
    """
    handles, driver = _load(program, arch), _driver()
    types, values = zip(*parameters, strict=True)
    _call(driver.cuCtxPushCurrent, _context(device))
    try:
        for handle, (grid, block, shared) in zip(handles, geometries, strict=True):
            _call(driver.cuLaunchKernel, handle, *grid, *block, shared, stream, (values, types), 0)
    finally:
        _call(driver.cuCtxPopCurrent)


def enqueue(
    kernel: ScanKernel,
    addresses: Mapping[str, int],
    sizes: tuple[int, int, int, int],
    device: int,
    arch: int,
    stream: int,
) -> None:
    """Puts one scan on a stream, and does not wait for it.

    Args:
        addresses: device addresses of `kernel.operands()` and of "y"; everything is contiguous.
        sizes: batch, dim, length (none of them 0) and groups.
        device, arch: the device's number, and its compute capability (90 is 9.0).
        stream: a CUstream of that device; 0 is its default stream.

    Raises:
        InputError: sizes or a device that the kernel does not fit.
        MissingDependencyError: no cuda-bindings, no NVRTC, or an error of the driver.
    """
    geometry = launch_geometry(*sizes[:3], kernel.io, kernel.states)
    pointers = [(ctypes.c_void_p, addresses[name]) for name in kernel.operands()]
    integers = [(ctypes.c_int, size) for size in sizes]
    y = (ctypes.c_void_p, addresses["y"])
    launch(kernel, [geometry], [*pointers, *integers, y], device, arch, stream)
