"""What the C runtime adds to ONNX Runtime, beside what the Python runtime adds.

python benchmarks/cpp_runtime.py BUNDLE [--runs N] [--threads N] [--memory-runs N] [--json]

All three run in one process and take turns, on the same bundle, pictures and sentence; medians.
  per picture   run of the image graph alone; whole prediction in C and in Python
  start         two sessions and their first runs; bundle to first mask in C and in Python
  8 threads     predictions a second on one shared handle, against one thread
  memory        growth of the process over many predictions in C, in percent
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import threading
import time
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from tfanet.plugins import ort_library_path
from tfanet.runtime import Predictor
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS, image_feed, names_of, text_features

import onnxruntime

SENTENCE = "the small red circle left of the star"
LIBRARY = Path(__file__).resolve().parents[1] / "runtime" / "lib" / "libtfanet_runtime.so"
RGB = 1
THREADS = 8


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("threads", c_int32), ("cache", c_int32),
        ("onnxruntime", c_char_p), ("op_library", c_char_p),
    ]  # fmt: skip


class Picture(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("pixels", c_void_p), ("width", c_int32), ("height", c_int32),
        ("stride", c_int64), ("format", c_int32),
    ]  # fmt: skip


class Native:
    """The C runtime through ctypes, which lets other threads run during a call."""

    def __init__(self, bundle: Path, threads: int) -> None:
        if not LIBRARY.is_file():
            raise SystemExit(f"{LIBRARY} is missing: run `make native`")
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.tfanet_error.restype = c_char_p
        file = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
        options = Options(
            ctypes.sizeof(Options), None, threads, 0, os.fsencode(file),
            os.fsencode(ort_library_path()),
        )  # fmt: skip
        self.handle = c_void_p()
        self.check(
            self.library.tfanet_open(os.fsencode(bundle), byref(options), byref(self.handle))
        )

    def check(self, status: int) -> None:
        if status:
            raise SystemExit(self.library.tfanet_error(self.handle).decode())

    def predict(self, picture: Picture) -> None:
        text, out = SENTENCE.encode(), c_void_p()
        self.check(
            self.library.tfanet_predict_text(
                self.handle, byref(picture), text, c_size_t(len(text)), byref(out)
            )
        )
        self.library.tfanet_prediction_free(out)

    def close(self) -> None:
        self.library.tfanet_close(self.handle)


def view(pixels: np.ndarray) -> Picture:
    height, width, _ = pixels.shape
    return Picture(ctypes.sizeof(Picture), pixels.ctypes.data, width, height, 0, RGB)


def turns(runs: int, *calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call; they take turns, and the first round warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    return [median(taken[1:]) for taken in times]


def rate(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Calls a second of all threads together."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            call()
            counts[number] += 1

    start = time.perf_counter()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


def measure(bundle: Path, runs: int, threads: int, memory_runs: int) -> dict[str, Any]:
    python, native = Predictor(bundle, threads=threads), Native(bundle, threads)
    height, width = python.info()["image_size"]
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    own, large = np.asarray(picture), np.asarray(picture.resize((640, 480)))
    sentence = python.encode_text(SENTENCE)
    facts: dict[str, Any] = {"threads": threads, "per_picture": []}
    for pixels in (own, large):
        tensor, image = python.preprocess(pixels)[0][None], view(pixels)
        session, c, py = turns(
            runs,
            lambda tensor=tensor: python.predict_tensors(tensor, sentence),
            lambda image=image: native.predict(image),
            lambda pixels=pixels: python(pixels, SENTENCE),
        )
        name = f"{pixels.shape[1]}x{pixels.shape[0]}"
        row = {"picture": name, "session_ms": session, "c_ms": c, "python_ms": py}
        row |= {"c_percent": 100 * (c / session - 1), "python_percent": 100 * (py / session - 1)}
        facts["per_picture"].append(row)

    tensor, image = python.preprocess(own)[0][None], view(own)
    ids, mask = python.tokenize(SENTENCE)

    def start_sessions() -> None:
        library = ort_library_path()
        text, image = (open_session(bundle / name, library, threads) for name in GRAPHS)
        taken = names_of(image.get_inputs())
        image.run(None, image_feed(taken, tensor, text_features(text, ids), mask))

    def start_native() -> None:
        runtime = Native(bundle, threads)
        runtime.predict(image)
        runtime.close()

    names = ("sessions_ms", "c_ms", "python_ms")
    values = turns(
        max(3, runs // 5),
        start_sessions,
        start_native,
        lambda: Predictor(bundle, threads=threads)(own, SENTENCE),
    )
    facts["start"] = dict(zip(names, values, strict=True))

    single = {"session": lambda: python.predict_tensors(tensor, sentence)}
    single["c"] = lambda: native.predict(image)
    facts["scaling"] = {
        name: rate(call, THREADS, 3.0) / rate(call, 1, 3.0) for name, call in single.items()
    }

    for _ in range(max(10, memory_runs // 100)):
        native.predict(image)
    before = resident()
    for _ in range(memory_runs):
        native.predict(image)
    facts["memory"] = {"runs": memory_runs, "growth_percent": 100 * (resident() / before - 1)}
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1, help="of a single run")
    parser.add_argument("--memory-runs", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    facts = measure(args.bundle, args.runs, args.threads, args.memory_runs)
    if args.json:
        print(json.dumps(facts))
        return
    print(f"{'picture':10} {'session ms':>10} {'C ms':>8} {'+ %':>6} {'Python ms':>10} {'+ %':>6}")
    for row in facts["per_picture"]:
        print(
            f"{row['picture']:10} {row['session_ms']:10.2f} {row['c_ms']:8.2f} "
            f"{row['c_percent']:6.2f} {row['python_ms']:10.2f} {row['python_percent']:6.2f}"
        )
    start = facts["start"]
    print(
        f"start: sessions {start['sessions_ms']:.0f} ms, C {start['c_ms']:.0f} ms "
        f"({start['c_ms'] / start['sessions_ms']:.2f} x), Python {start['python_ms']:.0f} ms"
    )
    scaling = facts["scaling"]
    print(f"{THREADS} threads: session {scaling['session']:.2f} x, C {scaling['c']:.2f} x")
    memory = facts["memory"]
    print(f"memory: {memory['growth_percent']:+.2f} % over {memory['runs']} predictions")


if __name__ == "__main__":
    main()
