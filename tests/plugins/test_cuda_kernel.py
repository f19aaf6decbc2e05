"""The CUDA scan kernel without a GPU: its own source, run by an emulator against the oracle."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from emulation import build_emulator, emulate, raw
from torch import Tensor

from tfanet.errors import InputError
from tfanet.plugins import selective_scan_ref
from tfanet.plugins.kernels import cuda
from tfanet.plugins.kernels.geometry import launch_geometry
from tfanet.plugins.pytorch import selective_scan as scan

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPERANDS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "y")
WEIGHTS = ("A", "D", "delta_bias")
LENGTHS = (1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 225, 511, 900)


@dataclass(frozen=True)
class Call:
    """One run of the kernel; fields up to `offset` as `Call` of cuda_emulator.cpp."""

    batch: int = 1
    dim: int = 4
    length: int = 100
    groups: int = 1
    states: int = 1
    io: int = 0
    narrow_weights: bool = False
    softplus: bool = True
    has_D: bool = True
    has_z: bool = False
    has_bias: bool = True
    lanes: int = 32
    rows: int = 1
    known_states: bool = True
    hostile: bool = False
    order: int = 0  # seed of the order in which threads and blocks run
    offset: tuple[int, ...] = (0,) * 9
    seed: int = 0
    decay: float = 2.0

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.io]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.dim, self.length

    def launched(self) -> Call:
        """With the block that a GPU would run."""
        name = str(self.dtype).removeprefix("torch.")
        _, (lanes, rows, _), shared = launch_geometry(
            self.batch, self.dim, self.length, name, self.states
        )
        assert shared == 0
        return replace(self, lanes=lanes, rows=rows)

    def operands(self) -> dict[str, Tensor]:
        """Random operands in the types of the call."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random)

        sequence = (self.batch, self.dim, self.length)
        grouped = (self.batch, self.groups, self.states, self.length)
        x = {
            "u": normal(*sequence),
            "delta": normal(*sequence) - 2 if self.softplus else normal(*sequence).abs() * 0.2,
            "A": -self.decay * (torch.rand(self.dim, self.states, generator=random) + 0.05),
            "B": normal(*grouped),
            "C": normal(*grouped),
            "D": normal(self.dim) if self.has_D else None,
            "z": normal(*sequence) if self.has_z else None,
            "delta_bias": normal(self.dim).abs() * 0.5 if self.has_bias else None,
        }
        weight = self.dtype if self.narrow_weights else torch.float32
        return {
            n: v.to(weight if n in WEIGHTS else self.dtype) for n, v in x.items() if v is not None
        }

    def message(self, operands: Mapping[str, Tensor] | None = None) -> bytes:
        x = self.operands() if operands is None else operands
        values = list(vars(self).values())
        numbers = np.array([*values[:16], *self.offset], np.int64)
        return numbers.tobytes() + b"".join(raw(x[n]) for n in OPERANDS if n in x)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_emulator("cuda_emulator.cpp", tmp_path_factory.mktemp("emulator"))


def oracle(x: Mapping[str, Tensor], softplus: bool) -> Tensor:
    double = {n: v.double() for n, v in x.items()}
    return selective_scan_ref(*(double.get(n) for n in OPERANDS[:-1]), delta_softplus=softplus)  # type: ignore[arg-type]


def check(call: Call, y: Tensor, tolerance: float = 2e-6) -> None:
    """y is the oracle's value within `tolerance` of the largest one, rounded once to y's type."""
    expected = oracle(call.operands(), call.softplus)
    rounding = 0.0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps / 2
    error = (y.double() - expected).abs()
    limit = 1.001 * rounding * expected.abs() + tolerance * expected.abs().max()
    assert torch.isfinite(y).all(), call
    assert (error <= limit).all(), (call, float(error.max() / expected.abs().max()))


def random_calls(count: int, seed: int) -> list[Call]:
    random = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(random.choice(values))

    calls = []
    for index in range(count):
        groups = pick(1, 1, 2, 3)
        lanes = pick(32, 32, 64, 96, 128, 256)
        io = index % 3
        states = pick(1, 1, 1, 2, 3, 16, 16, 64)
        length = int(LENGTHS[index % len(LENGTHS)]) if index % 2 else int(random.integers(1, 700))
        calls.append(
            Call(
                batch=pick(1, 1, 2),
                dim=groups * pick(1, 2, 3),
                length=min(length, 140) if states > 3 else length,
                groups=groups,
                states=states,
                io=io,
                narrow_weights=io > 0 and random.random() < 0.5,
                softplus=random.random() < 0.7,
                has_D=random.random() < 0.5,
                has_z=random.random() < 0.4,
                has_bias=random.random() < 0.5,
                lanes=lanes,
                rows=pick(*(r for r in (1, 2, 3, 8) if r * lanes <= 256)),
                known_states=random.random() < 0.6,
                seed=seed * 1000 + index,
                # Half of them as allocators give them, half anywhere.
                offset=tuple(int(v) for v in random.integers(0, 8, 9))
                if random.random() < 0.5
                else (0,) * 9,
                decay=float(10 ** random.uniform(-2, 1)),
            )
        )
    return calls


