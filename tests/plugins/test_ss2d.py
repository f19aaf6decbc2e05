"""The fused 2-D scan in PyTorch on the CPU, against a float64 scan written from the definition."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ISAS
from torch import Tensor

from tfanet.errors import InputError
from tfanet.plugins import selective_scan, selective_scan_parallel, ss2d, ss2d_ref
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.reference import ss2d_composed
from tfanet.plugins.pytorch.ss2d import run_into

NAMES = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")


def operands(
    batch: int = 1,
    channels: int = 16,
    height: int = 5,
    width: int = 7,
    rank: int = 2,
    states: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    return [
        normal(batch, channels, height, width).to(dtype),
        normal(4, rank + 2 * states, channels) * channels**-0.5,
        normal(4, channels, rank) * rank**-0.5,
        normal(4, channels) - 3,
        -torch.rand(4 * channels, states, generator=random) * 8 - 0.1,
        normal(4 * channels),
    ]


def oracle(x: list[Tensor], magnitude: bool = False) -> np.ndarray:
    """Four walks over the pixels, each step as the definition has it, in float64.

    With `magnitude`, the sizes of all that is added up to y.
    """
    u, x_proj, dt_weight, dt_bias, A, D = (value.double().numpy() for value in x)
    batch, channels, height, width = u.shape
    rank, states = dt_weight.shape[2], A.shape[1]
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    y = np.zeros_like(u)
    for k, walk in enumerate((rows, columns, rows[::-1], columns[::-1])):
        decay, skip = A.reshape(4, channels, states)[k], D.reshape(4, channels)[k]
        h = np.zeros((batch, channels, states))
        for i, j in walk:
            pixel = u[:, :, i, j]
            projected = pixel @ x_proj[k].T
            B, C = projected[:, rank : rank + states], projected[:, rank + states :]
            delta = np.logaddexp(0, projected[:, :rank] @ dt_weight[k].T + dt_bias[k])
            h = np.exp(delta[..., None] * decay) * h + (delta * pixel)[..., None] * B[:, None]
            terms = np.concatenate([h * C[:, None], (skip * pixel)[..., None]], -1)
            y[:, :, i, j] += (np.abs(terms) if magnitude else terms).sum(-1)
    return y


def error(y: Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert tuple(y.shape) == expected.shape
    return float(np.abs(y.double().numpy() - expected).max() / np.abs(expected).max())


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 50),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    rank=st.integers(1, 20),
    states=st.sampled_from((1, 1, 1, 2, 5, 16)),
    threads=st.integers(1, 4),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**20),
)
def test_random_shapes(
    batch: int, channels: int, height: int, width: int, rank: int, states: int,
    threads: int, isa: str, seed: int,
) -> None:  # fmt: skip
    x = operands(batch, channels, height, width, rank, states, seed=seed)
    y = torch.full_like(x[0], torch.nan)
    run_into(y, *x, isa=isa, threads=threads)
    # All of a small map may be small by cancellation: then the sizes of what is added up count.
    scale = np.abs(oracle(x)).max() / oracle(x, magnitude=y.numel() < 500).max()
    assert error(y, oracle(x)) * min(1, scale) < 1e-6


# Tiles of 64 pixels, blocks of 16 channels, sums of 256 products, units of 96 rows.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 8, 8),
        (1, 15, 1, 65),
        (2, 17, 129, 1),
        (1, 257, 9, 7),
        (1, 31, 3, 43, 40),
        (1, 1, 1, 1),
    ],
)
def test_edges_of_tiles_and_blocks(isa: str, shape: tuple[int, ...]) -> None:
    x = operands(*shape)
    y = torch.full_like(x[0], torch.nan)
    run_into(y, *x, isa=isa, threads=2)
    assert error(y, oracle(x)) < 1e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)],
)
def test_dtypes(isa: str, dtype: torch.dtype, tolerance: float) -> None:
    x = operands(2, 37, 11, 13, 5, 3, dtype)
    if dtype == torch.float64:
        x = [value.double() for value in x]
    y = torch.full_like(x[0], torch.nan)
    run_into(y, *x, isa=isa, threads=2)
    assert y.dtype == dtype
    assert error(y, oracle(x)) < tolerance


def test_every_thread_count_gives_the_same_bits() -> None:
    x = operands(2, 70, 40, 33, 30)
    results = []
    for threads in (1, 2, 3, 4):
        y = torch.empty_like(x[0])
        run_into(y, *x, threads=threads)
        results.append(y)
    assert all(torch.equal(y, results[0]) for y in results)


def test_large_maps_stay_exact_under_weak_decay() -> None:
    """16,384 steps that hardly forget; large enough to be written past the caches."""
    x = operands(1, 144, 128, 128, 4)
    x[4] = x[4] * 1e-3
    expected = ss2d_ref(*x).numpy()
    assert error(ss2d(*x), expected) < 1e-6


def test_references_agree_with_the_definition() -> None:
    x = operands(2, 6, 4, 9, 3, 2)
    assert error(ss2d_ref(*x), oracle(x)) < 1e-13
    for scan in (selective_scan, selective_scan_parallel):
        assert error(ss2d_composed(*x, scan=scan), oracle(x)) < 1e-6


@pytest.mark.parametrize("which", range(6))
def test_any_strides(which: int) -> None:
    x = operands(2, 8, 6, 5, 3, 2)
    expected = ss2d(*x)
    plain = x[which]
    for view in (
        plain.transpose(0, -1).contiguous().transpose(0, -1),
        torch.stack([plain, plain], -1)[..., 0],
        plain.flip(0).contiguous().flip(0),
    ):
        assert torch.equal(ss2d(*x[:which], view, *x[which + 1 :]), expected)
    if which == 0:
        nhwc = plain.contiguous(memory_format=torch.channels_last)
        assert torch.equal(ss2d(nhwc, *x[1:]), expected)
        x[0] = plain[:1, :1].expand(2, 8, 6, 5)
        assert error(ss2d(*x), oracle(x)) < 1e-6


@pytest.mark.parametrize("weights", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype_are_converted(weights: torch.dtype) -> None:
    x = operands(1, 8, 6, 5, 3, 2)
    x[1:] = [value.to(weights) for value in x[1:]]
    assert error(ss2d(*x), oracle(x)) < 1e-6


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0), (1, 0, 4, 4)])
def test_empty_maps(shape: tuple[int, ...]) -> None:
    x = operands(2, 8, 4, 4)
    x[0] = x[0].new_empty(shape)
    if shape[1] == 0:
        x[1], x[2], x[3] = x[1][:, :, :0], x[2][:, :0], x[3][:, :0]
        x[4], x[5] = x[4][:0], x[5][:0]
    assert ss2d(*x).shape == shape


def test_gradients_are_those_of_the_parts() -> None:
    x = [value.double().requires_grad_() for value in operands(2, 3, 4, 3, 2, 2)]
    assert torch.autograd.gradcheck(ss2d, x, fast_mode=True)
    weight = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    found = torch.autograd.grad((ss2d(*x) * weight).sum(), x)
    reference = torch.autograd.grad((ss2d_ref(*x) * weight).sum(), x)
    for mine, other in zip(found, reference, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_gradients_of_some_arguments_only() -> None:
    x = operands(1, 5, 4, 3)
    x[2].requires_grad_()
    (found,) = torch.autograd.grad(ss2d(*x).square().sum(), [x[2]])
    (expected,) = torch.autograd.grad(ss2d_ref(*x).square().sum(), [x[2]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_registration() -> None:
    x = [value.requires_grad_() for value in operands(1, 5, 4, 3)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.tfanet.ss2d.default, x, test_utils=tests)


def test_compiles_to_one_node_with_open_sizes() -> None:
    class Block(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return ss2d(*x)

    x = operands(2, 8, 6, 5)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    program = torch.export.export(
        Block(), tuple(x), dynamic_shapes={"x": (dims, *[None] * 5)}, strict=False
    )
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [torch.ops.tfanet.ss2d.default]
    other = operands(3, 8, 4, 11)
    assert torch.equal(program.module()(*other), ss2d(*other))


def change(index: int, value: Any) -> list[Any]:
    x: list[Any] = operands(2, 8, 4, 4, 3, 2)
    x[index] = value(x[index])
    return x


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, lambda u: u[0], r"u has shape \(8, 4, 4\), expected \(batch, E, H, W\)"),
        (0, lambda u: u.int(), "u is torch.int32, expected .* float32"),
        (0, lambda u: u.numpy(), "u is a ndarray, expected a tensor"),
        (1, lambda w: w[:, :-1], r"x_proj_weight .*\(4, 6, 8\), expected \(4, 7, 8\)"),
        (1, lambda w: w[:3], r"x_proj_weight .*expected \(4, 7, 8\)"),
        (1, lambda w: w[..., :7], r"x_proj_weight .*E = 8 as in u"),
        (2, lambda w: w.transpose(1, 2), r"dt_weight .*\(4, 3, 8\), expected \(4, 8, 8\)"),
        (2, lambda w: w[..., :0], "dt_weight has R = 0"),
        (3, lambda b: b.flatten(), r"dt_bias has shape \(32,\), expected \(4, E\)"),
        (3, lambda b: None, "dt_bias is a NoneType"),
        (4, lambda a: a[:31], r"A has shape \(31, 2\), expected \(32, 2\)"),
        (4, lambda a: a.expand(32, 2).repeat(1, 200), "A has N = 400, expected from 1 to 256"),
        (4, lambda a: a.cfloat(), "A is torch.complex64"),
        (5, lambda d: d[:8], r"D has shape \(8,\), expected \(32,\)"),
        (5, lambda d: d.to("meta"), "D is on meta, expected cpu as u; move it"),
    ],
)
def test_bad_arguments_are_named(index: int, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"ss2d: {words}"):
        ss2d(*change(index, value))


def test_the_kernel_refuses_what_it_cannot_run() -> None:
    x = operands()
    args = cpu.SS2DArgs(1, 16, 5, 7, 2, 1, 9, 0, *(value.data_ptr() for value in x), 0, 0)
    with pytest.raises(InputError, match="ss2d: unknown dtype"):
        cpu.ss2d_forward(args, 1)
    args.dtype, args.width = 0, 2**30
    with pytest.raises(InputError, match="below 2\\^31"):
        cpu.ss2d_forward(args, 1)
    args.batch, args.width = 2**60, 7
    with pytest.raises(InputError, match="sizes are too large"):
        cpu.ss2d_forward(args, 1)
    args.batch, args.rows, args.D, args.y = 1, None, args.A, args.A
    with pytest.raises(InputError, match="threads must be 1 or more"):
        cpu.ss2d_forward(args, 0)
    args.u = None
    with pytest.raises(InputError, match="must not be null"):
        cpu.ss2d_forward(args, 1)


def test_an_unknown_instruction_set_is_an_error() -> None:
    code = """
import torch
from tfanet.plugins import ss2d
try:
    ss2d(torch.ones(1, 1, 2, 2), torch.ones(4, 3, 1), torch.ones(4, 1, 1), torch.ones(4, 1),
         -torch.ones(4, 1), torch.ones(4))
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "TFANET_SCAN_ISA": "altivec"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "ss2d: this machine lacks the instruction set" in done.stdout


def test_the_workspace_is_small() -> None:
    """(R + 2N) / E of four maps, and two maps of 16 channels for every thread."""
    args = cpu.SS2DArgs(1, 256, 120, 120, 8, 1, 0, 0)
    four_maps = 4 * 256 * 14400 * 4
    projected, threads = 10 / 256 * four_maps, 2 * 2 * 16 * 14400 * 4
    assert cpu.ss2d_workspace(args, 2) < 1.01 * (projected + threads) < four_maps / 8
