"""What `Predictor` adds to the run of its image graph: preprocessing, cached text, mask, score.

python benchmarks/runtime_overhead.py BUNDLE [--runs N] [--threads N] [--json]

Predictor call and bare session run take turns, on the same session, picture and sentence; medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from tfanet.runtime import Predictor

SENTENCE = "the small red circle left of the star"


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def measure(bundle: Path, runs: int, threads: int | None) -> list[dict[str, float | str]]:
    """One row per kind of picture: milliseconds of session and predictor, and what is added."""
    predictor = Predictor(bundle, threads=threads)
    height, width = predictor.info()["image_size"]
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    sentence = predictor.encode_text(SENTENCE)
    with tempfile.TemporaryDirectory() as folder:
        jpeg = Path(folder) / "picture.jpg"
        picture.resize((640, 480)).save(jpeg, quality=90)
        rows: list[dict[str, float | str]] = []
        for name, source in (
            (f"{width}x{height} array", np.asarray(picture)),
            ("640x480 JPEG", jpeg),
        ):
            tensor = predictor.preprocess(source)[0][None]
            session, whole, added = [], [], []
            for _ in range(runs + 1):  # the first of each warms up
                session.append(timed(partial(predictor.predict_tensors, tensor, sentence)))
                start = time.perf_counter()
                timings = predictor(source, SENTENCE).timings
                whole.append(1e3 * (time.perf_counter() - start))
                added.append(whole[-1] - timings["image"])
            rows.append(
                {
                    "picture": name,
                    "session_ms": median(session[1:]),
                    "predictor_ms": median(whole[1:]),
                    "added_ms": median(added[1:]),
                    "added_percent": 100 * median(added[1:]) / median(session[1:]),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(args.bundle, args.runs, args.threads)
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{'picture':16} {'session ms':>10} {'predictor ms':>12} {'added ms':>9} {'added %':>8}")
    for row in rows:
        print(
            f"{row['picture']:16} {row['session_ms']:10.1f} {row['predictor_ms']:12.1f} "
            f"{row['added_ms']:9.2f} {row['added_percent']:8.2f}"
        )


if __name__ == "__main__":
    main()
