"""The operator in PyTorch on the CPU, against a float64 scan written from the definition."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_scans
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ISAS
from torch import Tensor

from tfanet.errors import InputError
from tfanet.plugins import selective_scan, selective_scan_parallel, selective_scan_ref
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.selective_scan import _native_args

ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OPTIONAL = ("D", "z", "delta_bias")
# Of both passes: channels of one vector, of one unit, and lengths around one tile of 64 steps.
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 103, 127, 129, 225, 1000)


def tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value).to(dtype) for name, value in arrays.items()}


def call(x: dict[str, Tensor], softplus: bool, function: Any = selective_scan) -> Tensor:
    return function(*(x.get(name) for name in ORDER), delta_softplus=softplus)


def run_isa(x: dict[str, Tensor], softplus: bool, isa: str, threads: int = 1) -> Tensor:
    """The kernel of one instruction set, past the choice that the operator makes."""
    args, held = _native_args(*(x.get(name) for name in ORDER), delta_softplus=softplus)
    y = torch.full_like(x["u"], torch.nan)
    args.y, args.y_strides = y.data_ptr(), cpu.SequenceStrides(*y.stride()[:-1])
    args.isa = cpu.ISAS[isa]
    cpu.forward(args, threads)
    del held
    return y


def relative_error(result: Tensor, arrays: Any, softplus: bool = True) -> float:
    """Largest difference from the oracle, relative to its largest value.

    A handful of values may all be small by cancellation: those of a scan of fewer than 500 are
    measured against the same scan without signs, that is, against the sizes of what they add up.
    """
    expected = onnx_scans.oracle(arrays, softplus)
    scale = np.abs(expected).max()
    if expected.size < 500:
        signs = ("u", "B", "C", "D", "z")
        plain = {n: np.abs(v) if n in signs else v for n, v in arrays.items()}
        scale = np.abs(onnx_scans.oracle(plain, softplus)).max()
    assert result.shape == expected.shape
    return float(np.abs(result.double().numpy() - expected).max() / scale)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_fits_the_definition(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 8), "groups")
    scan = onnx_scans.Scan(
        batch=draw(st.integers(1, 3), "batch"),
        dim=groups * draw(st.integers(1, 37), "channels of a group"),
        length=draw(st.integers(1, 300), "length"),
        groups=groups,
        states=draw(st.one_of(st.just(1), st.integers(1, 64)), "states"),
        optional=tuple(n for n in ("D", "delta_bias", "z") if draw(st.booleans(), n)),
        softplus=draw(st.booleans(), "softplus"),
    )
    arrays = scan.arrays(draw(st.integers(0, 2**32 - 1), "seed"))
    result = call(tensors(arrays), scan.softplus)
    assert result.is_contiguous()
    assert relative_error(result, arrays, scan.softplus) < 1e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", LENGTHS)
def test_each_instruction_set(isa: str, length: int) -> None:
    for seed, (dim, groups, states) in enumerate(
        [(1, 1, 1), (7, 1, 3), (24, 4, 1), (24, 2, 1), (34, 2, 16), (64, 1, 1), (66, 2, 2)]
    ):
        scan = onnx_scans.Scan(2, dim, length, groups, states, ("D", "delta_bias", "z"))
        arrays = scan.arrays(seed)
        single = run_isa(tensors(arrays), True, isa)
        assert relative_error(single, arrays) < 1e-6
        double = run_isa(tensors(arrays, torch.float64), True, isa)
        assert relative_error(double, arrays) < 1e-12


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_lose_only_the_rounding_of_the_result(isa: str, dtype: torch.dtype) -> None:
    scan = onnx_scans.Scan(2, 40, 333, 2, 4, ("D", "delta_bias", "z"))
    x = tensors(scan.arrays(3), dtype)
    x |= {name: x[name].float() for name in ("A", "D", "delta_bias")}
    # The oracle reads the rounded inputs, so that y's own rounding is all that is left.
    expected = onnx_scans.oracle({n: v.double().numpy() for n, v in x.items()}, True)
    result = run_isa(x, True, isa)
    assert result.dtype == dtype
    step = torch.finfo(dtype).eps / 2
    limit = step * np.abs(expected) + 1e-6 * np.abs(expected).max()
    assert (np.abs(result.double().numpy() - expected) <= limit).all()


def test_float16_results_round_to_even_overflow_to_infinity_and_keep_subnormals() -> None:
    # With delta = 0 the state stays 0 and y is D u: the kernel's own conversion and nothing else.
    bits = torch.arange(0, 2**16, 7, dtype=torch.int32).to(torch.int16)
    u = bits.view(torch.float16).nan_to_num(1.0, 1.0, 1.0).reshape(1, 1, -1)
    zero = torch.zeros_like(u)
    for scale in (1.0, 1 / 3, 37.1):
        D = torch.tensor([scale])
        x = {"u": u, "delta": zero, "A": -torch.ones(1, 1), "B": zero[None], "C": zero[None]}
        for isa in ISAS:
            result = run_isa({**x, "D": D}, False, isa)
            assert torch.equal(result, (u.float() * D).half()), (isa, scale)


@pytest.mark.parametrize("decay", [1e-6, 1e-3, 1.0, 80.0])
def test_twenty_thousand_steps_of_weak_and_strong_decay(decay: float) -> None:
    scan = onnx_scans.Scan(1, 33, 20_000, 1, 2, ("D", "delta_bias"))
    arrays = scan.arrays(11)
    arrays["A"] = np.full_like(arrays["A"], -decay)
    expected = onnx_scans.oracle(arrays, True)
    for isa in ISAS:
        assert onnx_scans.error(run_isa(tensors(arrays), True, isa).numpy(), expected) < 1e-6


def test_extreme_steps_neither_overflow_nor_give_nan() -> None:
    arrays = onnx_scans.Scan(1, 20, 200, 1, 3, ("D",)).arrays(0)
    arrays["delta"] = np.random.default_rng(0).choice(
        np.float32([-100, -20, -1, 0, 1, 19.9, 20.1, 100, 1000]), arrays["delta"].shape
    )
    expected = onnx_scans.oracle(arrays, True)
    assert np.isfinite(expected).all()
    for isa in ISAS:
        assert onnx_scans.error(run_isa(tensors(arrays), True, isa).numpy(), expected) < 1e-6


def test_what_is_not_a_number_reaches_its_own_channel_alone() -> None:
    x = tensors(onnx_scans.Scan(2, 40, 100, 2, 1).arrays(1))
    clean = call(x, True)
    x["delta"][1, 3, 50] = torch.nan
    dirty = call(x, True)
    assert dirty[1, 3, 50:].isnan().all()
    dirty[1, 3, 50:] = clean[1, 3, 50:]
    assert torch.equal(dirty, clean)


def test_threads_do_not_change_a_bit() -> None:
    x = tensors(onnx_scans.Scan(2, 200, 700, 2, 3, ("D", "delta_bias", "z")).arrays(2))
    for isa in ISAS:
        one = run_isa(x, True, isa)
        for threads in (2, 3, 64):
            assert torch.equal(run_isa(x, True, isa, threads), one)


GUARDED = """
import ctypes, mmap, sys
import torch
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.selective_scan import _native_args

