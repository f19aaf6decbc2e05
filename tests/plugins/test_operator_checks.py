"""torch.ops.tfanet.* as exported programs and compiled graphs call them: past every wrapper."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tfanet.errors import InputError
from tfanet.plugins import selective_scan, ss2d

SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
MAP = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
OPERATORS = ("selective_scan", "selective_scan_backward", "ss2d")


def operands(operator: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Right ones, by name, in order."""
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random).to(dtype)

    if operator == "ss2d":
        sizes = ((2, 8, 4, 5), (4, 7, 8), (4, 8, 3), (4, 8), (32, 2), (32,))
        values = {name: normal(*size) for name, size in zip(MAP, sizes, strict=True)}
        return {**values, "A": -values["A"].abs()}
    sequence, grouped = (2, 4, 5), (2, 2, 3, 5)
    sizes = (sequence, sequence, (4, 3), grouped, grouped, (4,), sequence, (4,))
    values = {name: normal(*size) for name, size in zip(SCAN, sizes, strict=True)}
    values |= {"A": -values["A"].abs(), "delta_softplus": True}
    if operator == "selective_scan_backward":
        return {"dy": normal(*sequence), **values}
    return values


def run(operator: str, x: dict[str, Any]) -> Any:
    return getattr(torch.ops.tfanet, operator)(*x.values())


CHANGES: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("u", lambda v: v[0], r"u has shape .*, expected \(batch"),
    ("u", lambda v: v.int(), "u is torch.int32, expected one of the real dtypes"),
    ("u", lambda v: v.to_sparse(), "u has the layout torch.sparse_coo.*to_dense"),
    ("u", lambda v: v.new_empty(v.shape, device="meta"), "on (cpu|meta), expected (cpu|meta)"),
    ("A", lambda v: v[:1], "A has shape"),
    ("A", lambda v: v[0], r"A has shape .*, expected \("),
    ("A", lambda v: v[:, :0], "A has N = 0, expected from 1 to 256"),
    ("A", lambda v: v.repeat(1, 200), "A has N = .*, expected from 1 to 256"),
    ("A", lambda v: v.cfloat(), "A is torch.complex64"),
    ("A", lambda v: v.to_sparse_csr(), "A has the layout torch.sparse_csr"),
    ("D", lambda v: v[:1], "D has shape"),
    ("D", lambda v: v.new_empty(v.shape, device="meta"), "D is on|on cpu, expected meta"),
]
OF_SCANS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("delta", lambda v: v.double(), "delta is torch.float64, expected torch.float32 as u"),
    ("delta", lambda v: v[..., :4], "L = 5 as in u"),
    ("B", lambda v: v[:, :1].expand(2, 3, 3, 5), "B has 3 groups, expected a divisor"),
    ("B", lambda v: v[:, :0], "B has 0 groups"),
    ("B", lambda v: v.half(), "B is torch.float16"),
    ("C", lambda v: v[:, :1], "G = 2 as in B"),
    ("C", lambda v: v[:, :, :2], "N = 3 as in A"),
    ("z", lambda v: v[:1], "z has shape"),
    ("z", lambda v: v.bfloat16(), "z is torch.bfloat16"),
    ("delta_bias", lambda v: v[:, None], "delta_bias has shape"),
]
OF_GRADIENTS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("dy", lambda v: v[..., :1], "dy has shape"),
    ("dy", lambda v: v.double(), "dy is torch.float64"),
    ("dy", lambda v: v[0], "dy has shape"),
]
OF_MAPS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("x_proj_weight", lambda v: v[:3], "x_proj_weight has shape"),
    ("x_proj_weight", lambda v: v[:, :6], "x_proj_weight has shape"),
    ("dt_weight", lambda v: v[..., :0], "R = 0"),
    ("dt_weight", lambda v: v[:, :7], "dt_weight has shape"),
    ("dt_bias", lambda v: v.flatten(), "dt_bias has shape"),
    ("dt_bias", lambda v: v.long(), "dt_bias is torch.int64"),
]
CASES = [
    *((operator, *change) for operator in OPERATORS for change in CHANGES),
    *((operator, *change) for operator in OPERATORS[:2] for change in OF_SCANS),
    *(("selective_scan_backward", *change) for change in OF_GRADIENTS),
    *(("ss2d", *change) for change in OF_MAPS),
]


