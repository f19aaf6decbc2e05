"""How time and memory grow with the picture, from 240x240 to 1920x1920, with a plot.

python benchmarks/scaling.py [--preset NAME] [--sizes N ...] [--threads N] [--plot FILE] [--json]

"scan" is the fused 2-D scan of the first stage (a map of a quarter of the picture's side), "model"
the whole model in PyTorch with our operators, at the nearest multiple of 32. Every point runs in a
process of its own: the median time of some runs, and the peak of the process's memory above what it
held before the first one. The exponent is that of a power law of the number of pixels, fitted to
all points. A point that needs more memory than the machine has free is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tfanet.runtime.backends.session import thread_count

SIZES = (240, 480, 720, 960, 1440, 1920)
POINT = """
import json, sys, time
from statistics import median
import torch
from tfanet.model.checkpoint import load_model
from tfanet.model.tfanet.config import PRESETS
from tfanet.plugins import ss2d
from tfanet.model.tfanet.ss2d import SS2D

what, preset, side, runs, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
torch.manual_seed(0)

def resident(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) * 1024

config = PRESETS[preset]
if what == "model":
    model = load_model(preset).eval()
    ids, mask = torch.full((1, config.text_length), 49407), torch.ones(1, config.text_length)
    inputs = (torch.randn(1, 3, side, side), ids, mask)
else:
    block = SS2D(config.dims[0], config.ssm_ratio)
    A = -torch.exp(block.A_logs)
    map_ = torch.randn(1, block.inner, side // 4, side // 4)
    weights = (block.x_proj_weight, block.dt_projs_weight, block.dt_projs_bias, A, block.Ds)
    model, inputs = ss2d, (map_, *weights)
with torch.inference_mode():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before, times = resident("VmRSS"), []
    for _ in range(runs + 1):
        start = time.perf_counter()
        model(*inputs)
        times.append(time.perf_counter() - start)
print(json.dumps({"seconds": median(times[1:]), "bytes": resident("VmHWM") - before}))
"""
# Bytes per pixel of the picture that the model needs at most, for the question whether it fits.
BYTES_PER_PIXEL = {"scan": 400, "model": 6000}


def free_bytes() -> int:
    """Memory that the machine can give without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def measure(what: str, preset: str, side: int, threads: int) -> dict[str, Any]:
    """Seconds and bytes of one point, or why there is none."""
    if what == "model":
        side = 32 * round(side / 32)
    needed, free = BYTES_PER_PIXEL[what] * side**2, free_bytes()
    point: dict[str, Any] = {"what": what, "side": side, "pixels": side**2}
    if needed > free:
        reason = f"needs up to {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        return {**point, "left_out": reason}
    runs = 9 if what == "scan" else max(1, min(5, 960**2 // side**2))
    command = [sys.executable, "-c", POINT, what, preset, *map(str, (side, runs, threads))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {**point, "left_out": lines[-1]}
    return {**point, **json.loads(done.stdout)}


def exponent(points: list[dict[str, Any]], key: str) -> float:
    """Slope of log(key) over log(pixels), by least squares."""
    pixels, values = (np.log([p[k] for p in points]) for k in ("pixels", key))
    return float(np.polyfit(pixels, values, 1)[0])


def plot(series: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and memory over pixels, both axes logarithmic, one panel each."""
    width, height, margin = 640, 480, 70
    image = Image.new("RGB", (2 * width, height), "white")
    draw = ImageDraw.Draw(image)
    colors = {"scan": "#1f77b4", "model": "#d62728"}
    for panel, (key, unit, scale) in enumerate((("seconds", "ms", 1e3), ("bytes", "MB", 1e-6))):
        left, right = panel * width + margin, (panel + 1) * width - 20
        top, bottom = 50, height - margin
        points = [p for line in series.values() for p in line]
        spans = []
        for values in ([p["pixels"] for p in points], [p[key] * scale for p in points]):
            logs = np.log10(values)
            spans.append((math.floor(logs.min() * 2) / 2, math.ceil(logs.max() * 2) / 2))
        (x0, x1), (y0, y1) = spans

        def place(pixels: float, value: float, x: Any = (left, right), y: Any = (bottom, top),
                  bounds: Any = (x0, x1, y0, y1)) -> tuple[float, float]:  # fmt: skip
            a = (math.log10(pixels) - bounds[0]) / (bounds[1] - bounds[0])
            b = (math.log10(value) - bounds[2]) / (bounds[3] - bounds[2])
            return x[0] + a * (x[1] - x[0]), y[0] + b * (y[1] - y[0])

        draw.rectangle((left, top, right, bottom), outline="black")
        draw.text((left, 20), f"{'time' if panel == 0 else 'memory'} ({unit}) over pixels", "black")
        for decade in range(math.ceil(y0), math.floor(y1) + 1):
            y = place(10**x0, 10**decade)[1]
            draw.line((left, y, right, y), fill="#dddddd")
            draw.text((left - 60, y - 6), f"{10**decade:g}", "black")
        for point in next(iter(series.values())):
            x = place(point["pixels"], 10**y0)[0]
            draw.line((x, bottom, x, bottom + 5), fill="black")
            draw.text((x - 12, bottom + 8), str(point["side"]), "black")
        for row, (name, line) in enumerate(series.items()):
            at = [place(p["pixels"], p[key] * scale) for p in line]
            for start, end in pairwise(at):
                draw.line((*start, *end), fill=colors[name], width=2)
            for x, y in at:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colors[name])
            label = f"{name}: exponent {exponent(line, key):.2f}"
            draw.text((left + 12, top + 8 + 16 * row), label, colors[name])
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tfanet-base")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, default=thread_count())
    parser.add_argument("--plot", type=Path, default=Path("scaling.png"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    points = [
        measure(what, args.preset, side, args.threads)
        for what in ("scan", "model")
        for side in args.sizes
    ]
    series = {
        what: [p for p in points if p["what"] == what and "seconds" in p]
        for what in ("scan", "model")
    }
    series = {what: line for what, line in series.items() if len(line) > 1}
    keys = ("seconds", "bytes")
    fits = {what: {k: exponent(line, k) for k in keys} for what, line in series.items()}
    if series:
        plot(series, args.plot)
    if args.json:
        print(json.dumps({"points": points, "exponents": fits}))
        return
    print(f"{args.preset}, {args.threads} threads")
    print(f"{'':6} {'side':>5} {'ms':>10} {'MB':>9} {'ns/pixel':>9}")
    for point in points:
        if "seconds" in point:
            each = 1e9 * point["seconds"] / point["pixels"]
            print(
                f"{point['what']:6} {point['side']:5} {1e3 * point['seconds']:10.1f} "
                f"{point['bytes'] / 1e6:9.1f} {each:9.1f}"
            )
        else:
            print(f"{point['what']:6} {point['side']:5} left out: {point['left_out']}")
    for what, fit in fits.items():
        print(f"{what}: time grows by pixels^{fit['seconds']:.2f}, memory^{fit['bytes']:.2f}")
    if series:
        print(f"plot: {args.plot}")


if __name__ == "__main__":
    main()
