"""The scans on a real GPU: PyTorch and ONNX Runtime against the oracle, bits, streams, graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_scans
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from tfanet.errors import MissingDependencyError
from tfanet.plugins import (
    ort_library_path,
    selective_scan,
    selective_scan_ref,
    ss2d,
    ss2d_ref,
)
from tfanet.plugins.operands import MAX_STATES_CUDA

import onnxruntime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 225, 900, 3600, 14400)


def run(x: dict[str, Tensor], softplus: bool = True) -> Tensor:
    return selective_scan(*(x.get(n) for n in ORDER), delta_softplus=softplus)  # type: ignore[arg-type]


def oracle(x: dict[str, Tensor], softplus: bool = True) -> Tensor:
    double = {n: v.double().cpu() for n, v in x.items()}
    return selective_scan_ref(*(double.get(n) for n in ORDER), delta_softplus=softplus)  # type: ignore[arg-type]


def on_gpu(scan: Any, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {n: torch.from_numpy(v).cuda().to(dtype) for n, v in scan.arrays(seed).items()}


def assert_close(y: Tensor, expected: Tensor) -> None:
    rounding = 0.0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps / 2
    error = (y.double().cpu() - expected).abs()
    # Approximate exponentials err by 2 units of the last place, which a state remembers.
    limit = 1.01 * rounding * expected.abs() + 2e-5 * expected.abs().max()
    assert torch.isfinite(y).all() and (error <= limit).all(), float(error.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length: int, dtype: torch.dtype) -> None:
    for states, rows in ((1, 24), (1, 600), (16, 24)):
        scan = onnx_scans.Scan(2, rows, length, 4, states, ("D", "delta_bias"))
        x = on_gpu(scan, length, dtype)
        assert_close(run(x), oracle(x))


@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("D", "delta_bias", "z")])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("states", [1, 2, 64])
def test_optional_operands(optional: tuple[str, ...], softplus: bool, states: int) -> None:
    scan = onnx_scans.Scan(3, 30, 333, 3, states, optional, softplus)
    for dtype in (torch.float32, torch.float16):
        x = on_gpu(scan, states, dtype)
        assert_close(run(x, softplus), oracle(x, softplus))


def test_operands_that_start_anywhere() -> None:
    scan = onnx_scans.Scan(2, 10, 77, 2, 1, ("D", "z"))
    for dtype in (torch.float32, torch.float16):
        x = on_gpu(scan, 0, dtype)
        for shift, (name, value) in enumerate(list(x.items())):
            memory = torch.full((value.numel() + 16,), torch.nan, dtype=dtype, device="cuda")
            x[name] = memory[shift : shift + value.numel()].view(value.shape).copy_(value)
        assert_close(run(x), oracle(x))


def test_the_same_bits_every_time_on_every_stream() -> None:
    x = on_gpu(onnx_scans.Scan(2, 512, 2000, 4, 1, ("D", "delta_bias", "z")), 1)
    expected = run(x)

    def on_a_stream(_: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [run(x) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return all(torch.equal(y, expected) for y in results)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(on_a_stream, range(16)))


def test_in_a_cuda_graph() -> None:
    scan = onnx_scans.Scan(1, 64, 500, 4, 1, ("D", "delta_bias"))
    x = on_gpu(scan, 2)
    run(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(x)
    for name, value in on_gpu(scan, 3).items():
        x[name].copy_(value)
    graph.replay()
    assert_close(y, oracle(x))


def test_gradients() -> None:
    x = on_gpu(onnx_scans.Scan(2, 12, 130, 3, 2, ("D", "delta_bias", "z")), 4)
    own = {n: v.clone().requires_grad_() for n, v in x.items()}
    dy = torch.randn(2, 12, 130, device="cuda")
    run(own).backward(dy)
    double = {n: v.double().cpu().requires_grad_() for n, v in x.items()}
    oracle(double).backward(dy.double().cpu())
    for name, value in double.items():
        found, expected = own[name].grad, value.grad
        assert found is not None and expected is not None
        assert (found.double().cpu() - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_compiled_and_exported_models_keep_the_operator() -> None:
    x = on_gpu(onnx_scans.Scan(2, 16, 100, 4, 1, ("D", "delta_bias")), 5)
    compiled = torch.compile(lambda u: run({**x, "u": u * 2}), fullgraph=True)
    assert_close(compiled(x["u"] / 2), oracle(x))


def test_more_elements_than_32_bits_count() -> None:
    length, dim = 2**19, 2**12 + 8
    need = 4 * 2 * length * dim
    if torch.cuda.mem_get_info()[0] < 1.2 * need:
        pytest.skip(f"needs {1.2 * need / 2**30:.0f} GiB of free GPU memory")
    scan = onnx_scans.Scan(1, 8, length, 2, 1, ("D",))
    few = on_gpu(scan, 6, torch.float16)
    x = {n: v for n, v in few.items() if n in ("B", "C")}
    for name in ("u", "delta"):
        x[name] = torch.empty(1, dim, length, dtype=torch.float16, device="cuda")
        x[name][:, : dim - 8] = 0
        x[name][:, dim - 8 :] = few[name]
    for name in ("A", "D"):
        x[name] = few[name].repeat(dim // 8, *(1,) * (few[name].ndim - 1))
    # The last 8 rows are those of the second group in the large scan.
    few["B"], few["C"] = few["B"][:, 1:], few["C"][:, 1:]
    assert torch.equal(run(x)[:, dim - 8 :], run(few))


def onnxruntime_session(model: bytes) -> onnxruntime.InferenceSession:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
    try:
        library = ort_library_path()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    if b"(on the GPU)" not in library.read_bytes():
        pytest.skip(f"{library} was built without CUDA")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    # No node may fall to the CPU.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("states", [1, 5])
def test_onnxruntime_on_the_gpu(dtype: Any, states: int) -> None:
    scan = onnx_scans.Scan(2, 24, 500, 4, states, ("D", "delta_bias", "z"))
    case = onnx_scans.chain(scan, dtype=dtype)
    session = onnxruntime_session(case.model.SerializeToString())
    (first,) = session.run(None, case.feeds)
    bound = 2e-5 if dtype == np.float32 else 2e-3
    assert onnx_scans.error(first.astype(np.float64), case.expected) < bound
    with ThreadPoolExecutor(4) as pool:
        for (result,) in pool.map(lambda _: session.run(None, case.feeds), range(16)):
            assert np.array_equal(result, first)


def test_onnxruntime_names_what_the_kernel_does_not_take() -> None:
    case = onnx_scans.chain(onnx_scans.Scan(1, 4, 10, 1, MAX_STATES_CUDA + 1))
    session = onnxruntime_session(case.model.SerializeToString())
    with pytest.raises(Exception, match="N is not from 1 to 64"):
        session.run(None, case.feeds)


MAPS = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")


def ss2d_operands(
    batch: int, channels: int, height: int, width: int, rank: int, states: int
) -> dict[str, Tensor]:
    """Random operands of the 2-D scan, in float32 on the GPU."""
    random = torch.Generator().manual_seed(channels + width)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random).cuda()

    return {
        "u": normal(batch, channels, height, width),
        "x_proj_weight": normal(4, rank + 2 * states, channels) / channels**0.5,
        "dt_weight": normal(4, channels, rank) / rank**0.5,
        "dt_bias": normal(4, channels) - 2,
        "A": -normal(4 * channels, states).exp(),
        "D": normal(4 * channels),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1, 1),
        (2, 17, 1, 65, 3, 1),
        (2, 17, 65, 1, 3, 2),
        (1, 16, 16, 16, 8, 1),
        (2, 96, 33, 50, 6, 16),
        (1, 20, 17, 31, 70, 64),
        (1, 256, 120, 120, 8, 1),
        (1, 2048, 15, 15, 64, 1),
    ],
)
def test_maps_of_every_shape(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    x = ss2d_operands(*sizes)
    x["u"] = x["u"].to(dtype)
    assert_close(ss2d(*x.values()), ss2d_ref(*(v.cpu() for v in x.values())))


def test_maps_on_every_stream_and_in_a_graph_have_the_same_bits() -> None:
    x = ss2d_operands(2, 128, 60, 44, 8, 1)
    x["u"] = x["u"].transpose(2, 3).contiguous().transpose(2, 3)
    expected = ss2d(*x.values())
    torch.cuda.synchronize()

    def on_a_stream(_: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [ss2d(*x.values()) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return all(torch.equal(y, expected) for y in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(on_a_stream, range(16)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ss2d(*x.values())
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


def test_gradients_of_maps() -> None:
    x = ss2d_operands(2, 12, 9, 7, 3, 2)
    own = {n: v.clone().requires_grad_() for n, v in x.items()}
    dy = torch.randn(x["u"].shape, device="cuda")
    ss2d(*own.values()).backward(dy)
    double = {n: v.double().cpu().requires_grad_() for n, v in x.items()}
    ss2d_ref(*double.values()).backward(dy.double().cpu())
    for name, value in double.items():
        found, expected = own[name].grad, value.grad
        assert found is not None and expected is not None
        assert (found.double().cpu() - expected).abs().max() < 1e-4 * expected.abs().max(), name


def ss2d_model(x: dict[str, Tensor]) -> bytes:
    """One node SS2D; its weights are in the file."""
    element = helper.np_dtype_to_tensor_dtype(x["u"].cpu().numpy().dtype)
    u, y = (helper.make_tensor_value_info(n, element, list(x["u"].shape)) for n in ("u", "y"))
    weights = [numpy_helper.from_array(x[n].cpu().numpy(), n) for n in MAPS[1:]]
    node = helper.make_node("SS2D", list(MAPS), ["y"], domain="tfanet")
    graph = helper.make_graph([node], "graph", [u], [y], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tfanet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("states", [1, 5])
def test_maps_in_onnxruntime_on_the_gpu(dtype: torch.dtype, states: int) -> None:
    x = ss2d_operands(2, 40, 33, 20, 5, states)
    x["u"] = x["u"].to(dtype)
    session = onnxruntime_session(ss2d_model(x))
    feeds = {"u": x["u"].cpu().numpy()}
    (first,) = session.run(None, feeds)
    assert_close(torch.from_numpy(first), ss2d_ref(*(v.cpu() for v in x.values())))
    with ThreadPoolExecutor(4) as pool:
        for (result,) in pool.map(lambda _: session.run(None, feeds), range(16)):
            assert np.array_equal(result, first)


def test_onnxruntime_names_what_the_kernels_of_maps_do_not_take() -> None:
    x = ss2d_operands(1, 4, 5, 6, 2, MAX_STATES_CUDA + 1)
    session = onnxruntime_session(ss2d_model(x))
    with pytest.raises(Exception, match="N is not from 1 to 64"):
        session.run(None, {"u": x["u"].cpu().numpy()})
