"""The CUDA kernels of the 2-D scan without a GPU: run by an emulator against the definition."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from emulation import SOURCES, build_emulator, emulate, raw
from torch import Tensor

from tfanet.errors import InputError
from tfanet.plugins import ss2d
from tfanet.plugins.kernels import cuda, cuda_ss2d
from tfanet.plugins.kernels.geometry import SS2DSizes, plan_ss2d
from tfanet.plugins.pytorch import ss2d as ss2d_operator
from tfanet.plugins.pytorch.reference import ss2d_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPERANDS = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")


@dataclass(frozen=True)
class Call:
    """One run of the kernels; fields up to `offset` as `Call` of cuda_ss2d_emulator.cpp."""

    batch: int = 1
    channels: int = 5
    height: int = 20
    width: int = 18
    rank: int = 3
    states: int = 1
    io: int = 0
    known_states: bool = True
    has_tf32: bool = True
    hostile: bool = False
    order: int = 0  # seed of the order in which threads and blocks run
    offset: tuple[int, ...] = (0,) * 7
    seed: int = 0
    decay: float = 2.0
    bias: float = -2.0

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.io]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    def operands(self) -> dict[str, Tensor]:
        """Random operands: u in the type of the call, weights in float32."""
        random = torch.Generator().manual_seed(self.seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random)

        e, r, n = self.channels, self.rank, self.states
        rates = torch.rand(4 * e, n, generator=random) + 0.05
        return {
            "u": normal(*self.shape).to(self.dtype),
            "x_proj_weight": normal(4, r + 2 * n, e) / e**0.5,
            "dt_weight": normal(4, e, r) / r**0.5,
            "dt_bias": normal(4, e) + self.bias,
            "A": -self.decay * rates,
            "D": normal(4 * e),
        }

    def message(self, operands: Mapping[str, Tensor] | None = None) -> bytes:
        x = self.operands() if operands is None else operands
        numbers = np.array([*list(vars(self).values())[:11], *self.offset], np.int64)
        return numbers.tobytes() + b"".join(raw(x[name]) for name in OPERANDS)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_emulator("cuda_ss2d_emulator.cpp", tmp_path_factory.mktemp("emulator"))


def check(call: Call, y: Tensor, tolerance: float = 3e-6) -> None:
    """y is the definition's value within `tolerance` of the largest one, rounded once."""
    expected = ss2d_ref(*(call.operands()[name] for name in OPERANDS))
    rounding = 0.0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps / 2
    error = (y.double() - expected).abs()
    limit = 1.001 * rounding * expected.abs() + tolerance * expected.abs().max()
    assert torch.isfinite(y).all(), call
    assert (error <= limit).all(), (call, float(error.max() / expected.abs().max()))


SHAPES = (
    # batch, E, H, W, R, N: one pixel, line and column; whole tiles, parts of tiles, many channels.
    (1, 1, 1, 1, 1, 1),
    (1, 3, 1, 50, 2, 1),
    (2, 3, 50, 1, 2, 1),
    (1, 16, 16, 16, 8, 1),
    (1, 32, 16, 32, 10, 1),
    (1, 17, 15, 15, 9, 1),
    (2, 18, 17, 10, 3, 2),
    (1, 7, 5, 31, 1, 16),
    (2, 5, 2, 3, 40, 5),
    (1, 130, 4, 4, 7, 1),
    (1, 4, 34, 20, 4, 2),
)


@pytest.mark.parametrize("io", range(3))
def test_any_shape_fits_the_definition_and_touches_nothing_else(emulator: Path, io: int) -> None:
    random = np.random.default_rng(io)
    calls = []
    for index, shape in enumerate(SHAPES if io == 0 else SHAPES[io::2]):
        # Half of them as allocators give them, half anywhere.
        offset = random.integers(0, 8, 7) if index % 2 else np.zeros(7, int)
        fits = {"seed": index, "offset": tuple(offset.tolist()), "known_states": index % 3 != 0}
        calls.append(Call(*shape, io=io, decay=float(10 ** random.uniform(-2, 1)), **fits))
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


@pytest.mark.parametrize("states", range(1, 17))
def test_every_number_of_states(emulator: Path, states: int) -> None:
    call = Call(channels=4, height=5, width=19, states=states, seed=states, hostile=states == 16)
    check(call, emulate(emulator, [call])[0], 1e-5 if call.hostile else 3e-6)