def test_any_call_fits_the_definition_and_touches_nothing_else(emulator: Path) -> None:
    calls = random_calls(80, 1)
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


@pytest.mark.parametrize("io", range(3))
def test_every_length_with_the_block_that_a_gpu_runs(emulator: Path, io: int) -> None:
    calls = [
        Call(dim=2, length=length, io=io, states=states, seed=length).launched()
        for length in (*LENGTHS, 1024, 2049)
        for states in ((1, 16) if length < 200 else (1,))
    ]
    calls.append(Call(dim=1, length=3600, io=io).launched())
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


@pytest.mark.parametrize("decay", [1e-6, 1e-4, 1e-3, 1.0, 80.0])
def test_weak_and_strong_decay_over_the_longest_rows(emulator: Path, decay: float) -> None:
    # float16 at L = 14400: the state is float32, so nothing overflows on the way; its exp(delta A)
    # is rounded to float32 at every step, which a weak decay remembers.
    calls = [
        Call(dim=1, length=14400, io=io, decay=decay, seed=3, hostile=io == 0).launched()
        for io in (0, 1)
    ]
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y, 2e-6 if call.io == 0 else 5e-5)


def test_instructions_that_err_as_much_as_documented(emulator: Path) -> None:
    calls = [
        Call(dim=3, length=900, states=states, has_z=True, hostile=True, decay=decay, seed=seed)
        for seed, (states, decay) in enumerate([(1, 0.1), (1, 1.0), (1, 20.0), (16, 1.0)])
    ]
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y, 1e-5)


def test_each_operand_may_start_anywhere(emulator: Path) -> None:
    calls = [
        Call(dim=3, length=96, states=states, io=io, has_z=True, lanes=32, rows=2, offset=offset)
        for io in (0, 2)
        for states in (1, 2)
        for offset in [tuple(3 * (i == k) for i in range(9)) for k in range(9)]
    ]
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


def test_the_order_of_threads_changes_no_bit(emulator: Path) -> None:
    for call in (
        Call(dim=5, length=1500, lanes=64, rows=3, has_z=True),
        Call(batch=2, dim=3, length=900, states=4, lanes=128, rows=2, io=2),
    ):
        first, *others = emulate(emulator, [replace(call, order=k) for k in range(6)])
        assert all(torch.equal(first, other) for other in others)


