"""How many blocks and threads the CUDA kernels are launched with, and how much workspace they need.

The same as csrc/cuda/scan_launch.h and ss2d_launch.h say to C++; tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tfanet.errors import InputError
from tfanet.plugins.operands import (
    CUDA_TYPES,
    DIRECTIONS,
    MAX_CHANNELS_CUDA,
    MAX_STATES_CUDA,
)

__all__ = [
    "Geometry",
    "SS2DSizes",
    "check_scan",
    "launch_geometry",
    "plan_ss2d",
    "scan_geometry",
    "ss2d_geometries",
]

# Grid, block, bytes of dynamic shared memory.
Geometry = tuple[tuple[int, int, int], tuple[int, int, int], int]

# As in csrc/cuda/scan_launch.h.
_MAX_LANES, _MAX_ROWS, _THREADS, _BLOCKS = 256, 8, 131072, 256
# Positions in a row are 32-bit, and run past its end by at most one tile.
_MAX_SIZE = 2**31 - 2**17

# As in csrc/cuda/ss2d_launch.h.
_SS2D_THREADS, _TILE, _CHANNELS, _ROWS, _PIXELS, _CARRIED = 256, 16, 16, 32, 32, 8
_MAX_BLOCKS = 2**31 - 1


def check_scan(io: str, states: int) -> None:
    """Raises InputError for an element type of u, or an N, that there is no kernel for."""
    if io not in CUDA_TYPES:
        raise InputError(
            f"selective_scan on CUDA: u is {io}, expected one of {', '.join(CUDA_TYPES)}; cast it"
        )
    if not 1 <= states <= MAX_STATES_CUDA:
        raise InputError(
            f"selective_scan on CUDA: A has N = {states}, expected from 1 to {MAX_STATES_CUDA}"
        )


def launch_geometry(batch: int, dim: int, length: int, io: str, states: int) -> Geometry:
    """Grid, block and bytes of dynamic shared memory for u of shape (batch, dim, length).

    Only the grid must fit the call: the kernel is right for every block (32 k, rows, 1) of at most
    256 threads and 8 rows, and for a grid of ceil(batch dim / rows).

    Raises:
        InputError: as `check_scan`; a size that is not positive or too large for one launch.
    """
    check_scan(io, states)
    for name, size in {"batch": batch, "dim": dim, "length": length}.items():
        if not 1 <= size <= _MAX_SIZE:
            raise InputError(
                f"selective_scan on CUDA: {name} is {size}, expected from 1 to {_MAX_SIZE}"
            )
    if batch * dim > _MAX_SIZE:
        raise InputError(
            f"selective_scan on CUDA: batch x dim is {batch * dim}, expected at most {_MAX_SIZE}"
        )
    return scan_geometry(batch, dim, length, io, states)


def scan_geometry(
    batch: Any,
    dim: Any,
    length: Any,
    io: str,
    states: int,
    *,
    number: Callable[[int], Any] = int,
    ceil_div: Callable[[Any, Any], Any] = lambda x, y: -(-x // y),
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any], int]:
    """`launch_geometry` without its checks and without a branch: sizes may be expressions.

    Expressions have +, -, *, //, < and ==, where a comparison is 1 or 0; `number` makes one of a
    constant. A loop of scan_launch.h that doubles a value while a condition holds, and never again
    once it fails, is 1 + [c(1)] + 2 [c(2)] + 4 [c(4)] + ... here.
    """
    one = number(1)
    rows = batch * dim
    vector = 4 if io == "float32" else 8
    items = vector if states == 1 else 8
    whole = length == (length // vector) * vector
    steps = length + (one - whole) * (vector - 1)
    lanes = number(32)
    for k in _powers(32, _MAX_LANES):
        lanes = lanes + (rows < -(-_THREADS // k)) * (number(k * items) < steps) * k
    block_rows = one
    for k in _powers(1, _MAX_ROWS):
        fits = lanes < _MAX_LANES // (2 * k) + 1
        block_rows = block_rows + fits * (number(2 * k * _BLOCKS - 1) < rows) * k
    return (ceil_div(rows, block_rows), 1, 1), (lanes, block_rows, 1), 0


def _powers(first: int, limit: int) -> list[int]:
    """first, 2 first, 4 first, ... below `limit`."""
    return [first << i for i in range(limit.bit_length()) if first << i < limit]


class SS2DSizes(NamedTuple):
    """Sizes of a 2-D scan: u is (batch, channels, height, width), R is `rank`, N is `states`."""

    batch: int
    channels: int
    height: int
    width: int
    rank: int
    states: int


def plan_ss2d(sizes: SS2DSizes) -> tuple[int, tuple[int, ...]]:
    """Bytes of workspace, and the blocks of each kernel of the 2-D scan.

    Raises:
        InputError: a size that is not positive, or too large for one call.
    """
    limits = {"rank": MAX_CHANNELS_CUDA, "channels": MAX_CHANNELS_CUDA, "states": MAX_STATES_CUDA}
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


def ss2d_geometries(sizes: SS2DSizes) -> list[Geometry]:
    """Grid, block and bytes of dynamic shared memory of each kernel; errors as in `plan_ss2d`."""
    return [((grid, 1, 1), (_SS2D_THREADS, 1, 1), 0) for grid in plan_ss2d(sizes)[1]]
