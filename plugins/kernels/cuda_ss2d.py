"""The kernels of the 2-D scan for the GPU, and their launch.

Compiled and launched by the functions of `cuda`. PyTorch is not imported: operands are addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfanet.errors import InputError
from tfanet.plugins.kernels import cuda
from tfanet.plugins.kernels.geometry import SS2DSizes, ss2d_geometries
from tfanet.plugins.operands import CUDA_TYPES, SS2D

__all__ = ["POINTERS", "SS2DKernels", "enqueue"]

# The kernels' pointers in order; the sizes follow.
POINTERS = (*SS2D.inputs, "y", "workspace")


@dataclass(frozen=True)
class SS2DKernels:
    """What the four kernels are compiled for.

    Attributes:
        io: "float32", "float16" or "bfloat16", the type of u and y; the weights are float32.
        states: N where the kernels know it, 1; 0 for any N up to `MAX_STATES_CUDA`.

    Raises:
        InputError: an `io` that there is no kernel for.
    """

    io: str
    states: int

    sources: ClassVar[tuple[str, ...]] = (
        "ss2d_entry.cu",
        "scan_launch.h",
        "scan_product.cuh",
        "scan_step.cuh",
        "scan_types.cuh",
        "ss2d_launch.h",
        "ss2d_operands.cuh",
        "ss2d_project.cuh",
        "ss2d_scan.cuh",
    )
    kernels: ClassVar[tuple[str, ...]] = (
        "tfanet_ss2d_project",
        "tfanet_ss2d_segments",
        "tfanet_ss2d_carry",
        "tfanet_ss2d_merge",
    )

    def __post_init__(self) -> None:
        if self.io not in CUDA_TYPES:
            raise InputError(
                f"ss2d on CUDA: u is {self.io}, expected one of {', '.join(CUDA_TYPES)}; cast it"
            )

    def macros(self) -> list[str]:
        return [
            f"--define-macro=TFANET_IO={cuda.CPP_TYPES[self.io]}",
            f"--define-macro=TFANET_STATES={self.states}",
        ]


def enqueue(
    io: str, addresses: Mapping[str, int], sizes: SS2DSizes, device: int, arch: int, stream: int
) -> None:
    """Puts one 2-D scan on a stream, and does not wait for it.

    Args:
        io: the element type of u and y, see `SS2DKernels`.
        addresses: device addresses of `POINTERS`; everything is contiguous, the workspace has
            the bytes that `geometry.plan_ss2d` says, from a multiple of 16 on.
        sizes: none of them 0.
        device, arch, stream: as in `cuda.enqueue`.

    Raises:
        InputError: sizes, a type or a device that the kernels do not fit.
        MissingDependencyError: no cuda-bindings, no NVRTC, or an error of the driver.
    """
    geometries = ss2d_geometries(sizes)
    kernels = SS2DKernels(io, 1 if sizes.states == 1 else 0)
    pointers = [(ctypes.c_void_p, addresses[name]) for name in POINTERS]
    integers = [(ctypes.c_int, size) for size in sizes]
    cuda.launch(kernels, geometries, [*pointers, *integers], device, arch, stream)