@pytest.mark.parametrize(("decay", "hostile"), [(1e-6, False), (1e-6, True), (80.0, False)])
def test_weak_and_strong_decay_over_long_sequences(
    emulator: Path, decay: float, hostile: bool
) -> None:
    # 3600 steps, through 32 parts of carry_states of several segments each.
    call = Call(channels=2, height=60, width=60, decay=decay, seed=3, hostile=hostile)
    check(call, emulate(emulator, [call])[0], 2e-5 if hostile else 3e-6)


def test_without_matrix_units(emulator: Path) -> None:
    # Compute capability 7.5: the factors go around the warp by shuffles.
    calls = [
        Call(channels=4, height=9, width=5 + 12 * io, rank=9, io=io, has_tf32=False)
        for io in range(2)
    ]
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


def test_each_operand_may_start_anywhere(emulator: Path) -> None:
    calls = [
        Call(channels=4, height=8, width=12, rank=4, io=io, offset=tuple(np.eye(7, dtype=int)[k]))
        for io in (0, 2)
        for k in range(7)
    ]
    for call, y in zip(calls, emulate(emulator, calls), strict=True):
        check(call, y)


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator: Path) -> None:
    call = Call(channels=18, height=20, width=9, states=2)
    first, *others = emulate(emulator, [replace(call, order=k) for k in range(3)])
    assert all(torch.equal(first, other) for other in others)