def test_extreme_steps_neither_overflow_nor_give_nan(emulator: Path) -> None:
    call = Call(dim=4, length=300, states=2, io=1, lanes=64)
    x = call.operands()
    extremes = torch.tensor([-6e4, -30.0, 0.0, 25.0, 300.0, 6e4])
    choice = torch.randint(6, x["delta"].shape, generator=torch.Generator().manual_seed(0))
    x["delta"] = extremes[choice].half()
    x["u"] = x["u"] * 1e-4
    (y,) = emulate(emulator, [call], x)
    expected = oracle(x, True)
    assert torch.isfinite(y).all()
    assert (y.double() - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_not_a_number_stays_in_its_row(emulator: Path) -> None:
    # Neighbours share 16-byte vectors, blocks and warps, not values.
    call = Call(dim=6, length=37, lanes=32, rows=3, io=1)
    x = call.operands()
    (clean,) = emulate(emulator, [call], x)
    x["u"][0, 2, 20], x["delta"][0, 4, 5] = torch.nan, torch.inf
    (y,) = emulate(emulator, [call], x)
    for row, start in ((2, 20), (4, 5)):
        assert not torch.isfinite(y[0, row, start])
        assert torch.equal(y[0, row, :start], clean[0, row, :start])
    assert torch.equal(y[0, [0, 1, 3, 5]], clean[0, [0, 1, 3, 5]])


@pytest.fixture
def pretended(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> list[cuda.ScanKernel]:
    """CUDA launches run in the emulator, on the memory that they name; their kernels are listed."""
    launched: list[cuda.ScanKernel] = []

    def enqueue(
        kernel: cuda.ScanKernel,
        addresses: Mapping[str, int],
        sizes: tuple[int, int, int, int],
        device: int,
        arch: int,
        stream: int,
    ) -> None:
        assert (device, arch, stream) == (1, 90, 77)
        batch, dim, length, groups = sizes
        states, io = kernel.states, [f"torch.{kernel.io}" == str(d) for d in DTYPES].index(True)
        call = Call(batch, dim, length, groups, states, io, kernel.weight != "float32")
        has_D, has_z, has_bias = (name in kernel.optional for name in ("D", "z", "delta_bias"))
        call = replace(call, softplus=kernel.softplus, has_D=has_D, has_z=has_z, has_bias=has_bias)
        call = call.launched()
        sequence, grouped = (batch, dim, length), (batch, groups, states, length)
        shapes = dict.fromkeys(("u", "delta", "z", "y"), sequence) | {"B": grouped, "C": grouped}
        shapes |= {"A": (dim, states), "D": (dim,), "delta_bias": (dim,)}

        def memory(name: str) -> Tensor:
            dtype = getattr(torch, kernel.weight) if name in WEIGHTS else call.dtype
            shape = shapes[name]
            size = int(np.prod(shape)) * dtype.itemsize
            data = (ctypes.c_char * size).from_address(addresses[name])
            return torch.frombuffer(data, dtype=dtype).view(shape)

        (y,) = emulate(emulator, [call], {name: memory(name) for name in kernel.operands()})
        memory("y").copy_(y)
        launched.append(kernel)

    monkeypatch.setattr(cuda, "enqueue", enqueue)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    stream = SimpleNamespace(device_index=1, cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return launched


def run_operator(x: Mapping[str, Tensor], softplus: bool) -> Tensor:
    """What torch.ops.tfanet.selective_scan does with CUDA tensors."""
    return scan._scan_cuda(*(x.get(n) for n in OPERANDS[:-1]), softplus)  # type: ignore[arg-type]


@pytest.mark.parametrize("io", range(3))
@pytest.mark.parametrize("weights", ["float32", "narrow", "mixed"])
def test_the_operator_launches_what_its_tensors_are(
    pretended: list[cuda.ScanKernel], io: int, weights: str
) -> None:
    for seed, optional in enumerate([(), ("D", "z"), ("delta_bias",), ("D", "z", "delta_bias")]):
        call = Call(2, 6, 45, 3, 2, io, weights != "float32", seed % 2 == 0, seed=seed)
        x = replace(call, has_z=True).operands()
        x = {n: v for n, v in x.items() if n not in ("D", "z", "delta_bias") or n in optional}
        if weights == "mixed" and "D" in x:
            x["D"] = x["D"].float()
        # As transposed and sliced tensors come.
        x["u"] = x["u"].transpose(1, 2).contiguous().transpose(1, 2)
        x["B"] = torch.cat([x["B"], x["C"]], 2)[:, :, : call.states]
        y = run_operator(x, call.softplus)
        expected = oracle(x, call.softplus)
        bound = 2e-6 if io == 0 else torch.finfo(y.dtype).eps
        assert y.dtype == call.dtype and y.is_contiguous()
        assert (y.double() - expected).abs().max() <= bound * expected.abs().max()
        narrow = weights == "narrow" or (weights == "mixed" and "D" not in x)
        assert pretended[-1].weight == (str(call.dtype)[6:] if narrow else "float32")
    assert len(pretended) == 4


def test_what_the_kernel_does_not_do_runs_in_pytorch(pretended: list[cuda.ScanKernel]) -> None:
    x = {n: v.double() for n, v in Call(dim=2, length=20, states=2).operands().items()}
    torch.testing.assert_close(run_operator(x, True), oracle(x, True))
    x = Call(dim=2, length=20, states=65).operands()
    torch.testing.assert_close(run_operator(x, True).double(), oracle(x, True), rtol=0, atol=1e-4)
    empty = Call(batch=0, dim=2, length=20).operands()
    assert run_operator(empty, True).shape == (0, 2, 20)
    assert pretended == []


def test_the_gradient_runs_on_what_the_forward_kernel_takes() -> None:
    x = {n: v.double() for n, v in Call(dim=2, length=20, states=2, has_z=True).operands().items()}
    dy = torch.randn(1, 2, 20, dtype=torch.double)
    # As the dispatcher calls it: nothing that is computed in there can be differentiated.
    with torch._C._AutoDispatchBelowAutograd(), torch.no_grad():
        found = scan._backward_composite(dy, *(x[n] for n in OPERANDS[:-1]), True)
    own = {n: v.clone().requires_grad_() for n, v in x.items()}
    oracle(own, True).backward(dy)
    for name, gradient in zip(OPERANDS[:-1], found, strict=True):
        torch.testing.assert_close(gradient, own[name].grad, msg=name)


def test_mixed_devices_are_refused_before_anything_runs(pretended: list[cuda.ScanKernel]) -> None:
    x: dict[str, Any] = dict(Call(dim=2, length=20).operands())
    x["C"] = x["C"].to("meta")
    with pytest.raises(InputError, match="C is on meta, expected cpu as u; move it"):
        scan.selective_scan(*(x.get(n) for n in OPERANDS[:-1]))
    assert pretended == []