@pytest.mark.parametrize(("operator", "name", "change", "words"), CASES)
def test_wrong_operands_are_named(
    operator: str, name: str, change: Callable[[Tensor], Any], words: str
) -> None:
    x = operands(operator)
    x[name] = change(x[name])
    with pytest.raises(InputError, match=words) as raised:
        run(operator, x)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=words):  # recording a gradient
        run(operator, {**x, "A": x["A"].detach().requires_grad_()})


# Without data the check is the same one: a few of every kind will do.
@pytest.mark.parametrize(
    ("operator", "name", "change", "words"),
    [case for case in CASES if "layout" not in case[3] and "meta" not in case[3]][1::4],
)
@pytest.mark.parametrize("fake", [False, True])
def test_wrong_operands_are_named_without_data(
    operator: str, name: str, change: Callable[[Tensor], Any], words: str, fake: bool
) -> None:
    if fake:
        with FakeTensorMode() as mode:
            x = {
                n: mode.from_tensor(v) if isinstance(v, Tensor) else v
                for n, v in operands(operator).items()
            }
            x[name] = change(x[name])
            with pytest.raises(InputError, match=words):
                run(operator, x)
        return
    meta = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in operands(operator).items()}
    meta[name] = change(meta[name])
    with pytest.raises(InputError, match=words):
        run(operator, meta)


@pytest.mark.parametrize("operator", OPERATORS)
def test_pytorch_wants_no_more_of_a_registration(operator: str) -> None:
    x = operands(operator)
    x = {n: v.requires_grad_() if isinstance(v, Tensor) else v for n, v in x.items()}
    torch.library.opcheck(getattr(torch.ops.tfanet, operator).default, tuple(x.values()))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("where", ["meta", "default"])
