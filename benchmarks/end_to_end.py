"""A whole model: PyTorch eager and torch.compile beside the exported bundle in ONNX Runtime.

python benchmarks/end_to_end.py [--preset NAME ...] [--runs N] [--threads N] [--bundle DIR]
                                [--int8 DIR] [--no-compile] [--json]

By default the base presets of all families, one after the other. A child process exports each
first, which tells its time and peak memory (--bundle uses an exported one instead). Then all
candidates take turns on one picture and sentence; medians. Last, the exported graphs run once more
in a process each, which tells their peak memory.

Of a model with a selective scan, "eager, parallel scan" is the scan in plain PyTorch, the usual
state of things, and "our op" our kernel; the rest are the exported graphs, "parts" with every 2-D
scan as its parts (`tfanet export --no-fuse`), "function body" without our library. --int8 adds a
quantised bundle of the preset.
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

PRESETS = ("tfanet-base", "crossvlt-base", "asda-base", "instalign-base")
PARALLEL, EAGER, COMPILED = "eager, parallel scan", "eager", "torch.compile"
ORT, PARTS, BODY, PARTS_BODY = (
    f"ONNX Runtime{form}" for form in ("", ", parts", ", function body", ", parts' function body")
)
QUANTISED = "ONNX Runtime, INT8"
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

Run = Callable[[], np.ndarray]


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
    arguments = map(str, (image, ort_library_path(), threads))
    command = [sys.executable, "-c", RUN_ONCE, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def make_candidates(
    bundle: Bundle, parts: Path | None, quantised: Bundle | None, threads: int, compiled: bool
) -> dict[str, Run]:
    """Each returns the mask logit (1, 1, h, w) of the same picture and words, the first the others'
    measure.

    `parts` is the graph of the picture with its 2-D scans expanded, where it has any.
    """
    manifest = bundle.manifest
    model = load_model(manifest.model["preset"])
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *manifest.preprocessing.size, generator=random)
    tokens = random_tokens(np.random.default_rng(0), manifest.text, 7)
    ids, words = map(torch.from_numpy, tokens)

    def torch_run(network: Any) -> Run:
        return lambda: network(image, ids, words).numpy()

    def eager_parallel() -> np.ndarray:
        composed = partial(ss2d_composed, scan=selective_scan_parallel)
        with (
            mock.patch("tfanet.model.tfanet.ss2d.selective_scan", selective_scan_parallel),
            mock.patch("tfanet.model.tfanet.ss2d.ss2d", composed),
        ):
            return torch_run(model)()

    def graphs(library: Path | None, image_file: Path, of: Bundle = bundle) -> Run:
        text, picture = (
            open_session(path, library, threads) for path in (of.file(TEXT), image_file)
        )

        def run() -> np.ndarray:
            features = text_features(text, ids.numpy())
            feed = image_feed(
                names_of(picture.get_inputs()), image.numpy(), features, words.numpy()
            )
            return picture.run(["mask_logit"], feed)[0]

        return run

    library = ort_library_path()
    candidates: dict[str, Run] = {} if parts is None else {PARALLEL: eager_parallel}
    candidates[EAGER] = torch_run(model)
    if compiled:
        candidates[COMPILED] = torch_run(torch.compile(model))
    candidates[ORT] = graphs(library, bundle.file(IMAGE))
    if parts is not None:
        candidates[PARTS] = graphs(library, parts)
        candidates[BODY] = graphs(None, bundle.file(IMAGE))
        candidates[PARTS_BODY] = graphs(None, parts)
    if quantised is not None:
        candidates[QUANTISED] = graphs(library, quantised.file(IMAGE), quantised)
    return candidates


@torch.inference_mode()
def measure(candidates: dict[str, Run], runs: int) -> list[dict[str, Any]]:
    """One row per candidate: median milliseconds, times faster and largest relative difference,
    both beside the first."""
    logits = {name: run() for name, run in candidates.items()}  # warms up and compiles, too
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
            # Idle threads of one candidate spin a while and would slow the next one.
            time.sleep(0.2)
    first = next(iter(candidates))
    expected = logits[first]
    return [
        {
            "candidate": name,
            "ms": 1e3 * median(values),
            "times_faster": median(times[first]) / median(values),
            "rel_difference": float(np.abs(logits[name] - expected).max() / np.abs(expected).max()),
        }
        for name, values in times.items()
    ]


def report(preset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of one preset: the export's cost, the rows of `measure`, and of each graph memory and size.

    The sizes are of both graphs' files.
    """
    with tempfile.TemporaryDirectory() as folder:
        cost = None if args.bundle else export(preset, Path(folder) / "bundle")
        bundle = Bundle.open(args.bundle or Path(folder) / "bundle")
        graphs = {ORT: bundle.file(IMAGE)}
        parts = None
        if bundle.manifest.scan["fused"]:
            parts = graphs[PARTS] = Path(folder) / "parts.onnx"
            expanded = expand_ss2d(onnx.load(bundle.file(IMAGE)))
            parts.write_bytes(expanded.SerializeToString())
            del expanded
        quantised = Bundle.open(args.int8) if args.int8 else None
        if quantised is not None:
            graphs[QUANTISED] = quantised.file(IMAGE)
        candidates = make_candidates(bundle, parts, quantised, args.threads, not args.no_compile)
        rows = measure(candidates, args.runs)
        texts = {QUANTISED: quantised or bundle}
        return {
            "preset": bundle.manifest.model["preset"],
            "size": "x".join(map(str, bundle.manifest.preprocessing.size)),
            "export": cost,
            "rows": rows,
            "peak_gigabytes": {
                name: peak_gigabytes(path, args.threads) for name, path in graphs.items()
            },
            "file_megabytes": {
                name: (path.stat().st_size + texts.get(name, bundle).file(TEXT).stat().st_size)
                / 1e6
                for name, path in graphs.items()
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", nargs="+", default=PRESETS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bundle", type=Path, help="of the one preset, exported already")
    parser.add_argument("--int8", type=Path, help="a quantised bundle of the one preset")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if len(args.preset) > 1 and (args.bundle or args.int8):
        parser.error("--bundle and --int8 are of one preset: name it with --preset")
    torch.set_num_threads(args.threads)
    for preset in args.preset:
        found = report(preset, args)
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        print(f"{found['preset']}, {found['size']}, batch 1, {args.threads} threads")
        cost = found["export"]
        if cost:
            print(f"export: {cost['seconds']:.0f} s, peak {cost['peak_gigabytes']:.1f} GB")
        print(f"{'candidate':36} {'ms':>9} {'times faster':>13} {'rel. difference':>16}")
        for row in found["rows"]:
            print(
                f"{row['candidate']:36} {row['ms']:9.1f} {row['times_faster']:13.2f} "
                f"{row['rel_difference']:16.1e}"
            )
        for name, peak in found["peak_gigabytes"].items():
            size = found["file_megabytes"][name]
            print(f"{name}: peak memory {peak:.2f} GB, files {size:.0f} MB")
        print(flush=True)


if __name__ == "__main__":
    main()
