"""Families of selective-scan models on the CPU: their own PyTorch code beside ONNX Runtime.

Medians of runs that take turns, at batch 1 and random weights. "PyTorch" is the model with its
scan as a loop over the steps, which is what is left without CUDA; "exportable()" is PyTorch with
our operator; "body" is the exported file without our library.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from tfanet.cli.output import table
from tfanet.export import export_onnx
from tfanet.export.user_model.inputs import draw, parse_inputs
from tfanet.plugins import exportable, install, ort_library_path, uninstall
from tfanet.plugins.compat import entry_points

import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "zoo"))

MODELS = {
    "VMamba-T, 224 x 224": ("zoo_vmamba:tiny", "1x3x224x224"),
    "VMamba-S, 224 x 224": ("zoo_vmamba:small", "1x3x224x224"),
    "VMamba-B, 224 x 224": ("zoo_vmamba:base", "1x3x224x224"),
    "Vim-T, 224 x 224": ("zoo_sequences:vim_tiny", "1x3x224x224"),
    "MambaVision-T, 224 x 224": ("zoo_mambavision:tiny", "1x3x224x224"),
    "transformers Mamba, 4 layers of 256, 256 tokens": (
        "zoo_transformers:medium",
        "input_ids:1x256:int64",
    ),
}


def loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The scan as a loop over the steps in float32, as mamba-ssm's selective_scan_ref has it."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    B, C = (
        (x.unsqueeze(1) if x.ndim == 3 else x).repeat_interleave(
            u.shape[1] // (1 if x.ndim == 3 else x.shape[1]), dim=1
        )
        for x in (B, C)
    )
    decay = torch.exp(delta.unsqueeze(-1) * A[:, None])
    inflow = (delta * u).unsqueeze(-1) * B.transpose(2, 3)
    h, steps = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        steps.append((h * C[..., t]).sum(-1))
    y = torch.stack(steps, 2)
    y = y if D is None else y + u * D[:, None]
    return y if z is None else y * F.silu(z)


def measure(name: str, factory: str, shape: str, runs: int, folder: str) -> tuple[str, ...]:
    """One row: seconds, and how many times faster the file with our library is."""
    path = Path(folder) / "model.onnx"
    module, _, function = factory.partition(":")
    install(standins=True)
    model = getattr(importlib.import_module(module), function)().eval()
    uninstall()
    specs = parse_inputs([shape])
    report = export_onnx(model, path, input=shape, overwrite=True)
    values = draw(specs)
    feeds = {spec.name: value.numpy() for spec, value in zip(specs, values, strict=True)}

    def session(library: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        if library:
            options.register_custom_ops_library(str(ort_library_path()))
        return onnxruntime.InferenceSession(path, options)

    with_library, body = session(True), session(False)
    ways: list[tuple[Any, Callable[[], Any]]] = [
        (partial(mock.patch.object, entry_points, "selective_scan", loop), lambda: model(*values)),
        (exportable, lambda: model(*values)),
        (nullcontext, lambda: body.run(None, feeds)),
        (nullcontext, lambda: with_library.run(None, feeds)),
    ]
    times: list[list[float]] = [[] for _ in ways]
    with torch.no_grad():
        for turn in range(runs + 1):  # the first warms up
            for (context, way), taken in zip(ways, times, strict=True):
                with context():
                    start = time.perf_counter()
                    way()
                    if turn:
                        taken.append(time.perf_counter() - start)
    medians = [median(taken) for taken in times]
    return (
        name,
        str(len(report["nodes"]["scans"])),
        *(f"{1000 * m:.0f}" for m in medians),
        f"{medians[0] / medians[-1]:.1f}",
        f"{report['parity']['max_rel_error']:.0e}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="models whose name holds this")
    args = parser.parse_args()
    print(f"milliseconds with {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    header = ("model", "scans", "PyTorch", "exportable()", "body", "our library", "times", "error")
    rows = []
    for name, (factory, shape) in MODELS.items():
        if args.only.lower() not in name.lower():
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(measure(name, factory, shape, args.runs, folder))
                print(" ".join(rows[-1]), file=sys.stderr, flush=True)
            except ModuleNotFoundError as error:
                print(f"{name}: left out, {error.name} is not installed")
    print(table(header, rows))


if __name__ == "__main__":
    main()