def guarded(*shape):
    # Memory that ends where no access is allowed.
    x = torch.randn(shape)
    size = -(-4 * x.numel() // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0)
    return torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=size - 4 * x.numel()) \\
        .view(shape).copy_(x)

for length in (1, 7, 8, 9, 33, 63, 64, 65, 71, 72, 225):
    for dim in (1, 4, 8, 12, 16, 17, 24):
        u, delta, y = (guarded(1, dim, length) for _ in range(3))
        B = guarded(1, 1, 1, length)
        A, D = -torch.rand(dim, 1), torch.ones(dim)
        args, _ = _native_args(u, delta, A, B, B, D, None, D, delta_softplus=True)
        args.y, args.y_strides = y.data_ptr(), cpu.SequenceStrides(*y.stride()[:-1])
        args.isa = cpu.ISAS[sys.argv[1]]
        cpu.forward(args, 1)
        assert y.isfinite().all()
"""


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_past_the_end_of_an_array_is_touched(isa: str) -> None:
    done = run_python(f"import sys; sys.argv[1:] = [{isa!r}]\n{GUARDED}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_beside_a_strided_result_is_written(isa: str) -> None:
    for length in LENGTHS:
        x = tensors(onnx_scans.Scan(1, 40, length, 2, 1, ("D", "delta_bias")).arrays(length))
        args, held = _native_args(*(x.get(name) for name in ORDER), delta_softplus=True)
        around = torch.full((1, 40, length + 20), 7.0)
        y = around[..., 3 : 3 + length]
        args.y, args.y_strides = y.data_ptr(), cpu.SequenceStrides(*y.stride()[:-1])
        args.isa = cpu.ISAS[isa]
        cpu.forward(args, 1)
        del held
        assert torch.equal(y, run_isa(x, True, isa))
        assert (around[..., :3] == 7).all() and (around[..., 3 + length :] == 7).all()


def test_large_results_written_past_the_caches_are_the_same() -> None:
    """Over 8 MiB the kernel streams its stores; a part of the same scan it does not."""
    x = tensors(onnx_scans.Scan(1, 160, 16_384, 1, 1).arrays(4))
    whole = call(x, True)
    part = {n: v[:, :16].contiguous() if n in ("u", "delta") else v for n, v in x.items()}
    part |= {n: x[n][:16] for n in ("A", "D", "delta_bias")}
    assert torch.equal(whole[:, :16], call(part, True))


def test_strided_and_expanded_operands() -> None:
    scan = onnx_scans.Scan(3, 12, 50, 2, 4, ("D", "delta_bias", "z"))
    x = tensors(scan.arrays(5))
    expected = call(x, True)
    wide = torch.randn(3, 3 * 12, 64)
    views = dict(x)
    for k, name in enumerate(("u", "delta", "z")):
        views[name] = wide[:, 12 * k : 12 * k + 12, 7:57].copy_(x[name])
    views["B"] = x["B"].permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    views["C"] = x["C"].transpose(1, 2).contiguous().transpose(1, 2)
    views["A"] = x["A"].t().contiguous().t()
    assert torch.equal(call(views, True), expected)
    same = {n: v[:1].expand(3, *v.shape[1:]) if v.ndim > 2 else v for n, v in x.items()}
    dense = {n: v.contiguous() for n, v in same.items()}
    assert torch.equal(call(same, True), call(dense, True))


def test_projections_of_rank_three_are_one_group() -> None:
    x = tensors(onnx_scans.Scan(2, 6, 20, 1, 5).arrays(0))
    flat = {**x, "B": x["B"][:, 0], "C": x["C"][:, 0]}
    assert torch.equal(call(flat, True), call(x, True))


@pytest.mark.parametrize("shape", [(0, 4, 9), (2, 0, 9), (2, 4, 0)])
def test_empty_sequences(shape: tuple[int, int, int]) -> None:
    batch, dim, length = shape
    u = torch.zeros(shape, requires_grad=True)
    A = torch.zeros(dim, 2, requires_grad=True)
    B = torch.zeros(batch, 1, 2, length)
    y = selective_scan(u, torch.zeros(shape), A, B, B)
    assert y.shape == shape
    y.sum().backward()
    assert u.grad is not None and u.grad.shape == shape
    assert A.grad is not None and not A.grad.any()


def test_a_state_is_not_kept_between_calls() -> None:
    x = tensors(onnx_scans.Scan(1, 20, 90).arrays(7))
    first = call(x, True)
    call(tensors(onnx_scans.Scan(1, 20, 90).arrays(8)), True)
    assert torch.equal(call(x, True), first)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_both_forms_in_plain_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 3))
    scan = onnx_scans.Scan(
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 5)),
        draw(st.sampled_from(LENGTHS[:-1])),
        groups,
        draw(st.integers(1, 5)),
        tuple(n for n in ("D", "delta_bias", "z") if draw(st.booleans())),
        draw(st.booleans()),
    )
    arrays = scan.arrays(draw(st.integers(0, 2**32 - 1)))
    x = tensors(arrays)
    ref = call(x, scan.softplus, selective_scan_ref)
    assert ref.dtype == torch.float64
    assert relative_error(ref, arrays, scan.softplus) < 1e-12
    parallel = call(x, scan.softplus, selective_scan_parallel)
    assert relative_error(parallel, arrays, scan.softplus) < 3e-6


# --- PyTorch's own machinery -------------------------------------------------------------------


def test_the_operator_is_registered_as_pytorch_wants_it() -> None:
    x = tensors(onnx_scans.Scan(2, 6, 9, 2, 3, ("D", "delta_bias", "z")).arrays(0))
    for chosen in (ORDER, ORDER[:5]):
        operands = [x[n].requires_grad_() if n in chosen else None for n in ORDER]
        torch.library.opcheck(torch.ops.tfanet.selective_scan.default, (*operands, True))


def test_compiles_without_a_graph_break() -> None:
    x = tensors(onnx_scans.Scan(2, 6, 30).arrays(0))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda: 2 * call(x, True), backend=backend, fullgraph=True)
    assert torch.equal(compiled(), 2 * call(x, True))
    assert len(graphs) == 1


def test_runs_under_the_meta_device_and_counts_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        u, A, B = torch.empty(2, 8, 5), torch.empty(8, 3), torch.empty(2, 1, 3, 5)
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(u, u, A, B, B)
    assert y.shape == u.shape and y.device.type == "meta"
    assert counter.get_total_flops() == 2 * 8 * 5 * (9 * 3 + 1)


# --- Gradients ---------------------------------------------------------------------------------


def leaves(x: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: v.to(dtype).detach().clone().requires_grad_() for n, v in x.items()}


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [("D", "delta_bias", "z"), ("D",), ("delta_bias",), ()])
def test_gradcheck(softplus: bool, optional: tuple[str, ...]) -> None:
    scan = onnx_scans.Scan(2, 6, 5, 2, 3, optional, softplus)
    x = leaves(tensors(scan.arrays(1)), torch.float64)
    names = [n for n in ORDER if n in x]

    def function(*values: Tensor) -> Tensor:
        return call(dict(zip(names, values, strict=True)), softplus)

    assert torch.autograd.gradcheck(function, tuple(x[n] for n in names))


@pytest.mark.parametrize(
    ("batch", "dim", "length", "groups", "states"),
    [(2, 40, 333, 2, 1), (1, 66, 64, 1, 5), (3, 8, 129, 8, 16), (1, 130, 1500, 1, 1)],
)
def test_float32_gradients_are_those_of_the_float64_definition(
    batch: int, dim: int, length: int, groups: int, states: int
) -> None:
    scan = onnx_scans.Scan(batch, dim, length, groups, states, ("D", "delta_bias", "z"))
    x = tensors(scan.arrays(6))
    weight = torch.randn(batch, dim, length, generator=torch.Generator().manual_seed(0))
    exact = leaves(x, torch.float64)
    (call(exact, True, selective_scan_ref) * weight).sum().backward()
    ours = leaves(x, torch.float32)
    (call(ours, True) * weight).sum().backward()
    for name in ORDER:
        got, wanted = ours[name].grad, exact[name].grad
        assert got is not None and wanted is not None
        assert got.dtype == torch.float32
        assert onnx_scans.error(got.double().numpy(), wanted.numpy()) < 5e-6, name


def test_gradients_do_not_depend_on_threads_or_strides() -> None:
    x = tensors(onnx_scans.Scan(2, 96, 400, 2, 2, ("D", "delta_bias", "z")).arrays(9))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            own = leaves(x, torch.float32)
            # A transposed weight makes the incoming gradient non-contiguous.
            y = call(own, True).transpose(1, 2)
            y.square().sum().backward()
            found.append({n: v.grad for n, v in own.items()})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, grad in other.items():
            assert torch.equal(grad, found[0][name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_keep_the_types_of_their_operands(dtype: torch.dtype) -> None:
    x = tensors(onnx_scans.Scan(1, 20, 70, 1, 2, ("D", "delta_bias", "z")).arrays(2))
    types = {n: torch.float32 if n in ("A", "D", "delta_bias") else dtype for n in x}
    own = {n: v.to(types[n]).requires_grad_() for n, v in x.items()}
    call(own, True).float().square().mean().backward()
    exact = {n: v.detach().double().requires_grad_() for n, v in own.items()}
    call(exact, True, selective_scan_ref).square().mean().backward()
    for name, value in own.items():
        got, wanted = value.grad, exact[name].grad
        assert got is not None and wanted is not None
        assert got.dtype == types[name]
        assert onnx_scans.error(got.double().numpy(), wanted.numpy()) < 20 * torch.finfo(dtype).eps


# --- Errors ------------------------------------------------------------------------------------


def small() -> dict[str, Tensor]:
    return {
        "u": torch.zeros(2, 4, 5),
        "delta": torch.zeros(2, 4, 5),
        "A": torch.zeros(4, 3),
        "B": torch.zeros(2, 2, 3, 5),
        "C": torch.zeros(2, 2, 3, 5),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"u": torch.zeros(4, 5)}, ["u has shape (4, 5)", "(batch, dim, L)"]),
        ({"delta": torch.zeros(2, 4, 6)}, ["delta", "(2, 4, 6)", "L = 5 as in u"]),
        ({"A": torch.zeros(5, 3)}, ["A has shape (5, 3)", "dim = 4"]),
        ({"C": torch.zeros(2, 2, 4, 5)}, ["C has shape", "N = 3 as in A"]),
        ({"C": torch.zeros(2, 1, 3, 5)}, ["C has shape", "G = 2 as in B"]),
        ({"D": torch.zeros(4, 1)}, ["D has shape (4, 1)", "(dim)"]),
        ({"B": torch.zeros(2, 3, 3, 5), "C": torch.zeros(2, 3, 3, 5)}, ["3 groups", "dim = 4"]),
        ({"A": torch.zeros(4, 3, dtype=torch.complex64)}, ["A is torch.complex64", "real"]),
        ({"u": torch.zeros(2, 4, 5, dtype=torch.int32)}, ["u is torch.int32"]),
        ({"z": torch.zeros(2, 4, 5, dtype=torch.float64)}, ["z is torch.float64", "torch.float32"]),
        ({"A": [[1.0]]}, ["A is a list", "tensor"]),
        ({"u": torch.zeros(2, 4, 5, device="meta")}, ["on cpu", "meta"]),
    ],
)
def test_wrong_operands_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        call({**small(), **changes}, False)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_too_many_states_are_refused() -> None:
    x = small() | {"A": torch.zeros(4, 257)}
    x |= {"B": torch.zeros(2, 1, 257, 5), "C": torch.zeros(2, 1, 257, 5)}
    with pytest.raises(InputError, match="N = 257, expected from 1 to 256"):
        call(x, False)


def test_the_c_interface_refuses_what_would_leave_memory() -> None:
    x = {**small(), "D": torch.zeros(4)}
    args, held = _native_args(*(x.get(name) for name in ORDER), delta_softplus=False)
    with pytest.raises(InputError, match="y and the gradients"):
        cpu.forward(args, 1)
    args.y = held["u"].data_ptr()
    for threads in (0, -1):
        with pytest.raises(InputError, match="threads must be 1 or more"):
            cpu.forward(args, threads)
    dy = held["u"].data_ptr()
    names = [name for name, _ in cpu.ScanGradients._fields_]
    for absent in ("dy", "du", "ddelta", "dA_parts", "dB_parts", "dC_parts", "dD_parts"):
        gradients = cpu.ScanGradients(**{n: None if n == absent else dy for n in names})
        with pytest.raises(InputError, match="must not be null"):
            cpu.backward(args, gradients, 1)
    args.batch = 2**60
    with pytest.raises(InputError, match="sizes are too large"):
        cpu.forward(args, 1)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_names_the_instruction_set(isa: str) -> None:
    code = "from tfanet.plugins.kernels import cpu; print(cpu.isa_name())"
    assert run_python(code, TFANET_SCAN_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_an_error() -> None:
    code = "import torch, tfanet.plugins as p; x = torch.ones(1, 1, 4); p.selective_scan("
    code += "x, x, -torch.ones(1, 1), x, x)"
    done = run_python(code, TFANET_SCAN_ISA="avx1024")
    assert done.returncode != 0
    assert "InputError" in done.stderr and "TFANET_SCAN_ISA" in done.stderr


@pytest.mark.parametrize("name", ["libtfanet_cpu.so", "libtfanet_ort.so"])
def test_libraries_need_nothing_but_the_c_and_cpp_runtimes(name: str) -> None:
    path = cpu.cpu_library_path().with_name(name)
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    needed = {
        line.split("[")[1].rstrip("]") for line in dynamic.stdout.splitlines() if "NEEDED" in line
    }
    allowed = ("libc.so", "libstdc++.so", "libm.so", "libgcc_s.so", "ld-linux", "libpthread.so")
    assert needed and all(n.startswith(allowed) for n in needed), needed


# --- On a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_operator_on_a_gpu(dtype: torch.dtype) -> None:
    arrays = onnx_scans.Scan(2, 64, 500, 4, 1, ("D", "delta_bias", "z")).arrays(0)
    x = {n: v.cuda() for n, v in tensors(arrays, dtype).items()}
    expected = onnx_scans.oracle({n: v.double().cpu().numpy() for n, v in x.items()}, True)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert onnx_scans.error(call(x, True).double().cpu().numpy(), expected) < tolerance
    own = leaves(x, dtype)
    call(own, True).float().sum().backward()
    assert all(v.grad is not None and v.grad.isfinite().all() for v in own.values())
