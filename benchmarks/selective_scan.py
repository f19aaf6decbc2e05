"""The scan at the shapes of a preset: our kernel beside what there is otherwise.

python benchmarks/selective_scan.py [--preset NAME] [--seconds S] [--threads N] [--only NAMES]
    [--json]

Candidates take turns in each round; figures are medians in milliseconds. "bound" is the time that
reading u and delta and writing y takes at the memory bandwidth measured in the same run; the last
two columns are the kernel's median and its best time over that. "kernel" writes to memory that is
there already, as it is in a running network; "torch" is the operator as called, "ort" is it in ONNX
Runtime. mambapy is timed where it is installed. --only names the candidates beside the kernel.

The environment variable TFANET_SCAN_ISA=baseline, avx2 or avx512 forces the instruction set, in
PyTorch and in ONNX Runtime alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tfanet.model.tfanet.config import PRESETS
from tfanet.model.tfanet.network import TFANet
from tfanet.plugins import attach, ort_library_path, selective_scan, selective_scan_parallel
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.selective_scan import _run_forward

import onnxruntime

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

# (groups, channels of a group, N, L)
Shape = tuple[int, int, int, int]
INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def record_calls(name: str, note: Callable[[Any, tuple[Any, ...]], None]) -> None:
    """Shows every operator of a preset at its own picture size, and its arguments, without data."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            note(func, args)
            return func(*args, **(kwargs or {}))

    config = PRESETS[name]
    with torch.device("meta"), torch.no_grad(), Record():
        ids = torch.zeros(1, config.text_length, dtype=torch.long)
        image, mask = torch.zeros(1, 3, *config.image_size), torch.ones(1, config.text_length)
        TFANet(config).eval()(image, ids, mask)


