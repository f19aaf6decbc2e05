"""`selective_scan`: the operator torch.ops.tfanet.selective_scan, its gradient and its checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tfanet.errors import InputError
from tfanet.plugins.kernels import cpu, cuda
from tfanet.plugins.operands import (
    MAX_STATES_CPU,
    MAX_STATES_CUDA,
    SELECTIVE_SCAN,
    Operand,
)
from tfanet.plugins.pytorch.operators import (
    arguments_of,
    check_operands,
    check_tensors,
    define,
    empty_like,
)
from tfanet.plugins.pytorch.reference import (
    selective_scan_gradients,
    selective_scan_parallel,
)

__all__ = ["selective_scan"]

_OPERANDS = SELECTIVE_SCAN.torch_operands
_DY = Operand("dy", SELECTIVE_SCAN["u"].axes)


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

    Signature and semantics are those of mamba-ssm's `selective_scan_fn`. It is
    `torch.ops.tfanet.selective_scan`, which takes B and C of rank 4 only, and checks what it is
    given wherever it is called from. CUDA tensors are scanned by our kernel on PyTorch's current
    stream, except in float64 or with N > 64, and except for the gradient: those run in PyTorch's
    operators.

    Differentiable in every tensor argument, to any order, in reverse and forward mode (jvp), and
    under `torch.vmap`. The gradient on the CPU is a kernel; forward mode, and reverse mode from
    the second order on, run in PyTorch's operators, with some ten arrays of (batch, dim, N, L).

    Where operands are infinite or NaN, y is not finite exactly where the definition says so, in
    every backend on the CPU (ours and the ONNX bodies): from that step on in that row, or in the
    rows that read that weight or group; all else is as ever. Which of NaN and the infinities
    stands there is not the same everywhere: once a state is infinite, the CPU kernels give NaN
    where the definition may give infinity. They also take exp(delta' A) above 2^127, where A is
    positive, as 2^127.

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
    check_tensors("selective_scan", _OPERANDS, (u, delta, A, B, C, D, z, delta_bias))
    return torch.ops.tfanet.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _check(*args: Any) -> None:
    """Raises InputError for what the operator does not take: its operands, then delta_softplus."""
    check_operands("selective_scan", _OPERANDS, args[:-1], _sizes)


def _check_backward(dy: Tensor, *args: Any) -> None:
    """The same for selective_scan_backward, whose first operand is dy."""
    check_operands("selective_scan_backward", (*_OPERANDS, _DY), (*args[:-1], dy), _sizes)


def _sizes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *_: Any) -> dict[str, tuple[int, str]]:
    """The size of every axis, and what has it."""
    batch, dim, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    if groups < 1 or dim % groups:
        raise InputError(
            f"selective_scan: B has {groups} groups, expected a divisor of u's dim = {dim}"
        )
    if not 1 <= states <= MAX_STATES_CPU:
        raise InputError(f"selective_scan: A has N = {states}, expected from 1 to {MAX_STATES_CPU}")
    sizes = {"batch": (batch, "as in u"), "dim": (dim, "as in u"), "L": (length, "as in u")}
    return sizes | {"N": (states, "as in A"), "G": (groups, "as in B")}


def _state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _native_args(*operands: Tensor | None, delta_softplus: bool) -> tuple[cpu.ScanArgs, Any]:
    """The kernel's arguments without y, and the tensors that must live as long as they do."""
    held: dict[str, Tensor] = {}
    args = cpu.ScanArgs(delta_softplus=delta_softplus, isa=cpu.ISAS["automatic"])
    for operand, value in zip(_OPERANDS, operands, strict=True):
        if value is None:
            continue
        name = operand.name
        if operand.weight:
            value = value.to(_state_dtype(held["u"])).contiguous()
        elif value.shape[-1] > 1 and value.stride(-1) != 1:
            value = value.contiguous()
        held[name] = value
        setattr(args, name, value.data_ptr())
        if not operand.weight:
            strides = cpu.ProjectionStrides if value.ndim == 4 else cpu.SequenceStrides
            setattr(args, f"{name}_strides", strides(*value.stride()[:-1]))
    u = held["u"]
    args.batch, args.dim, args.length = u.shape
    args.groups, args.state = held["B"].shape[1:3]
    args.dtype = cpu.DTYPES[str(u.dtype).removeprefix("torch.")]
    args.weight_dtype = cpu.DTYPES[str(_state_dtype(u)).removeprefix("torch.")]
    return args, held


