"""The kernels of the 2-D scan for the GPU: how many blocks, how much workspace, and their launch.

Compiled and launched by the functions of `cuda`. PyTorch is not imported: operands are addresses.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from tfanet.errors import InputError
from tfanet.plugins.kernels import cuda
from tfanet.plugins.kernels.cpu import DIRECTIONS

__all__ = ["OPERANDS", "MapKernels", "MapSizes", "enqueue", "plan"]

# The kernels' pointers in order; the sizes follow.
OPERANDS = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D", "y", "workspace")

# As in csrc/cuda/ss2d_launch.h.
_THREADS, _TILE, _CHANNELS, _ROWS, _PIXELS, _CARRIED = 256, 16, 16, 32, 32, 8
# Rows of weights, and rows of a tile, are counted in 32 bits.
_MAX_CHANNELS, _MAX_BLOCKS = 2**20, 2**31 - 1


class MapSizes(NamedTuple):
    """Sizes of a call: u is (batch, channels, height, width), R is `rank`, N is `states`."""

    batch: int
    channels: int
    height: int
    width: int
    rank: int
    states: int


@dataclass(frozen=True)
class MapKernels:
    """What the four kernels are compiled for.

    Attributes:
        io: "float32", "float16" or "bfloat16", the type of u and y; the weights are float32.
        states: N where the kernels know it, 1; 0 for any N up to `cuda.MAX_STATES`.

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
        if self.io not in cuda.TYPES:
            raise InputError(
                f"ss2d on CUDA: u is {self.io}, expected one of {', '.join(cuda.TYPES)}; cast it"
            )

    def macros(self) -> list[str]:
        return [
            f"--define-macro=TFANET_IO={cuda.TYPES[self.io]}",
            f"--define-macro=TFANET_STATES={self.states}",
        ]


def plan(sizes: MapSizes) -> tuple[int, tuple[int, ...]]:
    """Bytes of workspace and the blocks of each kernel; `plan_map` of ss2d_launch.h in Python.

    Raises:
        InputError: a size that is not positive, or too large for one call.
    """
    limits = {"rank": _MAX_CHANNELS, "channels": _MAX_CHANNELS, "states": cuda.MAX_STATES}
    for name, size in sizes._asdict().items():
        limit = limits.get(name, _MAX_BLOCKS)
        if not 1 <= size <= limit:
            raise InputError(f"ss2d on CUDA: {name} is {size}, expected from 1 to {limit}")
    batch, channels, height, width, rank, states = sizes
    across, down = -(-width // _TILE), -(-height // _TILE)
    tiles, rows = across * down, rank + 2 * states
    channel_blocks = -(-channels // _CHANNELS)
    scans = batch * DIRECTIONS
    segments = max(height * across, width * down)
    floats = scans * tiles * rows * _TILE**2
    floats += scans * (1 + states) * segments * channel_blocks * _CHANNELS
    row_blocks = -(-DIRECTIONS * rows // _ROWS)
    blocks = batch * tiles * channel_blocks
    grids = (
        batch * tiles * (_TILE**2 // _PIXELS) * row_blocks,
        blocks,
        scans * states * (channel_blocks * _CHANNELS // _CARRIED),
        blocks,
    )
    if max(*grids, tiles * _TILE**2) > _MAX_BLOCKS:
        raise InputError(
            f"ss2d on CUDA: u of {math.prod(sizes[:4])} elements is too large for one call; "
            "split the batch"
        )
    return 4 * floats, grids


def enqueue(
    io: str, addresses: Mapping[str, int], sizes: MapSizes, device: int, arch: int, stream: int
) -> None:
    """Puts one 2-D scan on a stream, and does not wait for it.

    Args:
        io: the element type of u and y, see `MapKernels`.
        addresses: device addresses of `OPERANDS`; everything is contiguous, the workspace has
            the bytes that `plan` says, from a multiple of 16 on.
        sizes: none of them 0.
        device, arch, stream: as in `cuda.enqueue`.

    Raises:
        InputError: sizes, a type or a device that the kernels do not fit.
        MissingDependencyError: no cuda-bindings, no NVRTC, or an error of the driver.
    """
    _, grids = plan(sizes)
    kernels = MapKernels(io, 1 if sizes.states == 1 else 0)
    pointers = [(ctypes.c_void_p, addresses[name]) for name in OPERANDS]
    integers = [(ctypes.c_int, size) for size in sizes]
    geometries = [((grid, 1, 1), (_THREADS, 1, 1), 0) for grid in grids]
    cuda.launch(kernels, geometries, [*pointers, *integers], device, arch, stream)
