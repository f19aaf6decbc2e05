"""`ss2d`: the fused 2-D scan, the operator torch.ops.tfanet.ss2d, its gradient and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tfanet.errors import InputError

from . import cuda, cuda_ss2d, native
from .native import DIRECTIONS
from .reference import ss2d_composed
from .scan import selective_scan

__all__ = ["ss2d"]

_K = str(DIRECTIONS)
_AXES = {
    "u": ("batch", "E", "H", "W"),
    "x_proj_weight": (_K, "R + 2N", "E"),
    "dt_weight": (_K, "E", "R"),
    "dt_bias": (_K, "E"),
    "A": (f"{_K}E", "N"),
    "D": (f"{_K}E",),
}
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ss2d(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """VMamba's selective scan of a map in four directions, from the map to the merged map.

        dt_k, B_k, C_k = x_proj_weight[k] u                        (at every pixel)
        delta_k = softplus(dt_weight[k] dt_k + dt_bias[k])
        y = sum_k selective_scan(u, delta_k, A_k, B_k, C_k, D_k), along direction k

    Directions k: rows, columns, rows reversed, columns reversed, as in `cross_scan`. No expanded
    copy of u, delta or y is held: of the size of four maps the workspace is (R + 2N) / E, and on
    CUDA (N + 1) / 16 besides, on the CPU two maps of 16 channels for every thread. Differentiable
    in every argument; the gradient keeps the arguments only and goes through the parts of the
    operator again.

    Args:
        u: (batch, E, H, W), float32, float64, float16 or bfloat16, of any strides.
        x_proj_weight: (4, R + 2N, E): rows of dt (R of them, the rank), then of B, then of C.
        dt_weight: (4, E, R). dt_bias: (4, E).
        A: (4E, N), N from 1 to 256; usually negative. D: (4E). The weights may have any of the
            dtypes, and are converted to the state's.

    Returns:
        y (batch, E, H, W) in u's dtype, contiguous. Projections and state are float64 for float64
        u, else float32 (on CUDA where N is above 64, projections are in u's dtype).

    Raises:
        InputError: naming the argument that does not fit, what it is and what was expected.
        MissingDependencyError: on the CPU, where the native library has not been built.
    """
    _check(u, x_proj_weight, dt_weight, dt_bias, A, D)
    return torch.ops.tfanet.ss2d(u, x_proj_weight, dt_weight, dt_bias, A, D)


def _check(*operands: Tensor) -> None:
    """Raises InputError for the first operand of a wrong type, rank, dtype, device or size."""
    u = operands[0]
    for (name, axes), value in zip(_AXES.items(), operands, strict=True):
        if not isinstance(value, Tensor):
            raise InputError(f"ss2d: {name} is a {type(value).__name__}, expected a tensor")
        if value.ndim != len(axes):
            raise InputError(
                f"ss2d: {name} has shape {tuple(value.shape)}, expected ({', '.join(axes)})"
            )
        if value.dtype not in _DTYPES:
            raise InputError(
                f"ss2d: {name} is {value.dtype}, expected one of the real dtypes float32, "
                "float64, float16, bfloat16"
            )
        if value.device != u.device:
            raise InputError(
                f"ss2d: {name} is on {value.device}, expected {u.device} as u; move it"
            )
    inner, rank, states = u.shape[1], operands[2].shape[2], operands[4].shape[1]
    if rank < 1:
        raise InputError(f"ss2d: dt_weight has R = {rank}, expected 1 or more")
    if not 1 <= states <= native.MAX_STATE:
        raise InputError(f"ss2d: A has N = {states}, expected from 1 to {native.MAX_STATE}")
    sizes = {_K: DIRECTIONS, "E": inner, "R": rank, "N": states}
    sizes |= {"R + 2N": rank + 2 * states, f"{_K}E": DIRECTIONS * inner}
    named = zip(_AXES.items(), operands, strict=True)
    # x_proj_weight last: its rows follow from R and N.
    for (name, axes), value in sorted(named, key=lambda entry: entry[0][0] == "x_proj_weight"):
        expected = tuple(
            sizes.get(axis, size) for axis, size in zip(axes, value.shape, strict=True)
        )
        if tuple(value.shape) != expected:
            raise InputError(
                f"ss2d: {name} has shape {tuple(value.shape)}, expected {expected} = "
                f"({', '.join(axes)}), with E = {inner} as in u, R = {rank} as in dt_weight and "
                f"N = {states} as in A"
            )


def _state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def run_into(
    y: Tensor, u: Tensor, *weights: Tensor, isa: str = "automatic", threads: int | None = None
) -> None:
    """Writes the 2-D scan of u to y (batch, E, H, W), which is contiguous and of u's dtype.

    Args:
        weights: the others of `ss2d`'s arguments. isa: one of `native.ISAS`. threads: PyTorch's.
    """
    threads = threads or torch.get_num_threads()
    u = u.contiguous()
    held = [weight.to(_state_dtype(u)).contiguous() for weight in weights]
    names = list(_AXES)[1:]
    addresses = {name: value.data_ptr() for name, value in zip(names, held, strict=True)}
    batch, inner, height, width = u.shape
    args = native.SS2DArgs(
        batch=batch,
        channels=inner,
        height=height,
        width=width,
        rank=weights[1].shape[2],
        state=weights[3].shape[1],
        dtype=native.DTYPES[str(u.dtype).removeprefix("torch.")],
        isa=native.ISAS[isa],
        u=u.data_ptr(),
        y=y.data_ptr(),
        **addresses,
    )
    workspace = torch.empty(native.ss2d_workspace(args, threads), dtype=torch.uint8)
    args.workspace = workspace.data_ptr()
    native.ss2d_forward(args, threads)


@torch.library.custom_op("tfanet::ss2d", mutates_args=(), device_types="cpu")
def _ss2d(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    y = torch.empty(u.shape, dtype=u.dtype)
    run_into(y, u, x_proj_weight, dt_weight, dt_bias, A, D)
    return y


@_ss2d.register_kernel("cuda")
def _ss2d_cuda(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    weights = (x_proj_weight, dt_weight, dt_bias, A, D)
    if u.dtype == torch.float64 or A.shape[1] > cuda.MAX_STATES:
        return ss2d_composed(u, *weights, scan=selective_scan).contiguous()
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel():
        _enqueue(y, u.contiguous(), *(weight.float().contiguous() for weight in weights))
    return y


def _enqueue(y: Tensor, u: Tensor, *weights: Tensor) -> None:
    """Writes the 2-D scan to y on the device's current stream; everything is contiguous."""
    batch, inner, height, width = u.shape
    rank, states = weights[1].shape[2], weights[3].shape[1]
    sizes = cuda_ss2d.MapSizes(batch, inner, height, width, rank, states)
    workspace = torch.empty(cuda_ss2d.plan(sizes)[0], dtype=torch.uint8, device=u.device)
    operands = zip(cuda_ss2d.OPERANDS, (u, *weights, y, workspace), strict=True)
    major, minor = torch.cuda.get_device_capability(u.device)
    stream = torch.cuda.current_stream(u.device)
    cuda_ss2d.enqueue(
        str(u.dtype).removeprefix("torch."),
        {name: value.data_ptr() for name, value in operands},
        sizes,
        device=stream.device_index,
        arch=10 * major + minor,
        stream=stream.cuda_stream,
    )


@_ss2d.register_fake
def _(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    with torch.enable_grad():
        leaves = [
            x.detach().requires_grad_(need)
            for x, need in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        y = ss2d_composed(*leaves, scan=selective_scan)
        found = iter(torch.autograd.grad(y, [x for x in leaves if x.requires_grad], dy))
    return tuple(next(found) if need else None for need in wanted)


_ss2d.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.tfanet.ss2d)
def ss2d_flops(
    u_shape: Sequence[int], x_proj_shape: Sequence[int], dt_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products per pixel and direction, and the scans in VMamba's convention, 9 N + 1."""
    batch, inner, height, width = u_shape
    directions, rows, rank = x_proj_shape[0], x_proj_shape[1], dt_shape[2]
    states = (rows - rank) // 2
    per_channel = 2 * rows + 2 * rank + 9 * states + 1
    return batch * height * width * directions * inner * per_channel
