"""The CUDA scan kernel without a GPU: run by an emulator against the oracle, and compiled."""

from __future__ import annotations

import subprocess
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tfanet.plugins import selective_scan_ref

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins" / "csrc" / "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPERANDS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "y")
WEIGHTS = ("A", "D", "delta_bias")
LENGTHS = (1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 225, 511, 900)


@dataclass
class Call:
    """One run of the kernel; fields as `Call` of cuda_emulator.cpp up to `offset`."""

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
    seed: int = 0
    offset: tuple[int, ...] = (0,) * 9
    decay: float = field(default=2.0, metadata={"local": True})

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
        io = DTYPES[self.io]
        weight = io if self.narrow_weights else torch.float32
        return {
            n: v.to(weight if n in WEIGHTS else io) for n, v in x.items() if v is not None
        }

    def message(self) -> bytes:
        numbers = np.array([int(v) for v in astuple(self)[:16]] + list(self.offset), np.int64)
        tensors = self.operands()
        return numbers.tobytes() + b"".join(raw(tensors[n]) for n in OPERANDS if n in tensors)


def raw(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel compiled for the host, with sanitizers for memory and undefined behaviour."""
    program = tmp_path_factory.mktemp("emulator") / "emulator"
    command = ["g++", "-std=c++17", "-O1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unknown-pragmas", f"-I{SOURCES}", f"-I{Path(__file__).parent}"]
    command += [str(Path(__file__).with_name("cuda_emulator.cpp")), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def emulate(program: Path, calls: list[Call]) -> list[Tensor]:
    """y (batch, dim, length) of each call."""
    message = b"".join(call.message() for call in calls)
    done = subprocess.run([program], input=message, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:4000]
    results, position = [], 0
    for call in calls:
        dtype = DTYPES[call.io]
        size = call.batch * call.dim * call.length * dtype.itemsize
        data = bytearray(done.stdout[position : position + size])
        results.append(torch.frombuffer(data, dtype=dtype).view(call.batch, call.dim, -1))
        position += size
    assert position == len(done.stdout)
    return results


def check(call: Call, y: Tensor, tolerance: float = 2e-6) -> None:
    """y is the oracle's value, rounded once to y's type."""
    x = {n: v.double() for n, v in call.operands().items()}
    expected = selective_scan_ref(
        *(x.get(n) for n in OPERANDS[:-1]),  # type: ignore[arg-type]
        delta_softplus=call.softplus,
    )
    scale = expected.abs().max()
    rounding = 0.0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps / 2
    error = (y.double() - expected).abs()
    assert torch.isfinite(y).all(), call
    assert (error <= rounding * expected.abs() * 1.001 + tolerance * scale).all(), (
        call,
        float(error.max() / scale),
    )


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
    calls = random_calls(150, 1)
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)
