"""`selective_scan`: the operator torch.ops.tfanet.selective_scan, its gradient and its checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tfanet.errors import InputError

from . import cuda, native
from .reference import selective_scan_parallel

__all__ = ["selective_scan"]

_AXES = {
    "u": ("batch", "dim", "L"),
    "delta": ("batch", "dim", "L"),
    "A": ("dim", "N"),
    "B": ("batch", "G", "N", "L"),
    "C": ("batch", "G", "N", "L"),
    "D": ("dim",),
    "z": ("batch", "dim", "L"),
    "delta_bias": ("dim",),
}
_OPTIONAL = ("D", "z", "delta_bias")
_WEIGHTS = ("A", "D", "delta_bias")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Selective state-space scan of Mamba with a real, diagonal A (Gu and Dao 2023, algorithm 2).

        delta' = softplus(delta + delta_bias)               (softplus only if delta_softplus)
        h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,   h_{-1} = 0
        y_t = sum_n C_t h_t + D u_t,   then y silu(z)

    Signature and semantics are those of mamba-ssm's `selective_scan_fn`. Differentiable in every
    tensor argument. It is `torch.ops.tfanet.selective_scan`, which takes B and C of rank 4 only.
    CUDA tensors are scanned by our kernel on PyTorch's current stream, except in float64 or with
    N > 64, and except for the gradient: those run as `selective_scan_parallel`.

    Args:
        u, delta, z: (batch, dim, L), all of one dtype: float32, float64, float16 or bfloat16.
        A: (dim, N), N from 1 to 256; usually negative. D, delta_bias: (dim). These three may have
            another dtype than u.
        B, C: (batch, N, L), or (batch, G, N, L), where channel c reads group c // (dim / G).

    Returns:
        y (batch, dim, L) in u's dtype. The state is float64 for float64 inputs, else float32.

    Raises:
        InputError: naming the argument that does not fit, what it is and what was expected.
        MissingDependencyError: on the CPU, where the native library has not been built; on CUDA,
            where cuda-bindings or NVRTC is not installed.
    """
    if isinstance(B, Tensor) and B.ndim == 3:
        B = B.unsqueeze(1)
    if isinstance(C, Tensor) and C.ndim == 3:
        C = C.unsqueeze(1)
    _check(u, delta, A, B, C, D, z, delta_bias)
    return torch.ops.tfanet.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _check(*operands: Tensor | None) -> None:
    """Raises InputError for the first operand of a wrong type, rank, size, dtype or device."""
    sizes: dict[str, tuple[int, str]] = {}
    u = operands[0]
    for (name, axes), value in zip(_AXES.items(), operands, strict=True):
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, Tensor) or not isinstance(u, Tensor):
            raise InputError(
                f"selective_scan: {name} is a {type(value).__name__}, expected a tensor"
            )
        expected = f"({', '.join(axes)})"
        if value.ndim != len(axes):
            raise InputError(
                f"selective_scan: {name} has shape {tuple(value.shape)}, expected {expected}"
            )
        for axis, size in zip(axes, value.shape, strict=True):
            known, owner = sizes.setdefault(axis, (size, name))
            if known != size:
                raise InputError(
                    f"selective_scan: {name} has shape {tuple(value.shape)}, expected {expected} "
                    f"with {axis} = {known} as in {owner}"
                )
        if value.dtype not in _DTYPES:
            raise InputError(
                f"selective_scan: {name} is {value.dtype}, expected one of the real dtypes "
                "float32, float64, float16, bfloat16"
            )
        if name not in _WEIGHTS and value.dtype != u.dtype:
            raise InputError(
                f"selective_scan: {name} is {value.dtype}, expected {u.dtype} as u; cast one of "
                "them"
            )
        if value.device != u.device:
            raise InputError(
                f"selective_scan: {name} is on {value.device}, expected {u.device} as u; move it"
            )
    (dim, _), (groups, _), (states, _) = sizes["dim"], sizes["G"], sizes["N"]
    if groups < 1 or dim % groups:
        raise InputError(
            f"selective_scan: B has {groups} groups, expected a divisor of u's dim = {dim}"
        )
    if not 1 <= states <= native.MAX_STATE:
        raise InputError(
            f"selective_scan: A has N = {states}, expected from 1 to {native.MAX_STATE}"
        )


def _state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _native_args(*operands: Tensor | None, delta_softplus: bool) -> tuple[native.ScanArgs, Any]:
    """The kernel's arguments without y, and the tensors that must live as long as they do."""
    held: dict[str, Tensor] = {}
    args = native.ScanArgs(delta_softplus=delta_softplus, isa=native.ISAS["automatic"])
    for name, value in zip(_AXES, operands, strict=True):
        if value is None:
            continue
        if name in _WEIGHTS:
            value = value.to(_state_dtype(held["u"])).contiguous()
        elif value.shape[-1] > 1 and value.stride(-1) != 1:
            value = value.contiguous()
        held[name] = value
        setattr(args, name, value.data_ptr())
        if name not in _WEIGHTS:
            strides = native.ProjectionStrides if value.ndim == 4 else native.SequenceStrides
            setattr(args, f"{name}_strides", strides(*value.stride()[:-1]))
    u = held["u"]
    args.batch, args.dim, args.length = u.shape
    args.groups, args.state = held["B"].shape[1:3]
    args.dtype = native.DTYPES[str(u.dtype).removeprefix("torch.")]
    args.weight_dtype = native.DTYPES[str(_state_dtype(u)).removeprefix("torch.")]
    return args, held


