"""A whole TFANet: PyTorch eager beside the exported bundle in ONNX Runtime.

python benchmarks/end_to_end.py [--preset NAME] [--runs N] [--threads N] [--bundle DIR] [--int8 DIR]
                                [--json]

Exports the preset in a child process first, and reports its time and peak memory (--bundle uses an
exported one instead). Then all candidates take turns on one picture and sentence; medians. Last,
the exported graphs run once more in a process each, which tells their peak memory.

"eager, parallel scan" is the model with the scan in plain PyTorch, the usual state of things;
"eager, our op" the same with our kernel; the others are the exported graphs, "parts" with every
2-D scan as its parts (`tfanet export --no-fuse`). --int8 adds a quantised bundle of the preset.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch

from tfanet.model.checkpoint import load_model
from tfanet.plugins import expand_ss2d, ort_library_path, selective_scan_parallel
from tfanet.plugins.pytorch.reference import ss2d_composed
from tfanet.runtime import Bundle
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import (
    IMAGE,
    TEXT,
    image_feed,
    names_of,
    random_tokens,
    text_features,
)

BASELINE = "eager, parallel scan"
FUSED, PARTS = "ONNX Runtime, our op", "ONNX Runtime, parts"
QUANTISED = "ONNX Runtime, INT8, our op"
# Runs image.onnx three times, without PyTorch in the process.
RUN_ONCE = """
import sys
from pathlib import Path
import numpy as np
from tfanet.worker import peak_bytes
from tfanet.runtime.backends.session import open_session
path, library, threads = sys.argv[1:]
session = open_session(Path(path), Path(library), int(threads))
feeds = {i.name: np.ones([1, *i.shape[1:]], np.float32) for i in session.get_inputs()}
for _ in range(3):
    session.run(None, feeds)
print(peak_bytes())
"""


def export(preset: str, output: Path) -> dict[str, float]:
    """Seconds and peak memory (GB) of the command line's export, its parity check included."""
    words = ("export", "--preset", preset, "--output", str(output))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tfanet", *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": seconds, "peak_gigabytes": peak / 1e9}


def peak_gigabytes(image: Path, threads: int) -> float:
    """Peak memory of a process that runs the graph of the picture with our library."""
    command = [sys.executable, "-c", RUN_ONCE, image, ort_library_path(), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def make_candidates(
    bundle: Bundle, parts: Path, quantised: Bundle | None, threads: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Each returns the mask logit (1, 1, H, W) of the same picture and words.

    `parts` is the graph of the picture with its 2-D scans expanded.
    """
    manifest = bundle.manifest
    model = load_model(manifest.model["preset"])
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *manifest.preprocessing.size, generator=random)
    tokens = random_tokens(np.random.default_rng(0), manifest.text, 7)
    ids, words = map(torch.from_numpy, tokens)

    def eager() -> np.ndarray:
        return model(image, ids, words).numpy()

    def eager_parallel() -> np.ndarray:
        composed = partial(ss2d_composed, scan=selective_scan_parallel)
        with (
            mock.patch("tfanet.model.tfanet.ss2d.selective_scan", selective_scan_parallel),
            mock.patch("tfanet.model.tfanet.ss2d.ss2d", composed),
        ):
            return eager()

    def graphs(
        library: Path | None, image_file: Path, of: Bundle = bundle
    ) -> Callable[[], np.ndarray]:
        text, picture = (
            open_session(path, library, threads) for path in (of.file(TEXT), image_file)
        )

        def run() -> np.ndarray:
            features = text_features(text, ids.numpy())
            feed = image_feed(
                names_of(picture.get_inputs()), image.numpy(), features, words.numpy()
            )
            return picture.run(None, feed)[0]

        return run

    candidates = {
        BASELINE: eager_parallel,
        "eager, our op": eager,
        FUSED: graphs(ort_library_path(), bundle.file(IMAGE)),
        PARTS: graphs(ort_library_path(), parts),
        "ONNX Runtime, function body": graphs(None, bundle.file(IMAGE)),
        "ONNX Runtime, parts' function body": graphs(None, parts),
    }
    if quantised is not None:
        image_file = quantised.file(IMAGE)
        candidates[QUANTISED] = graphs(ort_library_path(), image_file, quantised)
    return candidates


@torch.inference_mode()
def measure(
    bundle: Bundle, parts: Path, quantised: Bundle | None, runs: int, threads: int
) -> list[dict[str, Any]]:
    """One row per candidate: median milliseconds, times faster, largest relative difference."""
    candidates = make_candidates(bundle, parts, quantised, threads)
    logits = {name: run() for name, run in candidates.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
            # Idle threads of one candidate spin a while and would slow the next one.
            time.sleep(0.2)
    expected = logits[BASELINE]
    return [
        {
            "candidate": name,
            "ms": 1e3 * median(values),
            "times_faster": median(times[BASELINE]) / median(values),
            "rel_difference": float(np.abs(logits[name] - expected).max() / np.abs(expected).max()),
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bundle", type=Path, help="of a preset, exported already")
    parser.add_argument("--int8", type=Path, help="a quantised bundle of the same preset")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        cost = None if args.bundle else export(args.preset, Path(folder) / "bundle")
        bundle = Bundle.open(args.bundle or Path(folder) / "bundle")
        parts = Path(folder) / "parts.onnx"
        expanded = expand_ss2d(onnx.load(bundle.file(IMAGE)))
        parts.write_bytes(expanded.SerializeToString())
        del expanded
        quantised = Bundle.open(args.int8) if args.int8 else None
        rows = measure(bundle, parts, quantised, args.runs, args.threads)
        files = {FUSED: bundle.file(IMAGE), PARTS: parts}
        if quantised is not None:
            files[QUANTISED] = quantised.file(IMAGE)
        peaks = {name: peak_gigabytes(path, args.threads) for name, path in files.items()}
    if args.json:
        print(json.dumps({"export": cost, "rows": rows, "peak_gigabytes": peaks}))
        return
    size = "x".join(map(str, bundle.manifest.preprocessing.size))
    print(f"{bundle.manifest.model['preset']}, {size}, batch 1, {args.threads} threads")
    if cost:
        print(f"export: {cost['seconds']:.0f} s, peak {cost['peak_gigabytes']:.1f} GB")
    print(f"{'candidate':36} {'ms':>9} {'times faster':>13} {'rel. difference':>16}")
    for row in rows:
        print(
            f"{row['candidate']:36} {row['ms']:9.1f} {row['times_faster']:13.2f} "
            f"{row['rel_difference']:16.1e}"
        )
    for name, peak in peaks.items():
        print(f"peak memory, {name}: {peak:.2f} GB")


if __name__ == "__main__":
    main()
