"""Go or no-go on speed: what a quantised bundle gains, kept apart from what it is.

Times belong to one machine and one hour, a certificate to a model and its data. They are written
into `timing.json` beside the manifest, which does not list it: so the same export gives
the same manifest, byte for byte, and a copied bundle may be timed again.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.calibration.graph.session import mask_logits, open_model
from tfanet.runtime.backends.session import thread_count
from tfanet.runtime.bundle.graphs import GRAPHS, random_tokens
from tfanet.runtime.bundle.read import TIMING, Bundle

__all__ = ["WORTH", "measure_latency", "measure_speed", "write_timing"]

WARM_UP = 3
WORTH = 1.15  # below this gain in speed a lower precision does not pay for what it may lose
ELSEWHERE = "not measured here: `tfanet bench` on the target decides"


def measure_speed(
    original: Mapping[str, ModelProto],
    models: Mapping[str, ModelProto],
    bundle: Bundle,
    *,
    precision: str,
    target: str,
    threads: int | None = None,
) -> dict[str, Any]:
    """FP32 against `precision` in ONNX Runtime on this CPU, and the verdict by backend.

    On a CPU FP32 is what to beat, since FP16 is no faster there. Where the graphs are meant for
    another backend (`target` "any"), whose rival is FP16, the times here do not decide.

    Returns:
        backend, machine, threads, pair, milliseconds of both, gain and "verdicts" by backend.
    """
    pair = {"fp32": original, precision: models}
    times = measure_latency(pair, bundle, threads=threads)
    gain = times["fp32"] / times[precision]
    short = f"keep fp32: the gain is below {WORTH} times here"
    verdicts = {"onnxruntime-cpu": precision if gain >= WORTH else short}
    if target != "onnxruntime":
        verdicts |= {"tensorrt": ELSEWHERE, "tensorrt-rtx": ELSEWHERE}
    return {
        "backend": "onnxruntime-cpu",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": thread_count(threads),
        "pair": list(pair),
        "milliseconds": {name: round(value, 2) for name, value in times.items()},
        "gain": round(gain, 2),
        "verdicts": verdicts,
    }


def measure_latency(
    models: Mapping[str, Mapping[str, ModelProto]],
    bundle: Bundle,
    *,
    runs: int = 20,
    threads: int | None = None,
) -> dict[str, float]:
    """Median milliseconds of one sentence on one picture, by name, without preprocessing.

    The candidates take turns, so that what else the machine does falls on all of them.
    """
    rng = np.random.default_rng(0)
    manifest = bundle.manifest
    picture = rng.standard_normal((1, 3, *manifest.preprocessing.size)).astype(np.float32)
    ids, mask = random_tokens(rng, manifest.text, manifest.text.length - 2)
    sessions = {
        name: {graph: open_model(both[graph], threads=threads) for graph in GRAPHS}
        for name, both in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for run in range(WARM_UP + runs):
        for name, both in sessions.items():
            started = time.perf_counter()
            mask_logits(both, (picture, ids, mask))
            if run >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def write_timing(folder: Path, speed: Mapping[str, Any]) -> None:
    """Write `speed` into a bundle's directory."""
    text = json.dumps(speed, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / TIMING).write_text(text, encoding="utf-8")