def _run_forward(y: Tensor, *operands: Tensor | None, delta_softplus: bool) -> None:
    """Writes the scan to y (batch, dim, L), which is contiguous."""
    args, held = _native_args(*operands, delta_softplus=delta_softplus)
    args.y, args.y_strides = y.data_ptr(), native.SequenceStrides(*y.stride()[:-1])
    native.forward(args, torch.get_num_threads())
    del held


@torch.library.custom_op("tfanet::selective_scan", mutates_args=(), device_types="cpu")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    y = torch.empty(u.shape, dtype=u.dtype)
    _run_forward(y, u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus)
    return y


@_scan.register_kernel("cuda")
def _scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    operands = (u, delta, A, B, C, D, z, delta_bias)
    if u.dtype == torch.float64 or A.shape[1] > cuda.MAX_STATES:
        return selective_scan_parallel(*operands, delta_softplus)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel():
        _enqueue_forward(y, *operands, delta_softplus=delta_softplus)
    return y


def _enqueue_forward(y: Tensor, *operands: Tensor | None, delta_softplus: bool) -> None:
    """Writes the scan to y (batch, dim, L), which is contiguous, on the device's current stream."""
    x = {n: v.contiguous() for n, v in zip(_AXES, operands, strict=True) if v is not None}
    u, A = x["u"], x["A"]
    # The kernel reads weights of one type: u's or float32.
    narrow = all(x[n].dtype == u.dtype for n in _WEIGHTS if n in x)
    x |= {n: x[n].to(u.dtype if narrow else torch.float32) for n in _WEIGHTS if n in x}
    kernel = cuda.ScanKernel(
        io=str(u.dtype).removeprefix("torch."),
        weight=str(x["A"].dtype).removeprefix("torch."),
        states=A.shape[1],
        has_D="D" in x,
        has_bias="delta_bias" in x,
        has_z="z" in x,
        softplus=delta_softplus,
    )
    major, minor = torch.cuda.get_device_capability(u.device)
    stream = torch.cuda.current_stream(u.device)
    cuda.enqueue(
        kernel,
        {name: value.data_ptr() for name, value in {**x, "y": y}.items()},
        sizes=(*u.shape, x["B"].shape[1]),
        device=stream.device_index,
        arch=10 * major + minor,
        stream=stream.cuda_stream,
    )
    # Copies made here go back to the allocator now; it gives their memory to work that is enqueued
    # on the same stream, after the scan.
    del x


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


# Gradients of u, delta, A, B, C, D, z and delta_bias; empty tensors stand for absent operands.
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("tfanet::selective_scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Gradients:
    operands = (u, delta, A, B, C, D, z, delta_bias)
    args, held = _native_args(*operands, delta_softplus=delta_softplus)
    slabs, batch, state = native.backward_slabs(args), u.shape[0], _state_dtype(u)

    def part(lead: int, like: Tensor | None, *shape: int) -> Tensor:
        return torch.empty((lead, *shape) if like is not None else (0, 0), dtype=state)

    found = {
        "du": torch.empty(u.shape, dtype=u.dtype),
        "ddelta": torch.empty(u.shape, dtype=u.dtype),
        "dA_parts": part(batch, A, *A.shape),
        "dB_parts": part(slabs, B, *B.shape),
        "dC_parts": part(slabs, C, *C.shape),
        "dD_parts": part(batch, D, u.shape[1]),
        "dz": torch.empty(u.shape if z is not None else 0, dtype=u.dtype),
        "ddelta_bias_parts": part(batch, delta_bias, u.shape[1]),
    }
    dy = dy.contiguous()
    addresses = {name: value.data_ptr() or None for name, value in found.items()}
    gradients = native.ScanGradients(dy=dy.data_ptr(), **addresses)
    native.backward(args, gradients, torch.get_num_threads())
    del held
    # An empty scan runs no unit; sums over no part are zero, parts per batch entry must be too.
    if u.numel() == 0:
        for value in found.values():
            value.zero_()
    sums = (v.sum(0) if n.endswith("parts") else v for n, v in found.items())
    return tuple(  # type: ignore[return-value]
        v if x is None else v.to(x.dtype) for v, x in zip(sums, operands, strict=True)
    )


@_scan_backward.register_kernel("cuda")
def _scan_backward_cuda(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Gradients:
    operands = (u, delta, A, B, C, D, z, delta_bias)
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in operands]
        y = selective_scan_parallel(*leaves, delta_softplus)  # type: ignore[arg-type,call-arg]
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(y, present, dy))
    return tuple(  # type: ignore[return-value]
        u.new_empty(0) if leaf is None else next(found).contiguous() for leaf in leaves
    )


@_scan_backward.register_fake
def _(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Gradients:
    return tuple(  # type: ignore[return-value]
        u.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (u, delta, A, B, C, D, z, delta_bias)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.delta_softplus = inputs[-1]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    operands = ctx.saved_tensors
    found = torch.ops.tfanet.selective_scan_backward(dy, *operands, ctx.delta_softplus)
    present = zip(found, operands, strict=True)
    return (*(grad if operand is not None else None for grad, operand in present), None)


_scan.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.tfanet.selective_scan)
def _flops(
    u_shape: torch.Size, delta_shape: torch.Size, A_shape: torch.Size, *_: object, **__: object
) -> int:
    """9 N + 1 operations per channel and step, VMamba's convention."""
    return u_shape.numel() * (9 * A_shape[1] + 1)
