"""Derivatives of every order and kind, and vmap, against a loop in float64 with PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

from tfanet.plugins import selective_scan, ss2d

Function = Callable[..., Tensor]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan(*x: Tensor | None) -> Tensor:
    return selective_scan(*x, True)  # type: ignore[arg-type]


def scan_by_steps(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: Any, delta_bias: Any
) -> Tensor:
    """The definition, a step and a group at a time."""
    groups, width = B.shape[1], u.shape[1] // B.shape[1]
    delta = F.softplus(delta if delta_bias is None else delta + delta_bias[:, None])
    rows = []
    for g in range(groups):
        c = slice(g * width, (g + 1) * width)
        h, steps = torch.zeros((), dtype=u.dtype), []
        for t in range(u.shape[2]):
            inflow = (delta[:, c, t] * u[:, c, t])[..., None] * B[:, g, None, :, t]
            h = torch.exp(delta[:, c, t, None] * A[c]) * h + inflow
            steps.append((h * C[:, g, None, :, t]).sum(-1))
        rows.append(torch.stack(steps, -1))
    y = torch.cat(rows, 1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * z * torch.sigmoid(z)


def ss2d_by_steps(
    u: Tensor, x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """The 2-D scan: four walks over the pixels, each by `scan_by_steps`."""
    channels, height, width = u.shape[1:]
    rank, states = dt_weight.shape[2], A.shape[1]
    pixels = torch.arange(height * width).view(height, width)
    rows, columns = pixels.flatten(), pixels.t().flatten()
    total = torch.zeros_like(u.flatten(2))
    for k, walk in enumerate((rows, columns, rows.flip(0), columns.flip(0))):
        x = u.flatten(2)[:, :, walk]
        dt, B, C = torch.split(x_proj[k] @ x, [rank, states, states], 1)
        of_k = slice(k * channels, (k + 1) * channels)
        y = scan_by_steps(
            x, dt_weight[k] @ dt, A[of_k], B[:, None], C[:, None], D[of_k], None, dt_bias[k]
        )
        total = total + y[:, :, torch.argsort(walk)]
    return total.view_as(u)


def scan_operands(optional: bool = True, length: int = 5, seed: int = 0) -> list[Tensor | None]:
    torch.manual_seed(seed)
    x: list[Tensor | None] = [
        torch.randn(2, 4, length),
        torch.randn(2, 4, length) * 0.5,
        -torch.rand(4, 2) - 0.1,
        torch.randn(2, 2, 2, length),
        torch.randn(2, 2, 2, length),
        *((torch.randn(4), torch.randn(2, 4, length), torch.randn(4)) if optional else [None] * 3),
    ]
    return [None if v is None else v.double() for v in x]


def ss2d_operands(seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    x = [
        torch.randn(2, 2, 2, 3),
        torch.randn(4, 4, 2) * 0.7,
        torch.randn(4, 2, 2) * 0.7,
        torch.randn(4, 2) - 1,
        -torch.rand(8, 1) - 0.1,
        torch.randn(8),
    ]
    return [v.double() for v in x]


def both(kind: str) -> tuple[Function, Function, list[Any]]:
    """The operator, its definition, and operands."""
    if kind == "ss2d":
        return ss2d, ss2d_by_steps, ss2d_operands()
    return scan, scan_by_steps, scan_operands(kind == "all operands")


KINDS = ("all operands", "needed operands", "ss2d")
# Longer than a chunk of the form that is differentiated, so that chunks are joined too.
LONG = 35


def there(x: list[Any]) -> tuple[int, ...]:
    return tuple(i for i, v in enumerate(x) if v is not None)


def of_present(function: Function, x: list[Any]) -> Function:
    """The function of those operands alone that are there."""

    def call(*values: Tensor) -> Tensor:
        given = list(x)
        for i, v in zip(there(x), values, strict=True):
            given[i] = v
        return function(*given)

    return call


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_derivatives_by_differences(kind: str) -> None:
    ours, _, x = both(kind)
    present = [x[i].requires_grad_() for i in there(x)]
    function = of_present(ours, x)
    check = {"fast_mode": True, "check_batched_grad": kind != "ss2d"}
    assert torch.autograd.gradcheck(function, present, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(function, present, check_fwd_over_rev=True, **check)


TRANSFORMS: dict[str, Callable[[Function, tuple[int, ...]], Function]] = {
    "jacrev": lambda f, n: jacrev(f, n),
    "jacfwd": lambda f, n: jacfwd(f, n),
    "hessian": lambda f, n: hessian(lambda *x: f(*x).pow(2).sum(), n),
    "jacrev of grad": lambda f, n: jacrev(grad(lambda *x: f(*x).pow(2).sum(), n), n),
    "grad of jacfwd": lambda f, n: grad(lambda *x: jacfwd(f)(*x).pow(2).sum(), n),
    "third": lambda f, n: grad(
        lambda *x: sum(
            v.pow(2).sum()
            for v in grad(lambda *x: grad(lambda *x: f(*x).sum(), n)(*x)[0].pow(2).sum(), n)(*x)
        ),
        n,
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_functions(kind: str, transform: str) -> None:
    ours, definition, x = both(kind)
    derive, present = TRANSFORMS[transform], [x[i] for i in there(x)]
    which = tuple(range(len(present)))
    found = derive(of_present(ours, x), which)(*present)
    close(found, derive(of_present(definition, x), which)(*present))


def test_derivatives_across_chunks() -> None:
    x = scan_operands(length=LONG)
    tangents = tuple(torch.randn_like(v) for v in x if v is not None)
    for f in (lambda f: f, lambda f: grad(lambda *x: f(*x).pow(2).sum(), tuple(range(8)))):
        found, expected = (jvp(f(g), tuple(x), tangents) for g in (scan, scan_by_steps))
        close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_derivative_with_tensors_that_hold_graphs(kind: str) -> None:
    """Operands that depend on each other: a graph must not be walked twice."""

    def third(function: Function, x: list[Any]) -> Tensor:
        root = torch.ones((), dtype=torch.float64, requires_grad=True)
        own = [None if v is None else v * (1 + (root - 1) * (i + 1)) for i, v in enumerate(x)]
        value = function(*own).pow(2).sum()
        for _ in range(2):
            (value,) = torch.autograd.grad(value, root, create_graph=True)
        return torch.autograd.grad(value, root)[0]

    ours, definition, x = both(kind)
    close(third(ours, x), third(definition, x))


@pytest.mark.parametrize("kind", ["all operands", "ss2d"])
@pytest.mark.parametrize("which", ["first", "all", "weights", "every other"])
def test_vmap_is_a_loop(kind: str, which: str) -> None:
    ours, _, x = both(kind)
    mapped = {
        "first": lambda i: i == 0,
        "all": lambda i: True,
        "weights": lambda i: x[i].ndim < 3,
        "every other": lambda i: i % 2 == 1,
    }[which]
    # The mapped axis in another place for each operand.
    dims = tuple(i % (v.ndim + 1) if mapped(i) else None for i, v in enumerate(x))
    batched = [
        v if d is None else torch.stack([v * s for s in (1.0, 0.5, 1.5)], d)
        for v, d in zip(x, dims, strict=True)
    ]

    def one(i: int) -> list[Tensor]:
        pairs = zip(batched, dims, strict=True)
        return [v if d is None else v.select(d, i) for v, d in pairs]

    found = vmap(ours, dims)(*batched)
    close(found, torch.stack([ours(*one(i)) for i in range(3)]))

    def gradients(*x: Tensor) -> tuple[Tensor, ...]:
        return grad(lambda *x: ours(*x).pow(2).sum(), tuple(range(len(x))))(*x)

    per_map = [gradients(*one(i)) for i in range(3)]
    found = vmap(gradients, dims)(*batched)
    close(found, tuple(torch.stack(v) for v in zip(*per_map, strict=True)))
