"""How the operators of torch.ops.tfanet are registered, and the checks that stand in each of them.

Exported programs and compiled graphs call an operator by its name, so what keeps a kernel inside
its operands' memory stands in front of every kernel: on the CPU, on CUDA, without data ("meta"),
and on devices that have no kernel. The functions that users call convert their arguments and check
only that they are tensors.

Derivatives are of any order and kind. Reverse mode runs the operator's `gradient`, forward mode
(jvp, jacfwd) differentiates `composite`, the same in PyTorch's own operators; both may be mixed
and nested, by torch.func or by torch.autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from tfanet.errors import InputError
from tfanet.plugins.operands import DIRECTIONS, TYPES, Operand, Operator

__all__ = ["arguments_of", "check_operands", "check_tensors", "define", "empty_like"]

_LIBRARY = torch.library.Library("tfanet", "FRAGMENT")
_DTYPES = tuple(getattr(torch, name) for name in TYPES)


def arguments_of(operator: Operator) -> str:
    """The arguments of an operator as a schema of PyTorch lists them: operands, then flags."""
    operands = (f"Tensor{'?' if x.optional else ''} {x.name}" for x in operator.torch_operands)
    return ", ".join((*operands, *(f"bool {flag}" for flag in operator.flags)))


def check_tensors(operator: str, operands: Iterable[Operand], values: Iterable[Any]) -> None:
    """Raises InputError for a value that is not a tensor, nor None where it may be."""
    for operand, value in zip(operands, values, strict=True):
        _expect_tensor(operator, operand, value)


def _expect_tensor(operator: str, operand: Operand, value: Any) -> bool:
    """Whether there is one; an error where there must be."""
    if isinstance(value, Tensor):
        return True
    if value is None and operand.optional:
        return False
    raise InputError(f"{operator}: {operand.name} is a {type(value).__name__}, expected a tensor")


def check_operands(
    operator: str,
    operands: Sequence[Operand],
    values: Sequence[Any],
    sizes_of: Callable[..., dict[str, tuple[int, str]]],
) -> None:
    """Raises InputError for the first value of a wrong layout, rank, dtype, device or size.

    Args:
        values: in the order of `operands`.
        sizes_of: of the values, whose ranks are right, the size of every axis and what has it.
    """
    # PyTorch lets None pass where a schema says Tensor.
    first = values[0]
    dtype, device = getattr(first, "dtype", None), getattr(first, "device", None)
    for operand, value in zip(operands, values, strict=True):
        if not _expect_tensor(operator, operand, value):
            continue
        name = operand.name
        if value.layout is not torch.strided:
            raise InputError(
                f"{operator}: {name} has the layout {value.layout}, expected a dense tensor; "
                "call to_dense()"
            )
        if value.ndim != len(operand.axes):
            raise InputError(
                f"{operator}: {name} has shape {tuple(value.shape)}, expected {_axes(operand)}"
            )
        if value.dtype not in _DTYPES:
            raise InputError(
                f"{operator}: {name} is {value.dtype}, expected one of the real dtypes "
                f"{', '.join(TYPES)}"
            )
        if not operand.weight and value.dtype != dtype:
            raise InputError(
                f"{operator}: {name} is {value.dtype}, expected {dtype} as {operands[0].name}; "
                "cast one of them"
            )
        if value.device != device:
            raise InputError(
                f"{operator}: {name} is on {value.device}, expected {device} as "
                f"{operands[0].name}; move it"
            )
    sizes = sizes_of(*values)
    wrong = []
    for operand, value in zip(operands, values, strict=True):
        if value is not None:
            expected = tuple([sizes[axis][0] for axis in operand.axes])
            if value.shape != expected:
                wrong.append((operand, tuple(value.shape), expected))
    if wrong:
        # What follows from other sizes is wrong where they are: it is named last.
        operand, shape, expected = min(wrong, key=lambda found: "+" in str(found[0].axes))
        known = [f"{a} = {sizes[a][0]} {sizes[a][1]}" for a in operand.axes if a != "K"]
        raise InputError(
            f"{operator}: {operand.name} has shape {shape}, expected {expected} = "
            f"{_axes(operand)}, with {', '.join(known)}"
        )


def _axes(operand: Operand) -> str:
    """In words; K, the directions, as the number that it always is."""
    return f"({', '.join(str(DIRECTIONS) if a == 'K' else a for a in operand.axes)})"


def empty_like(x: Tensor) -> Tensor:
    """Contiguous, and where x is, whatever PyTorch's default device."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def define(
    schema: str,
    *,
    check: Callable[..., None],
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    meta: Callable[..., Any],
    composite: Callable[..., Any],
    gradient: Callable[..., tuple[Tensor | None, ...]],
    vmap: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers torch.ops.tfanet.NAME, and returns it.

    Args:
        schema: "NAME(arguments) -> results", PyTorch's.
        check: raises InputError for arguments that the operator does not take.
        cpu, cuda: the kernels. meta: empty results of the right shapes.
        composite: the operator in differentiable operators of PyTorch.
        gradient: of the tuple of arguments and the gradients of the results, the gradient of each
            argument, or None; made of differentiable operators.
        vmap: batching rule, see `torch.library.register_vmap`.
    """
    name = schema.partition("(")[0]
    arguments = [a.split()[1] for a in schema[len(name) + 1 : schema.index(")")].split(", ")]

    def checked(kernel: Callable[..., Any], reads: bool = False) -> Callable[..., Any]:
        @wraps(kernel)
        def run(*args: Any) -> Any:
            check(*args)
            if reads:
                for argument, x in zip(arguments, args, strict=True):
                    if isinstance(x, Tensor) and not x.data_ptr() and x.numel():
                        raise InputError(
                            f"{name}: {argument} has no memory, expected {x.numel()} values; its "
                            "storage was resized to nothing"
                        )
            return kernel(*args)

        # Compiled functions call kernels, and do not look into them.
        return torch._disable_dynamo(run)

    def elsewhere(*args: Any) -> Any:
        where = next(x for x in args if isinstance(x, Tensor)).device
        raise InputError(f"{name}: operands are on {where}, expected cpu or cuda; move them")

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.tfanet, name).default
    _LIBRARY.impl(name, checked(cpu, reads=True), "CPU")
    _LIBRARY.impl(name, checked(cuda, reads=True), "CUDA")
    _LIBRARY.impl(name, checked(elsewhere), "CompositeExplicitAutograd")
    torch.library.register_fake(f"tfanet::{name}", checked(meta), lib=_LIBRARY)
    torch.library.register_vmap(f"tfanet::{name}", _checked_vmap(check, vmap), lib=_LIBRARY)
    _LIBRARY.impl(name, _autograd(operator, check, composite, gradient), "Autograd")
    return operator


def _checked_vmap(check: Callable[..., None], vmap: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        one = (x if d is None else x.select(d, 0) for x, d in zip(args, in_dims, strict=True))
        check(*one)
        return vmap(info, in_dims, *args)

    return rule


def _autograd(
    operator: Callable[..., Any],
    check: Callable[..., None],
    composite: Callable[..., Any],
    gradient: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """What runs under the dispatch key Autograd, at every level of nested derivatives."""

    class Recorded(_SingleLevelFunction):
        @staticmethod
        def forward(*args: Any) -> Any:
            # PyTorch turns derivatives off in here, but levels below this one may want theirs.
            with (
                torch.enable_grad(),
                forward_ad._set_fwd_grad_enabled(True),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                return operator(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.tensors = [isinstance(x, Tensor) for x in inputs]
            ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
            ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            saved = iter(ctx.saved_tensors)
            pairs = zip(ctx.tensors, ctx.others, strict=True)
            return gradient([next(saved) if is_tensor else x for is_tensor, x in pairs], *grads)

    def autograd(*args: Any) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
            check(*args)
            return composite(*args)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            with enable_single_level_autograd_function():
                return Recorded.apply(*args)  # type: ignore[attr-defined]
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return autograd
