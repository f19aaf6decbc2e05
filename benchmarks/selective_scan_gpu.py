"""The scan on a GPU at the shapes of a preset: bandwidth reached, beside a copy and mamba-ssm.

python benchmarks/selective_scan_gpu.py [--preset NAME] [--dtype NAME] [--batch B] [--states N]

Bytes are what must pass the memory: u and delta read, y written, B and C read once. Candidates are
captured in CUDA graphs of several calls over different memory, more than the second-level cache
holds, and take turns; figures are medians over the rounds. "copy" is torch's copy of as many bytes
at the same shape, "large copy" one of a gigabyte: the card's bandwidth. mamba-ssm is timed where it
is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from selective_scan import Shape, make_operands, preset_shapes
from torch import Tensor

from tfanet.plugins import selective_scan, selective_scan_ref

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError:
    selective_scan_fn = None

ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
LARGE_COPY = 2**30
# Of memory that the calls of one graph pass through; the caches of today's cards hold 50 to 130 MB.
BEYOND_CACHES = 2**29


def graph_of(calls: list[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """A graph that runs the calls one after the other."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and loads kernels before the capture
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Kept until all are captured, so that each result has memory of its own.
        _results = [call() for call in calls]
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def take_turns(graphs: dict[str, torch.cuda.CUDAGraph], rounds: int) -> dict[str, float]:
    """Median milliseconds of one replay of each graph."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in graphs.values():
        milliseconds(graph)
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(milliseconds(graph))
    return {name: median(values) for name, values in times.items()}


def operands_on_gpu(shape: Shape, batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    x = {name: value.cuda() for name, value in make_operands(shape).items()}
    for name in ("u", "delta", "B", "C"):
        x[name] = x[name].to(dtype).repeat(batch, *(1,) * (x[name].ndim - 1))
    return x


def candidates(x: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    operands = [x.get(name) for name in ORDER]
    found: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: selective_scan(*operands, delta_softplus=True)  # type: ignore[arg-type]
    }
    if selective_scan_fn is not None:
        found["mamba-ssm"] = lambda: selective_scan_fn(*operands, delta_softplus=True)
    return found


def measure(shape: Shape, batch: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Microseconds by candidate, and the largest relative difference from a float64 scan."""
    first = operands_on_gpu(shape, batch, dtype)
    part = {
        n: v[:1, :, :].double().cpu() if v.ndim > 2 else v.double().cpu() for n, v in first.items()
    }
    expected = selective_scan_ref(*(part.get(n) for n in ORDER), delta_softplus=True)  # type: ignore[arg-type]
    size = first["u"].numel() * dtype.itemsize
    moved = 3 * size + 2 * first["B"].numel() * dtype.itemsize
    sets = [first, *({n: v.clone() for n, v in first.items()} for _ in range(copies_of(moved) - 1))]
    calls = [candidates(x) for x in sets]
    errors = {
        name: float((run()[:1].double().cpu() - expected).abs().max() / expected.abs().max())
        for name, run in calls[0].items()
    }
    return {
        "shape": shape,
        "bytes": moved,
        "us": compare(calls, moved, rounds),
        "errors": errors,
    }


def copies_of(moved: int) -> int:
    """How many calls, each over memory of its own of `moved` bytes, pass through no cache."""
    return max(2, -(-BEYOND_CACHES // moved))


def compare(
    calls: list[dict[str, Callable[[], Tensor]]], moved: int, rounds: int
) -> dict[str, float]:
    """Microseconds of a call by candidate, and of a copy that moves as many bytes.

    `calls` holds the candidates over each of `copies_of(moved)` sets of operands.
    """
    graphs = {name: graph_of([c[name] for c in calls]) for name in calls[0]}
    half = [
        torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(len(calls) + 1)
    ]
    pairs = pairwise(half)
    graphs["copy"] = graph_of([lambda a=a, b=b: b.copy_(a) for a, b in pairs])  # type: ignore[misc]
    found = take_turns(graphs, rounds)
    return {name: 1e3 * value / len(calls) for name, value in found.items()}


def large_copy() -> float:
    """Bytes read and written per second by a copy of a gigabyte."""
    a, b = (torch.empty(LARGE_COPY, dtype=torch.uint8, device="cuda") for _ in range(2))
    found = take_turns({"copy": graph_of([lambda: b.copy_(a)])}, 20)
    return 2 * LARGE_COPY / (1e-3 * found["copy"])


def require_gpu() -> None:
    if not torch.cuda.is_available():
        print(
            "no NVIDIA GPU that PyTorch can use (torch.cuda.is_available() is False)",
            file=sys.stderr,
        )
        raise SystemExit(3)


def finish(rows: list[dict[str, Any]], ours: str, speed: float) -> None:
    """Adds bytes per second by candidate to each row, and the share of a copy that `ours` has."""
    for row in rows:
        row["bytes_per_second"] = {n: row["bytes"] / (1e-6 * us) for n, us in row["us"].items()}
        row["of_large_copy"] = row["bytes_per_second"][ours] / speed
        row["of_copy"] = row["us"]["copy"] / row["us"][ours]


def print_table(
    title: str, labels: list[str], rows: list[dict[str, Any]], ours: str, speed: float
) -> None:
    names = list(rows[0]["us"])
    width = max(map(len, labels))
    print(f"{title}; large copy {speed / 1e9:.0f} GB/s; microseconds and GB/s")
    print(
        f"{labels[0]:>{width}} {'MB':>7}",
        *(f"{n:>17}" for n in names),
        f"{'of large copy':>14} {'of copy':>8} {'error':>8}",
    )
    for label, row in zip(labels[1:], rows, strict=True):
        print(
            f"{label:>{width}} {row['bytes'] / 1e6:7.1f}",
            *(f"{row['us'][n]:10.1f} {row['bytes_per_second'][n] / 1e9:6.0f}" for n in names),
            f"{row['of_large_copy']:14.2f} {row['of_copy']:8.2f} {row['errors'][ours]:8.1e}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--states", type=int, help="N instead of the preset's")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    require_gpu()
    shapes = [(g, c, args.states or n, length) for g, c, n, length in preset_shapes(args.preset)]
    with torch.no_grad():
        speed = large_copy()
        dtype = getattr(torch, args.dtype)
        rows = [measure(shape, args.batch, dtype, args.rounds) for shape in shapes]
    finish(rows, "ours", speed)
    if args.json:
        device = torch.cuda.get_device_name()
        print(json.dumps({"device": device, "large_copy_bytes_per_second": speed, "rows": rows}))
        return
    title = f"{torch.cuda.get_device_name()}, {args.preset}, batch {args.batch}, {args.dtype}"
    labels = ["G x channels, N, L", *(f"{g}x{c}, {n}, {length}" for g, c, n, length in shapes)]
    print_table(title, labels, rows, "ours", speed)
    if selective_scan_fn is None:
        print("mamba-ssm is not installed")


if __name__ == "__main__":
    main()
