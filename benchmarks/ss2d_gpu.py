"""The 2-D scan on a GPU at the shapes of a preset: fused, as its parts, and as VMamba runs it.

python benchmarks/ss2d_gpu.py [--preset NAME] [--dtype NAME] [--batch B] [--rounds N] [--json]

Measured as benchmarks/selective_scan_gpu.py measures; bytes are what must pass the memory: the map
read, the merged map written, the weights read. "parts" is cross-scan, projections, our scan and
cross-merge in PyTorch. "VMamba" is its published form: Triton's cross-scan and cross-merge around
its CUDA scan (oflex), where `csm_triton` and `csms6s` of its classification/models are importable
and its kernels/selective_scan is built; its maps leave the scan in float32, as it ships.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from selective_scan_gpu import (
    compare,
    copies_of,
    finish,
    large_copy,
    print_table,
    require_gpu,
)
from ss2d import Shape, make_operands, preset_shapes
from torch import Tensor

from tfanet.plugins import selective_scan, ss2d, ss2d_ref
from tfanet.plugins.pytorch.reference import ss2d_composed

try:
    import csm_triton
    import csms6s

    has_vmamba = bool(csm_triton.WITH_TRITON and csms6s.WITH_SELECTIVESCAN_OFLEX)
except (ImportError, NameError):  # the latter from csm_triton where there is no Triton
    has_vmamba = False


def vmamba(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """VMamba's functions in the order in which its block of the "v05" kind calls them."""
    batch, channels, height, width = u.shape
    directions, _, rank = dt_weight.shape[0], x_proj_weight.shape[1], dt_weight.shape[2]
    states, length = A.shape[1], height * width
    sequences = csm_triton.cross_scan_fn(u).view(batch, -1, length)
    weight = x_proj_weight.to(u.dtype).view(-1, channels, 1)
    rows = torch.nn.functional.conv1d(sequences, weight, groups=directions)
    dt, B, C = rows.view(batch, directions, -1, length).split([rank, states, states], dim=2)
    weight = dt_weight.to(u.dtype).view(-1, rank, 1)
    dt = dt.contiguous().view(batch, -1, length)
    delta = torch.nn.functional.conv1d(dt, weight, groups=directions)
    y = csms6s.selective_scan_fn(
        sequences,
        delta,
        A,
        B.contiguous(),
        C.contiguous(),
        D,
        dt_bias.view(-1),
        True,
        True,
        "oflex",
    )
    return csm_triton.cross_merge_fn(y.view(batch, directions, -1, height, width)).view(u.shape)


def candidates(x: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: ss2d(*x),
        "parts": lambda: ss2d_composed(*x, scan=selective_scan),
    }
    if has_vmamba:
        found["VMamba"] = lambda: vmamba(*x)
    return found


def measure(shape: Shape, batch: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Microseconds by candidate, and the largest relative difference from the definition."""
    u, *weights = (value.cuda() for value in make_operands(shape))
    u = u.to(dtype).repeat(batch, 1, 1, 1)
    expected = ss2d_ref(u[:1].cpu(), *(w.cpu() for w in weights))
    moved = 2 * u.numel() * dtype.itemsize + sum(4 * w.numel() for w in weights)
    sets = [[u, *weights], *([u.clone(), *weights] for _ in range(copies_of(moved) - 1))]
    calls = [candidates(x) for x in sets]
    errors = {
        name: float((run()[:1].double().cpu() - expected).abs().max() / expected.abs().max())
        for name, run in calls[0].items()
    }
    times = compare(calls, moved, rounds)
    faster = {name: us / times["fused"] for name, us in times.items() if name in calls[0]}
    return {"shape": shape, "bytes": moved, "us": times, "times_faster": faster, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    require_gpu()
    shapes = preset_shapes(args.preset)
    with torch.no_grad():
        speed = large_copy()
        dtype = getattr(torch, args.dtype)
        rows = [measure(shape, args.batch, dtype, args.rounds) for shape in shapes]
    finish(rows, "fused", speed)
    device = torch.cuda.get_device_name()
    if args.json:
        print(json.dumps({"device": device, "large_copy_bytes_per_second": speed, "rows": rows}))
        return
    labels = ["E, H x W, R, N", *(f"{e}, {h}x{w}, {r}, {n}" for e, h, w, r, n in shapes)]
    title = f"{device}, {args.preset}, batch {args.batch}, {args.dtype}"
    print_table(title, labels, rows, "fused", speed)
    for label, row in zip(labels[1:], rows, strict=True):
        others = {name: x for name, x in row["times_faster"].items() if name != "fused"}
        print(label, *(f"{x:.2f} times faster than {name}" for name, x in others.items()), sep="; ")
    if not has_vmamba:
        print(
            "VMamba is not importable: put its classification/models on PYTHONPATH and build its "
            "kernels/selective_scan"
        )


if __name__ == "__main__":
    main()
