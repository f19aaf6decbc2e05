"""`ss2d`: the fused 2-D scan, the operator torch.ops.tfanet.ss2d, its gradient and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tfanet.errors import InputError
from tfanet.plugins.kernels import cpu, cuda_ss2d
from tfanet.plugins.kernels.geometry import SS2DSizes, plan_ss2d
from tfanet.plugins.operands import MAX_STATES_CPU, MAX_STATES_CUDA, SS2D, derived_sizes
from tfanet.plugins.pytorch.operators import (
    arguments_of,
    check_operands,
    check_tensors,
    define,
    empty_like,
)
from tfanet.plugins.pytorch.reference import ss2d_composed, ss2d_gradients
from tfanet.plugins.pytorch.selective_scan import selective_scan

__all__ = ["ss2d"]


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
    in every argument, to any order and in forward mode, and under `torch.vmap`; the gradient keeps
    the arguments only and goes through the parts of the operator again. One pixel that is not
    finite makes y so in all of its map: see `selective_scan`.

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
    check_tensors("ss2d", SS2D.torch_operands, (u, x_proj_weight, dt_weight, dt_bias, A, D))
    return torch.ops.tfanet.ss2d(u, x_proj_weight, dt_weight, dt_bias, A, D)


def _check(*operands: Tensor) -> None:
    """Raises InputError for what the operator does not take."""
    check_operands("ss2d", SS2D.torch_operands, operands, _sizes)


def _sizes(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> dict[str, tuple[int, str]]:
    """The size of every axis, and what has it."""
    batch, channels, height, width = u.shape
    rank, states = dt_weight.shape[2], A.shape[1]
    if rank < 1:
        raise InputError(f"ss2d: dt_weight has R = {rank}, expected 1 or more")
    if not 1 <= states <= MAX_STATES_CPU:
        raise InputError(f"ss2d: A has N = {states}, expected from 1 to {MAX_STATES_CPU}")
    derived = derived_sizes({"E": channels, "R": rank, "N": states})
    return {
        "batch": (batch, "as in u"),
        "E": (channels, "as in u"),
        "H": (height, "as in u"),
        "W": (width, "as in u"),
        "R": (rank, "as in dt_weight"),
        "N": (states, "as in A"),
        "R + 2N": (derived["R + 2N"], f"for dt_weight's R = {rank} and A's N = {states}"),
        "4E": (derived["4E"], f"for u's E = {channels}"),
        "K": (derived["K"], "directions"),
    }


def _state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def run_into(
    y: Tensor, u: Tensor, *weights: Tensor, isa: str = "automatic", threads: int | None = None
) -> None:
    """Writes the 2-D scan of u to y (batch, E, H, W), which is contiguous and of u's dtype.

    Args:
        weights: the others of `ss2d`'s arguments. isa: one of `cpu.ISAS`. threads: PyTorch's.
    """
    threads = threads or torch.get_num_threads()
    u = u.contiguous()
    held = [weight.to(_state_dtype(u)).contiguous() for weight in weights]
    names = SS2D.torch_inputs[1:]
    addresses = {name: value.data_ptr() for name, value in zip(names, held, strict=True)}
    batch, channels, height, width = u.shape
    args = cpu.SS2DArgs(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        rank=weights[1].shape[2],
        state=weights[3].shape[1],
        dtype=cpu.DTYPES[str(u.dtype).removeprefix("torch.")],
        isa=cpu.ISAS[isa],
        u=u.data_ptr(),
        y=y.data_ptr(),
        **addresses,
    )
    size = cpu.ss2d_workspace(args, threads)
    workspace = torch.empty(size, dtype=torch.uint8, device=u.device)
    args.workspace = workspace.data_ptr()
    cpu.ss2d_forward(args, threads)


def _ss2d_cpu(u: Tensor, *weights: Tensor) -> Tensor:
    y = empty_like(u)
    run_into(y, u, *weights)
    return y


def _ss2d_cuda(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    weights = (x_proj_weight, dt_weight, dt_bias, A, D)
    if u.dtype == torch.float64 or A.shape[1] > MAX_STATES_CUDA:
        return _composite(u, *weights)
    y = empty_like(u)
    if y.numel():
        _enqueue(y, u.contiguous(), *(weight.float().contiguous() for weight in weights))
    return y


def _enqueue(y: Tensor, u: Tensor, *weights: Tensor) -> None:
    """Writes the 2-D scan to y on the device's current stream; everything is contiguous."""
    batch, channels, height, width = u.shape
    rank, states = weights[1].shape[2], weights[3].shape[1]
    sizes = SS2DSizes(batch, channels, height, width, rank, states)
    workspace = torch.empty(plan_ss2d(sizes)[0], dtype=torch.uint8, device=u.device)
    operands = zip(cuda_ss2d.POINTERS, (u, *weights, y, workspace), strict=True)
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


def _composite(u: Tensor, *weights: Tensor) -> Tensor:
    """In differentiable parts; PyTorch convolves no empty map."""
    if u.numel() == 0:
        return torch.zeros_like(u)
    return ss2d_composed(u, *weights, scan=selective_scan).contiguous()


def _gradient(operands: Sequence[Tensor], dy: Tensor) -> tuple[Tensor | None, ...]:
    if dy.numel() == 0:
        return tuple(torch.zeros_like(x) for x in operands)
    backward = torch.ops.tfanet.selective_scan_backward
    return ss2d_gradients(dy, *operands, scan_gradients=backward)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
    u, *weights = args
    if any(dim is not None for dim in in_dims[1:]):  # a batch has but one set of weights
        calls = (
            [x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([torch.ops.tfanet.ss2d(*call) for call in calls]), 0
    y = torch.ops.tfanet.ss2d(u.movedim(in_dims[0] or 0, 0).flatten(0, 1), *weights)
    return y.unflatten(0, (info.batch_size, y.shape[0] // info.batch_size)), 0


define(
    f"ss2d({arguments_of(SS2D)}) -> Tensor",
    check=_check,
    cpu=_ss2d_cpu,
    cuda=_ss2d_cuda,
    meta=lambda u, *_: empty_like(u),
    composite=_composite,
    gradient=_gradient,
    vmap=_vmap,
)


@register_flop_formula(torch.ops.tfanet.ss2d)
def ss2d_flops(
    u_shape: Sequence[int], x_proj_shape: Sequence[int], dt_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products per pixel and direction, and the scans in VMamba's convention, 9 N + 1."""
    batch, channels, height, width = u_shape
    directions, rows, rank = x_proj_shape[0], x_proj_shape[1], dt_shape[2]
    states = (rows - rank) // 2
    per_channel = 2 * rows + 2 * rank + 9 * states + 1
    return batch * height * width * directions * channels * per_channel