def _run_forward(y: Tensor, *operands: Tensor | None, delta_softplus: bool) -> None:
    """Writes the scan to y (batch, dim, L), which is contiguous."""
    args, held = _native_args(*operands, delta_softplus=delta_softplus)
    args.y, args.y_strides = y.data_ptr(), cpu.SequenceStrides(*y.stride()[:-1])
    cpu.forward(args, torch.get_num_threads())
    del held


def _scan_cpu(u: Tensor, *args: Any) -> Tensor:
    y = empty_like(u)
    _run_forward(y, u, *args[:-1], delta_softplus=args[-1])
    return y


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
    if u.dtype == torch.float64 or A.shape[1] > MAX_STATES_CUDA:
        return selective_scan_parallel(*operands, delta_softplus)
    y = empty_like(u)
    if y.numel():
        _enqueue_forward(y, *operands, delta_softplus=delta_softplus)
    return y


def _enqueue_forward(y: Tensor, *operands: Tensor | None, delta_softplus: bool) -> None:
    """Writes the scan to y (batch, dim, L), which is contiguous, on the device's current stream."""
    given = zip(SELECTIVE_SCAN.torch_inputs, operands, strict=True)
    x = {name: value.contiguous() for name, value in given if value is not None}
    u, A = x["u"], x["A"]
    # The kernel reads weights of one type: u's or float32.
    weights = [name for name in SELECTIVE_SCAN.weights if name in x]
    narrow = all(x[name].dtype == u.dtype for name in weights)
    x |= {name: x[name].to(u.dtype if narrow else torch.float32) for name in weights}
    kernel = cuda.ScanKernel(
        io=str(u.dtype).removeprefix("torch."),
        weight=str(x["A"].dtype).removeprefix("torch."),
        states=A.shape[1],
        optional=tuple(name for name in SELECTIVE_SCAN.optional if name in x),
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


def _scan_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    folded = _fold(_OPERANDS, info.batch_size, in_dims, args[:-1])
    y = torch.ops.tfanet.selective_scan(*folded, args[-1])
    return y.unflatten(1, (info.batch_size, y.shape[1] // info.batch_size)), 1


def _fold(
    operands: Iterable[Operand], size: int, in_dims: Iterable[int | None], values: Iterable[Any]
) -> Iterator[Tensor | None]:
    """Values with the mapped axis, of `size`, folded into their channels, B and C's groups.

    Channels stand for themselves in a scan, so that weights may be mapped too; channel c goes on
    reading the group that it read.
    """
    for operand, dim, x in zip(operands, in_dims, values, strict=False):
        if x is None:
            yield None
            continue
        axis = _channel_axis(operand)
        if dim is None:
            x = x.unsqueeze(axis).expand(*x.shape[:axis], size, *x.shape[axis:])
        else:
            x = x.movedim(dim, axis)
        yield x.flatten(axis, axis + 1)


def _channel_axis(operand: Operand) -> int:
    return 0 if operand.weight else 1


def _gradient(args: Sequence[Any], dy: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.tfanet.selective_scan_backward(dy, *args)
    return (*_present(found, args), None)


def _present(gradients: Iterable[Tensor], operands: Iterable[Any]) -> Iterator[Tensor | None]:
    """Gradients, and None for operands that are absent; `operands` may go on."""
    for gradient, operand in zip(gradients, operands, strict=False):
        yield None if operand is None else gradient


# Here and below: gradients of all operands; empty tensors stand for those of absent ones.
def _backward_cpu(dy: Tensor, *scan_args: Any) -> tuple[Tensor, ...]:
    operands, delta_softplus = scan_args[:-1], scan_args[-1]
    u = operands[0]
    args, held = _native_args(*operands, delta_softplus=delta_softplus)
    slabs, batch, state = cpu.backward_slabs(args), u.shape[0], _state_dtype(u)

    found = {}
    for operand, x in zip(_OPERANDS, operands, strict=True):
        name = cpu.gradient_name(operand)
        if not name.endswith("_parts"):
            found[name] = u.new_empty(0) if x is None else empty_like(u)
            continue
        size = (0, 0) if x is None else (batch if operand.weight else slabs, *x.shape)
        found[name] = torch.empty(size, dtype=state, device=u.device)
    dy = dy.contiguous()
    addresses = {name: value.data_ptr() or None for name, value in found.items()}
    gradients = cpu.ScanGradients(dy=dy.data_ptr(), **addresses)
    cpu.backward(args, gradients, torch.get_num_threads())
    del held
    # An empty scan runs no unit; sums over no part are zero, parts per batch entry must be too.
    if u.numel() == 0:
        for value in found.values():
            value.zero_()
    sums = (v.sum(0) if n.endswith("_parts") else v for n, v in found.items())
    return tuple(v if x is None else v.to(x.dtype) for v, x in zip(sums, operands, strict=True))


def _backward_composite(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """In PyTorch's operators: on CUDA, and to be differentiated once more."""
    found = selective_scan_gradients(dy, *args)
    return tuple(dy.new_empty(0) if v is None else v.contiguous() for v in found)


def _backward_meta(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(dy.new_empty(0) if x is None else empty_like(x) for x in args[:-1])


def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size = info.batch_size
    found = torch.ops.tfanet.selective_scan_backward(
        *_fold((_DY, *_OPERANDS), size, in_dims, args[:-1]), args[-1]
    )
    gradients, out_dims = [], []
    for operand, gradient, value in zip(_OPERANDS, found, args[1:-1], strict=True):
        axis = _channel_axis(operand)
        if value is not None:
            gradient = gradient.unflatten(axis, (size, gradient.shape[axis] // size))
        gradients.append(gradient)
        out_dims.append(None if value is None else axis)
    return tuple(gradients), tuple(out_dims)


def _second_gradient(args: Sequence[Any], *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Of dy and the operands, for the gradients of what selective_scan_backward returns."""
    there = [x is not None for x in args[:-1]]

    def gradients(*present: Tensor) -> tuple[Tensor, ...]:
        values = iter(present)
        given = [next(values) if is_there else None for is_there in there]
        found = selective_scan_gradients(*given, args[-1])  # type: ignore
        return tuple(v for v in found if v is not None)

    _, pull_back, *_ = torch.func.vjp(gradients, *(x for x in args[:-1] if x is not None))
    found = iter(pull_back(tuple(v for v in _present(grads, args[1:]) if v is not None)))
    return (*(next(found) if is_there else None for is_there in there), None)


define(
    f"selective_scan({arguments_of(SELECTIVE_SCAN)}) -> Tensor",
    check=_check,
    cpu=_scan_cpu,
    cuda=_scan_cuda,
    meta=lambda u, *_: empty_like(u),
    composite=selective_scan_parallel,
    gradient=_gradient,
    vmap=_scan_vmap,
)
define(
    f"selective_scan_backward(Tensor dy, {arguments_of(SELECTIVE_SCAN)})"
    f" -> ({', '.join(['Tensor'] * len(_OPERANDS))})",
    check=_check_backward,
    cpu=_backward_cpu,
    cuda=_backward_composite,
    meta=_backward_meta,
    composite=_backward_composite,
    gradient=_second_gradient,
    vmap=_backward_vmap,
)


@register_flop_formula(torch.ops.tfanet.selective_scan)
def _flops(
    u_shape: torch.Size, delta_shape: torch.Size, A_shape: torch.Size, *_: object, **__: object
) -> int:
    """9 N + 1 operations per channel and step, VMamba's convention."""
    return u_shape.numel() * (9 * A_shape[1] + 1)
