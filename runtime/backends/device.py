"""The part of CUDA that engines need, through cuda-python: devices, streams, memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfanet.errors import InputError, MissingDependencyError

__all__ = ["Device", "DeviceArray", "DeviceError", "Pinned", "check", "cudart", "device_array"]


class DeviceError(MissingDependencyError):
    """A CUDA call that failed: no usable GPU, or not enough of its memory."""


def cudart() -> Any:
    """The module `cuda.bindings.runtime`. Raises MissingDependencyError where it is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependencyError(
            f"cuda-python cannot be imported ({error}): pip install cuda-bindings"
        ) from error
    return runtime


def check(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned behind its error code. Raises DeviceError where it failed."""
    error, *values = result
    if error.value:
        runtime = cudart()
        text = runtime.cudaGetErrorString(error)[1].decode()
        advice = {
            runtime.cudaError_t.cudaErrorMemoryAllocation: "use a smaller batch or another GPU",
            runtime.cudaError_t.cudaErrorInsufficientDriver: "install an NVIDIA driver",
            runtime.cudaError_t.cudaErrorNoDevice: "use a machine with an NVIDIA GPU",
        }.get(error, "see nvidia-smi for the state of the GPU")
        raise DeviceError(f"{text} ({error.name}): {advice}")
    return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class Device:
    """A GPU: its index, compute capability such as "8.9", and name."""

    index: int
    compute: str
    name: str

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """The GPU of that index. Raises DeviceError where there is none that can be used."""
        runtime = cudart()
        count = check(runtime.cudaGetDeviceCount())
        if not 0 <= index < count:
            raise InputError(f"device is {index}: this machine has GPUs 0 to {count - 1}")
        attribute = runtime.cudaDeviceAttr
        major, minor = (
            check(runtime.cudaDeviceGetAttribute(kind, index))
            for kind in (
                attribute.cudaDevAttrComputeCapabilityMajor,
                attribute.cudaDevAttrComputeCapabilityMinor,
            )
        )
        name = check(runtime.cudaGetDeviceProperties(index)).name.decode()
        return cls(index, f"{major}.{minor}", name)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes this GPU the calling thread's, and gives the thread its old one back."""
        runtime = cudart()
        before = check(runtime.cudaGetDevice())
        check(runtime.cudaSetDevice(self.index))
        try:
            yield
        finally:
            check(runtime.cudaSetDevice(before))


class Pinned:
    """Page-locked host memory as a NumPy array, and device memory of the same size beside it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        runtime = cudart()
        self.bytes = int(np.prod(shape)) * dtype.itemsize
        self._host = check(runtime.cudaMallocHost(self.bytes))
        try:
            self.device = int(check(runtime.cudaMalloc(self.bytes)))
        except DeviceError:
            check(runtime.cudaFreeHost(self._host))
            raise
        memory = memoryview((ctypes.c_char * self.bytes).from_address(int(self._host)))
        self.array = np.frombuffer(memory, dtype).reshape(shape)

    def free(self) -> None:
        """Gives both back; the array must not be used afterwards."""
        runtime = cudart()
        check(runtime.cudaFreeHost(self._host))
        check(runtime.cudaFree(self.device))


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in GPU memory that belongs to somebody else.

    Attributes:
        pointer: device address. shape, dtype: of the array. owner: keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any


def device_array(value: Any, stream: int) -> DeviceArray | None:
    """A view of an array in GPU memory, by DLPack or `__cuda_array_interface__`; else None.

    Args:
        value: anything, such as a torch, CuPy or JAX array. stream: the CUDA stream that will read
            it; by DLPack the producer makes it wait for its own work, else we wait here.

    Raises InputError where the array is not contiguous.
    """
    if isinstance(value, np.ndarray):
        return None
    place = getattr(value, "__dlpack_device__", None)
    if place is not None and place()[0] == _DLPACK_CUDA:
        return _from_dlpack(value, stream)
    facts = getattr(value, "__cuda_array_interface__", None)
    if facts is None:
        return None
    producer = facts.get("stream")
    if producer is not None:
        check(cudart().cudaStreamSynchronize(producer))
    dtype, shape = np.dtype(facts["typestr"]), tuple(facts["shape"])
    _check_contiguous(shape, facts.get("strides"), dtype.itemsize)
    return DeviceArray(int(facts["data"][0]), shape, dtype, value)


_DLPACK_CUDA = 2
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f"}


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, the same in all versions of unversioned capsules."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(value: Any, stream: int) -> DeviceArray:
    # The capsule keeps its name, so that its own destructor releases the tensor with it.
    capsule = value.__dlpack__(stream=stream)
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(read(capsule, b"dltensor"))
    if tensor.code not in _DLPACK_KINDS or tensor.lanes != 1:
        raise InputError(f"a DLPack array of type code {tensor.code} was given: use float32")
    dtype = np.dtype(f"{_DLPACK_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:
        strides = tuple(step * dtype.itemsize for step in tensor.strides[: tensor.ndim])
    _check_contiguous(shape, strides, dtype.itemsize)
    return DeviceArray(tensor.data + tensor.byte_offset, shape, dtype, capsule)


def _check_contiguous(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int
) -> None:
    if strides is None:
        return
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise InputError(
                f"a GPU array of shape {shape} has the strides {strides}: make it contiguous"
            )
        step *= size