def test_results_are_where_operands_are(operator: str, where: str) -> None:
    """Under another default device too, as models are built under."""
    x = operands(operator)
    expected = run(operator, x)
    with torch.device("meta" if where == "meta" else "cpu"):
        found = run(operator, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_views_of_every_kind_are_read_as_what_they_hold(operator: str) -> None:
    x = operands(operator)
    expected = run(operator, x)
    views: list[Callable[[Tensor], Tensor]] = [
        lambda v: v.movedim(0, -1).contiguous().movedim(-1, 0),
        lambda v: torch.stack([v, v], -1)[..., 1],
        lambda v: torch.stack([v, v])[1],
        lambda v: torch.complex(torch.zeros_like(v), -v).conj().imag,  # negated when it is read
        lambda v: torch.nn.Parameter(v, requires_grad=False),
    ]
    for view in views:
        own = {n: view(v) if isinstance(v, Tensor) else v for n, v in x.items()}
        torch.testing.assert_close(run(operator, own), expected, rtol=0, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_memory_that_was_given_back_is_not_read(operator: str) -> None:
    for name in (n for n, v in operands(operator).items() if isinstance(v, Tensor)):
        x = operands(operator)
        x[name].untyped_storage().resize_(0)
        with pytest.raises(InputError, match=f"{name} has no memory"):
            run(operator, x)


def test_exported_graphs_and_compiled_ones_call_the_checked_operators() -> None:
    class Block(torch.nn.Module):
        def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, D: Tensor) -> Tensor:
            return selective_scan(u, delta, A, B, B, D)

    x = [operands("selective_scan")[n] for n in ("u", "delta", "A", "B", "D")]
    length = torch.export.Dim("L", min=2)
    open_sizes = ({2: length}, {2: length}, None, {3: length}, None)
    graph = torch.export.export(Block(), tuple(x), dynamic_shapes=open_sizes).graph_module
    y = graph(*(v[..., :3] if v.ndim > 2 else v for v in x))[0]
    expected = Block()(*x)
    torch.testing.assert_close(y, expected[..., :3])
    for i, wrong in ((1, x[1].double()), (2, x[2][:1]), (4, x[4][:1])):
        with pytest.raises(InputError):
            graph(*x[:i], wrong, *x[i + 1 :])

    compiled = torch.compile(Block(), backend="aot_eager", fullgraph=True)
    found = [v.clone().requires_grad_() for v in x]
    eager = [v.clone().requires_grad_() for v in x]
    torch.testing.assert_close(compiled(*found), expected)
    compiled(*found).pow(2).sum().backward()
    Block()(*eager).pow(2).sum().backward()
    torch.testing.assert_close([v.grad for v in found], [v.grad for v in eager])


def test_the_2_d_scan_compiles_with_its_gradient() -> None:
    x = list(operands("ss2d").values())
    compiled = torch.compile(ss2d, backend="aot_eager", fullgraph=True)
    found = [v.clone().requires_grad_() for v in x]
    eager = [v.clone().requires_grad_() for v in x]
    compiled(*found).pow(2).sum().backward()
    ss2d(*eager).pow(2).sum().backward()
    torch.testing.assert_close([v.grad for v in found], [v.grad for v in eager])


FUZZ = """
import random, sys, torch
from tfanet.plugins import selective_scan, selective_scan_ref, ss2d, ss2d_ref
seed, calls = int(sys.argv[1]), int(sys.argv[2])
random.seed(seed); torch.manual_seed(seed)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool,
          torch.complex64, torch.float8_e4m3fn]
def size(): return random.choice([0, 1, 1, 2, 3, 4, 5, 17])
def tensor(shape, dtype):
    x = torch.randn(shape).to(dtype)
    kind = random.randrange(8)
    if kind == 0 and x.dim() > 1: x = x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == 1: x = torch.stack([x, x], -1)[..., 0]
    if kind == 2 and x.numel(): x = x.flatten()[:1].reshape([1] * x.dim()).expand(x.shape)
    return x
def spoil(x):
    if x.is_sparse or x.numel() > 10**6: return x
    kind = random.randrange(9)
    if kind == 0 and x.dim(): return x.narrow(random.randrange(x.dim()), 0, 0)
    if kind == 1 and x.dim() and min(x.shape): return x.narrow(random.randrange(x.dim()), 0, 1)
    if kind == 2: return x[None]
    if kind == 3: return x.to(random.choice(DTYPES))
    if kind == 4: return x.to("meta")
    if kind == 5: return tensor([size() for _ in range(random.randrange(5))], x.dtype)
    if kind == 6: return x.to_sparse() if x.dtype in DTYPES[:2] and x.device.type == "cpu" else x
    if kind == 7: return x[:1].expand(2**33, *x.shape[1:]) if x.dim() and x.shape[0] else x
    return x.repeat_interleave(random.choice([2, 300]), random.randrange(x.dim())) if x.dim() else x
right = wrong = 0
for _ in range(calls):
    dtype = random.choice(DTYPES[:4])
    operator = random.choice(["selective_scan", "selective_scan_backward", "ss2d"])
    if operator == "ss2d":
        b, e, h, w, r, n = (size() for _ in range(6))
        x = [tensor(s, dtype) for s in
             [(b, e, h, w), (4, r + 2 * n, e), (4, e, r), (4, e), (4 * e, n), (4 * e,)]]
        x[4] = -x[4].abs()
    else:
        b, g, k, n, l = (size() for _ in range(5))
        shapes = [(b, g * k, l)] * 2 + [(g * k, n)] + [(b, g, n, l)] * 2
        shapes += [(g * k,), (b, g * k, l), (g * k,)]
        x = [tensor(s, dtype) for s in shapes]
        x[2] = -x[2].abs()
        x[5:] = [v if random.random() < 0.7 else None for v in x[5:]]
        if operator == "selective_scan_backward":
            x.insert(0, tensor(shapes[0], dtype))
    for _ in range(random.choice([0, 1, 1, 2])):
        i = random.randrange(len(x))
        x[i] = None if x[i] is None or random.random() < 0.03 else spoil(x[i])
    if random.random() < 0.3:
        x = [v.requires_grad_() if v is not None and v.is_leaf and v.is_floating_point() else v
             for v in x]
    extra = [] if operator == "ss2d" else [True]
    try:
        y = getattr(torch.ops.tfanet, operator)(*x, *extra)
    except (ValueError, RuntimeError) as error:
        assert str(error)
        wrong += 1
        continue
    right += 1
    if operator != "selective_scan_backward" and y.device.type == "cpu" and y.numel():
        ref = ss2d_ref(*x) if operator == "ss2d" else selective_scan_ref(*x, *extra)
        scale = ref.abs().max() + 1
        limit = {torch.float64: 1e-9, torch.float32: 1e-4}.get(y.dtype, 0.1)
        assert (y.double() - ref).abs().max() <= limit * scale, (operator, x)
    total = sum(v.float().sum() for v in ([y] if isinstance(y, torch.Tensor) else y))
    if total.requires_grad and total.device.type == "cpu":
        total.backward()
print("right", right, "wrong", wrong)
"""


@pytest.mark.parametrize("seed", range(3))
def test_random_operands_give_the_result_or_one_error(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(seed), "400"],
        env={**os.environ, "MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    words = done.stdout.split()
    assert int(words[1]) > 50 and int(words[3]) > 50