def preset_shapes(name: str) -> list[Shape]:
    """Scan shapes of a preset at its own picture size, largest first."""
    found: set[Shape] = set()

    def note(func: Any, args: tuple[Any, ...]) -> None:
        if func is torch.ops.tfanet.selective_scan.default:
            u, B = args[0], args[3]
            found.add((B.shape[1], u.shape[1] // B.shape[1], B.shape[2], u.shape[2]))
        if func is torch.ops.tfanet.ss2d.default:  # four scans in one
            u, A = args[0], args[4]
            found.add((4, u.shape[1], A.shape[1], u.shape[2] * u.shape[3]))

    record_calls(name, note)
    return sorted(found, key=lambda s: -s[0] * s[1] * s[3])


def make_operands(shape: Shape) -> dict[str, Tensor]:
    """u, delta (1, dim, L), A (dim, N), B, C (1, G, N, L), D, delta_bias (dim), as VMamba has."""
    groups, channels, states, length = shape
    dim, random = groups * channels, torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    return {
        "u": normal(1, dim, length),
        "delta": normal(1, dim, length) - 3,
        "A": -torch.rand(dim, states, generator=random) * 8 - 0.1,
        "B": normal(1, groups, states, length),
        "C": normal(1, groups, states, length),
        "D": torch.ones(dim),
        "delta_bias": normal(dim) - 1,
    }


class _Loop(nn.Module):
    """The recurrence as one writes it first: a step after the other, float32."""

    def forward(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
    ) -> Tensor:
        delta = nn.functional.softplus(delta + bias[:, None])
        repeats = u.shape[1] // B.shape[1]
        B, C = B.repeat_interleave(repeats, 1), C.repeat_interleave(repeats, 1)
        h, steps = u.new_zeros(u.shape[0], *A.shape), []
        for t in range(u.shape[2]):
            step = delta[:, :, t, None]
            h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
            steps.append((h * C[..., t]).sum(-1))
        return torch.stack(steps, 2) + u * D[:, None]


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    delta = nn.functional.softplus(delta + bias[:, None]).transpose(1, 2)  # (1, L, dim)
    repeats = u.shape[1] // B.shape[1]
    B, C = (x.repeat_interleave(repeats, 1).permute(0, 3, 1, 2) for x in (B, C))
    decay = torch.exp(delta.unsqueeze(-1) * A)
    h = pscan(decay, (delta * u.transpose(1, 2)).unsqueeze(-1) * B)
    return (h * C).sum(-1).transpose(1, 2) + u * D[:, None]


def onnx_scan(x: dict[str, Tensor], kind: str, threads: int) -> Callable[[], Tensor]:
    """The node in ONNX Runtime, outputs bound to fixed memory; with our library for "kernel"."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x[n].shape) for n in INPUTS]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, x["u"].shape)
    node = helper.make_node("SelectiveScan", INPUTS, ["y"], domain="tfanet", delta_softplus=1)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tfanet", 1)]
    graph = helper.make_graph([node], "scan", inputs, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model = attach(model, "none" if kind == "kernel" else kind)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # Idle threads that spin would take the processor from the candidates that follow.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if kind == "kernel":
        options.register_custom_ops_library(str(ort_library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    y = torch.empty(x["u"].shape)
    binding = session.io_binding()
    for name in INPUTS:
        binding.bind_cpu_input(name, x[name].numpy())
    binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return run


def make_candidates(x: dict[str, Tensor], threads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    u, delta, A, B, C, D, bias = (x[n] for n in INPUTS)
    operands = (u, delta, A, B, C, D, None, bias)
    y = torch.empty_like(u)

    def kernel() -> Tensor:
        _run_forward(y, *operands, delta_softplus=True)
        return y

    yield "kernel", kernel
    yield "torch", lambda: selective_scan(*operands, delta_softplus=True)
    yield "ort", onnx_scan(x, "kernel", threads)
    yield "ort sequential", onnx_scan(x, "sequential", threads)
    yield "ort parallel", onnx_scan(x, "parallel", threads)
    yield "torch parallel", lambda: selective_scan_parallel(*operands, delta_softplus=True)
    yield "torch loop", lambda: _Loop()(u, delta, A, B, C, D, bias)
    if pscan is not None:
        yield "mambapy", lambda: mambapy_scan(u, delta, A, B, C, D, bias)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bandwidth() -> float:
    """Bytes per second of the best of a sum (1 stream), a copy (2) and an addition (3)."""
    a, b, c = (torch.ones(2**26) for _ in range(3))
    size = a.numel() * a.element_size()
    ways = (
        (1, lambda: a.sum()),
        (2, lambda: c.copy_(a)),
        (3, lambda: torch.add(a, b, out=c)),
    )
    return max(n * size / min(seconds(run) for _ in range(7)) for n, run in ways)


def measure(shape: Shape, budget: float, threads: int, only: list[str] | None) -> dict[str, Any]:
    """Medians by candidate, and the largest difference of any from the kernel, relative."""
    x = make_operands(shape)
    candidates = {
        name: run
        for name, run in make_candidates(x, threads)
        if only is None or name in ("kernel", *only)
    }
    with torch.no_grad():
        expected = candidates["kernel"]().clone()
        worst = 0.0
        for run in candidates.values():  # warms up, too
            worst = max(worst, float((run() - expected).abs().max() / expected.abs().max()))
        times: dict[str, list[float]] = {name: [] for name in candidates}
        end = time.perf_counter() + budget
        while time.perf_counter() < end or not times["kernel"]:
            for name, run in candidates.items():
                # A slow candidate has had its turns when it took its share of the time.
                if sum(times[name]) < max(budget / (len(candidates) + 4), 1e-9):
                    times[name].append(seconds(run))
    sequence = x["u"].numel() * x["u"].element_size()
    moved = 3 * sequence + 2 * x["B"].numel() * x["B"].element_size()
    medians = {name: 1e3 * median(values) for name, values in times.items() if values}
    best = 1e3 * min(times["kernel"])
    return {
        "shape": shape,
        "bytes": moved,
        "ms": medians,
        "best_ms": best,
        "largest_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", metavar="NAME", help="candidates beside the kernel")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        speed = bandwidth()
        shapes = preset_shapes(args.preset)
        rows = [measure(shape, args.seconds, args.threads, args.only) for shape in shapes]
    for row in rows:
        row["bound_ms"] = 1e3 * row["bytes"] / speed
        row["kernel_over_bound"] = row["ms"]["kernel"] / row["bound_ms"]
        row["best_over_bound"] = row["best_ms"] / row["bound_ms"]
    if args.json:
        print(json.dumps({"gigabytes_per_second": speed / 1e9, "rows": rows}))
        return
    print(
        f"{args.preset}, {args.threads} threads, instructions {cpu.isa_name()}, "
        f"memory {speed / 1e9:.1f} GB/s; milliseconds"
    )
    names = list(rows[0]["ms"])
    print(
        f"{'G x channels, N, L':>19} {'bound':>7}",
        *(f"{n:>14}" for n in names),
        " x bound     best",
    )
    for row in rows:
        groups, channels, states, length = row["shape"]
        print(
            f"{f'{groups}x{channels}, {states}, {length}':>19} {row['bound_ms']:7.2f}",
            *(f"{row['ms'][n]:14.2f}" for n in names),
            f"{row['kernel_over_bound']:8.2f} {row['best_over_bound']:8.2f}",
        )
    print(f"largest relative difference: {max(r['largest_difference'] for r in rows):.1e}")
    if pscan is None:
        print("mambapy is not installed: pip install mambapy")


if __name__ == "__main__":
    main()
