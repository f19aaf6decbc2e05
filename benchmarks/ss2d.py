"""The 2-D scan at the shapes of a preset: fused, as its parts, and in PyTorch without a kernel.

python benchmarks/ss2d.py [--preset NAME] [--seconds S] [--threads N] [--cpu-time] [--json]

Candidates take turns in each round; figures are medians in milliseconds, and the ratios theirs.
"fused" is tfanet::SS2D in ONNX Runtime, "parts" the same model with every 2-D scan expanded to
projections, cross-scan, tfanet::SelectiveScan and cross-merge, both with our library and outputs
bound to fixed memory. "kernel" is the fused kernel without ONNX Runtime, "torch" the operator as
called in PyTorch, "eager" PyTorch's own operators with a parallel scan. "bound" is the time of the
two products at this machine's speed (of a large one, in PyTorch), or that of reading and writing
the map once where that is longer. --cpu-time takes one thread and counts its processor time, which
is what to compare on a machine that others use, too. The environment variable
TFANET_SCAN_ISA=baseline, avx2 or avx512 forces the instruction set.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

# PyTorch's idle threads would spin on a core that the candidate after it needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from selective_scan import record_calls
from torch import Tensor

from tfanet.plugins import (
    attach,
    expand_ss2d,
    ort_library_path,
    selective_scan_parallel,
    ss2d,
    ss2d_ref,
)
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.reference import ss2d_composed
from tfanet.plugins.pytorch.ss2d import run_into

import onnxruntime

# E, H, W, R, N
Shape = tuple[int, int, int, int, int]
WEIGHTS = ("x_proj_weight", "dt_weight", "dt_bias", "A", "D")
BASELINES = ("parts", "eager")


def preset_shapes(name: str) -> list[Shape]:
    """2-D scans of a preset at its own picture size, in the order of the first call."""
    found: dict[Shape, None] = {}

    def note(func: Any, args: tuple[Any, ...]) -> None:
        if func is torch.ops.tfanet.ss2d.default:
            u, dt_weight, A = args[0], args[2], args[4]
            found[(*u.shape[1:], dt_weight.shape[2], A.shape[1])] = None

    record_calls(name, note)
    return list(found)


def make_operands(shape: Shape) -> list[Tensor]:
    """The arguments of `ss2d` at batch 1, distributed as VMamba's are at the start of training."""
    channels, height, width, rank, states = shape
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    return [
        normal(1, channels, height, width),
        normal(4, rank + 2 * states, channels) * channels**-0.5,
        normal(4, channels, rank) * rank**-0.5,
        normal(4, channels) - 4,
        -torch.arange(1.0, states + 1).repeat(4 * channels, 1),
        torch.ones(4 * channels),
    ]


def in_onnx(x: list[Tensor], threads: int, fused: bool) -> Callable[[], Tensor]:
    """The operator in ONNX Runtime with our library, its result bound to fixed memory."""
    shape = tuple(x[0].shape)
    u, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("u", "y"))
    node = helper.make_node("SS2D", ["u", *WEIGHTS], ["y"], name="ss2d", domain="tfanet")
    weights = [numpy_helper.from_array(v.numpy(), n) for n, v in zip(WEIGHTS, x[1:], strict=True)]
    graph = helper.make_graph([node], "ss2d", [u], [y], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tfanet", 1)]
    model = attach(helper.make_model(graph, opset_imports=opsets, ir_version=10), "none")
    model = model if fused else expand_ss2d(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # Idle threads that spin would take the processor from the candidates that follow.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(str(ort_library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result = torch.empty(shape)
    binding = session.io_binding()
    binding.bind_cpu_input("u", x[0].numpy())
    binding.bind_output("y", "cpu", 0, np.float32, shape, result.data_ptr())

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return result

    return run


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def machine_speed(clock: Callable[[], float]) -> tuple[float, float]:
    """Operations per second of a matrix product, bytes per second of a copy: the best of seven."""
    a, b = torch.ones(2048, 2048), torch.ones(2**25)
    c, d = torch.empty_like(a), torch.empty_like(b)
    product = min(seconds(lambda: torch.mm(a, a, out=c), clock) for _ in range(7))
    copy = min(seconds(lambda: d.copy_(b), clock) for _ in range(7))
    return 2 * a.shape[0] ** 3 / product, 2 * b.numel() * b.element_size() / copy


def measure(
    shape: Shape,
    budget: float,
    threads: int,
    clock: Callable[[], float],
    speed: tuple[float, float],
) -> dict[str, Any]:
    """Medians by candidate, ratios to the fused operator, and the largest relative error."""
    x = make_operands(shape)
    result = torch.empty_like(x[0])
    candidates: dict[str, Callable[[], Any]] = {
        "fused": in_onnx(x, threads, fused=True),
        "parts": in_onnx(x, threads, fused=False),
        "kernel": lambda: run_into(result, *x, threads=threads),
        "torch": lambda: ss2d(*x),
        "eager": lambda: ss2d_composed(*x, scan=selective_scan_parallel),
    }
    expected = ss2d_ref(*x)
    error = float((candidates["fused"]() - expected).abs().max() / expected.abs().max())
    for run in candidates.values():  # warms up
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times["eager"]) < 3:
        for name, run in candidates.items():
            times[name].append(seconds(run, clock))
    medians = {name: 1e3 * median(values) for name, values in times.items()}
    channels, height, width, rank, states = shape
    products = 2 * 4 * (2 * rank + 2 * states) * channels * height * width
    moved = 2 * channels * height * width * 4
    return {
        "shape": shape,
        "ms": medians,
        "bound_ms": 1e3 * max(products / speed[0], moved / speed[1]),
        "times_faster": {name: medians[name] / medians["fused"] for name in BASELINES},
        "rel_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, not wall time")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads = 1
    clock = time.thread_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        speed = machine_speed(clock)
        shapes = preset_shapes(args.preset)
        rows = [measure(shape, args.seconds, args.threads, clock, speed) for shape in shapes]
    if args.json:
        print(json.dumps({"flops_and_bytes_per_second": speed, "rows": rows}))
        return
    print(
        f"{args.preset}, {args.threads} threads, {'processor' if args.cpu_time else 'wall'} time, "
        f"instructions {cpu.isa_name()}, "
        f"{speed[0] / 1e9:.0f} GFLOP/s, {speed[1] / 1e9:.1f} GB/s; milliseconds"
    )
    names = list(rows[0]["ms"])
    heads = (*names, *(f"{name}/fused" for name in BASELINES))
    print(f"{'E, H x W, R, N':>22} {'bound':>7}", *(f"{head:>12}" for head in heads))
    for row in rows:
        channels, height, width, rank, states = row["shape"]
        print(
            f"{f'{channels}, {height}x{width}, {rank}, {states}':>22} {row['bound_ms']:7.2f}",
            *(f"{row['ms'][name]:12.2f}" for name in names),
            *(f"{row['times_faster'][name]:12.2f}" for name in BASELINES),
        )
    print(f"largest relative error: {max(row['rel_error'] for row in rows):.1e}")


if __name__ == "__main__":
    main()