def test_extreme_steps_neither_overflow_nor_give_nan(emulator: Path) -> None:
    # delta from e^-60 to 6e4, within one sequence.
    call = Call(channels=6, height=21, width=18, states=2)
    x = call.operands()
    x["dt_weight"] = x["dt_weight"] * 200
    x["dt_bias"] = torch.tensor([-60.0, 0.0, 30.0, 300.0, 6e4, -6e4]).repeat(4, 1)
    (y,) = emulate(emulator, [call], x)
    expected = ss2d_ref(*(x[name] for name in OPERANDS))
    assert torch.isfinite(y).all()
    assert (y.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_not_a_number_stays_in_its_image_and_its_channel(emulator: Path) -> None:
    call = Call(batch=2, channels=20, height=9, width=8, rank=2)
    x = call.operands()
    (clean,) = emulate(emulator, [call], x)
    # A weight of one channel; projections mix channels, so a pixel spoils its whole image.
    x["dt_bias"][2, 4] = torch.nan
    x["D"][7] = torch.inf
    (y,) = emulate(emulator, [call], x)
    spoilt = torch.tensor([4, 7])
    others = torch.tensor([c for c in range(20) if c not in (4, 7)])
    assert not torch.isfinite(y[:, spoilt]).any() and torch.equal(y[:, others], clean[:, others])
    x = call.operands()
    x["u"][1, 3, 5, 5] = torch.nan
    (y,) = emulate(emulator, [call], x)
    assert torch.equal(y[0], clean[0]) and y[1].isnan().all()


@pytest.fixture
def pretended(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> list[SS2DSizes]:
    """CUDA launches run in the emulator, on the memory that they name; their sizes are listed."""
    launched: list[SS2DSizes] = []

    def enqueue(
        io: str,
        addresses: Mapping[str, int],
        sizes: SS2DSizes,
        device: int,
        arch: int,
        stream: int,
    ) -> None:
        assert (device, arch, stream) == (1, 90, 77)
        assert tuple(addresses) == cuda_ss2d.POINTERS and addresses["workspace"] % 16 == 0
        call = Call(*sizes, io=[f"torch.{io}" == str(d) for d in DTYPES].index(True))
        # The last byte of the workspace is there.
        ctypes.c_char.from_address(addresses["workspace"] + plan_ss2d(sizes)[0] - 1)

        def memory(name: str) -> Tensor:
            dtype = call.dtype if name in ("u", "y") else torch.float32
            shape = call.shape if name in ("u", "y") else call.operands()[name].shape
            size = int(np.prod(shape)) * dtype.itemsize
            data = (ctypes.c_char * size).from_address(addresses[name])
            return torch.frombuffer(data, dtype=dtype).view(shape)

        (y,) = emulate(emulator, [call], {name: memory(name) for name in OPERANDS})
        memory("y").copy_(y)
        launched.append(sizes)

    monkeypatch.setattr(cuda_ss2d, "enqueue", enqueue)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    stream = SimpleNamespace(device_index=1, cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return launched


@pytest.mark.parametrize("io", range(3))
def test_the_operator_launches_what_its_tensors_are(pretended: list[SS2DSizes], io: int) -> None:
    call = Call(2, 5, 7, 9, 3, 2, io)
    x = call.operands()
    # As transposed tensors and weights of another type come.
    x["u"] = x["u"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    x["dt_weight"] = x["dt_weight"].transpose(1, 2).contiguous().transpose(1, 2)
    x["D"], x["A"] = x["D"].to(call.dtype), x["A"].double()
    y = ss2d_operator._ss2d_cuda(*(x[name] for name in OPERANDS))
    expected = ss2d_ref(*(x[name] for name in OPERANDS))
    assert y.dtype == call.dtype and y.is_contiguous()
    bound = 3e-6 if io == 0 else torch.finfo(y.dtype).eps
    assert (y.double() - expected).abs().max() <= bound * expected.abs().max()
    assert pretended == [(2, 5, 7, 9, 3, 2)]


def test_what_the_kernels_do_not_do_runs_in_its_parts(
    pretended: list[SS2DSizes],
) -> None:
    for call, dtype in ((Call(states=65), torch.float32), (Call(), torch.float64)):
        x = {name: value.to(dtype) for name, value in call.operands().items()}
        y = ss2d_operator._ss2d_cuda(*(x[name] for name in OPERANDS))
        expected = ss2d_ref(*(x[name] for name in OPERANDS))
        assert y.dtype == dtype and y.is_contiguous()
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    empty = Call(batch=0)
    assert ss2d_operator._ss2d_cuda(*empty.operands().values()).shape == empty.shape
    assert pretended == []


def test_mixed_devices_are_refused_before_anything_runs(
    pretended: list[SS2DSizes],
) -> None:
    x = Call().operands()
    x["dt_bias"] = x["dt_bias"].to("meta")
    with pytest.raises(InputError, match="dt_bias is on meta, expected cpu as u; move it"):
        ss2d(*x.values())
    assert pretended == []


def test_a_launch_puts_four_kernels_on_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Driver:
        def __getattr__(self, name: str) -> Any:
            def function(*arguments: Any) -> tuple[Any, ...]:
                calls.append((name, arguments))
                return SimpleNamespace(value=0), *arguments[-1:]

            return function

    monkeypatch.setattr(cuda, "_driver", Driver)
    monkeypatch.setattr(cuda, "architectures", lambda: (75, 90))
    monkeypatch.setattr(cuda, "_compile", lambda program, target: target.encode())
    monkeypatch.setattr(cuda, "_context", lambda device: f"context of {device}")
    sizes = SS2DSizes(2, 40, 30, 20, 3, 5)
    addresses = {name: 4096 * (i + 1) for i, name in enumerate(cuda_ss2d.POINTERS)}
    cuda._load.cache_clear()
    try:
        cuda_ss2d.enqueue("float16", addresses, sizes, device=3, arch=91, stream=77)
    finally:
        cuda._load.cache_clear()
    assert calls[0][1][0] == b"compute_90" and calls[5] == ("cuCtxPushCurrent", ("context of 3",))
    launches = [arguments for name, arguments in calls if name == "cuLaunchKernel"]
    for arguments, grid, kernel in zip(
        launches, plan_ss2d(sizes)[1], cuda_ss2d.SS2DKernels("float16", 0).kernels, strict=True
    ):
        handle, *geometry, stream, (values, types), _ = arguments
        assert handle == kernel.encode() and geometry == [grid, 1, 1, 256, 1, 1, 0]
        assert stream == 77 and values == (*addresses.values(), *sizes)
        assert [t.__name__ for t in types] == ["c_void_p"] * 8 + ["c_int"] * 6
    assert calls[-1][0] == "cuCtxPopCurrent"


def test_cpp_and_python_plan_alike(tmp_path: Path) -> None:
    source = """
    #include <cstdio>
    #include "ss2d_launch.h"
    int main() {
      for (int n[6]; std::fread(n, sizeof n, 1, stdin) == 1;) {
        const auto p = tfanet::plan_ss2d({n[0], n[1], n[2], n[3], n[4], n[5]});
        const long long out[] = {4 * p.floats, p.grid[0], p.grid[1], p.grid[2], p.grid[3]};
        std::fwrite(out, sizeof out, 1, stdout);
      }
    }"""
    (tmp_path / "plan.cpp").write_text(source)
    program = tmp_path / "plan"
    command = ["g++", "-std=c++17", f"-I{SOURCES}", str(tmp_path / "plan.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    sides = (1, 2, 15, 16, 17, 33, 120, 1921)
    calls = list(itertools.product((1, 3), (1, 16, 17, 2048), sides, sides, (1, 8, 65), (1, 16)))
    numbers = np.array(calls, np.int32).tobytes()
    done = subprocess.run([program], input=numbers, capture_output=True, check=True)
    expected = np.frombuffer(done.stdout, np.int64).reshape(-1, 5).tolist()
    for sizes, (bytes_, *grids) in zip(calls, expected, strict=True):
        assert plan_ss2d(SS2DSizes(*sizes)) == (bytes_, tuple(grids)), sizes


def test_cpp_refuses_what_python_refuses(tmp_path: Path) -> None:
    source = """
    #include <cstdio>
    #include "ss2d_cuda.h"
    int main() {
      for (long long n[7]; std::fread(n, sizeof n, 1, stdin) == 1;) {
        tfanet::SS2DCall call{};
        call.batch = n[0], call.channels = n[1], call.height = n[2], call.width = n[3];
        call.rank = n[4], call.states = n[5], call.io = static_cast<tfanet::ScanType>(n[6]);
        const char* wrong = tfanet::check_ss2d_sizes(call);
        std::printf("%s\\n", wrong != nullptr ? wrong : "");
      }
    }"""
    (tmp_path / "check.cpp").write_text(source)
    files = [str(tmp_path / "check.cpp"), str(SOURCES / "ss2d_sizes.cpp")]
    options = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    program = tmp_path / "check"
    command = ["g++", "-std=c++17", *options, f"-I{SOURCES}", *files, "-o", str(program)]
    subprocess.run(command, check=True)
    random = np.random.default_rng(0)
    exponents = random.uniform([0, 0, 0, 0, 0, 0], [33, 22, 33, 33, 22, 7], (4000, 6))
    calls = (2**exponents).astype(np.int64)
    numbers = np.column_stack([calls, np.zeros(len(calls), np.int64)]).tobytes()
    done = subprocess.run([program], input=numbers, capture_output=True, check=True)
    answers = done.stdout.decode().splitlines()
    for sizes, answer in zip(calls.tolist(), answers, strict=True):
        try:
            plan_ss2d(SS2DSizes(*sizes))
        except InputError:
            assert answer, sizes
        else:
            assert not answer, (sizes, answer)
    assert 200 < answers.count("") < 3800
    for change, words in {
        (0, -1): "a size is negative",
        (0, 0): "",
        (1, 2**21): "E is above",
        (3, 2**33): "too large for one call",
        (4, 0): "R is not from 1",
        (5, 65): "N is not from 1 to 64",
        (6, 9): "element type is not",
    }.items():
        call = [1, 8, 9, 10, 2, 1, 0]
        call[change[0]] = change[1]
        done = subprocess.run([program], input=np.array(call).tobytes(), capture_output=True)
        assert words in done.stdout.decode() and (words or done.stdout == b"\n"), change


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1, 1, 1, 1), "batch is 0, expected from 1"),
        ((1, 2**21, 1, 1, 1, 1), "channels is 2097152, expected from 1 to 1048576"),
        ((1, 1, 1, 1, 0, 1), "rank is 0, expected from 1"),
        ((1, 1, 1, 1, 1, 65), "states is 65, expected from 1 to 64"),
        ((1, 1, 2**16, 2**15, 1, 1), "u of 2147483648 elements is too large for one call"),
        ((2**20, 2**16, 1, 1, 1, 1), "too large for one call; split the batch"),
    ],
)
def test_sizes_that_no_launch_takes(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_ss2d(SS2DSizes(*sizes))


def test_types_that_there_are_no_kernels_for() -> None:
    with pytest.raises(InputError, match="u is float64, expected one of float32, float16"):
        cuda_ss2d.SS2DKernels("float64", 1)
