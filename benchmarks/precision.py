"""What FP16 and BF16 cost in accuracy: a bundle's graphs, rounded as an engine would round.

python benchmarks/precision.py BUNDLE --data DIR [--dataset shapes] [--split val]
                               [--range-split testA] [--limit N]

The graphs are those that `tfanet engine` builds from, in the form that computes in FP32 and rounds
what an engine stores in the low type, so that ONNX Runtime on a CPU shows the engine's masks.
"without ranges" leaves out the pass that keeps in FP32 what overflows.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx

from tfanet.data import ReferDataset
from tfanet.evaluation.evaluate import evaluate
from tfanet.export.engines.magnitudes import measure_magnitudes
from tfanet.export.engines.precision import cast_graph
from tfanet.export.engines.typed import sample_feeds
from tfanet.plugins import ort_library_path
from tfanet.runtime import Bundle
from tfanet.runtime.bundle.read import MANIFEST, file_facts

SAMPLES = 32
# The first is what precision must hold; which there are depends on the dataset.
SHOWN = ("mIoU", "oIoU", "P@0.9", "gIoU", "cIoU", "N-acc", "T-acc")


def rounded_bundle(bundle: Bundle, precision: str, feeds: dict[str, list[dict]], to: Path) -> int:
    """Writes the bundle with rounding graphs; returns how many nodes stay in FP32."""
    shutil.copytree(bundle.path, to)
    files, kept = dict(bundle.manifest.files), 0
    for name, inputs in feeds.items():
        model = onnx.load(bundle.file(name))
        ranges = measure_magnitudes(model, inputs, library=ort_library_path(), folder=to)
        rounded, table = cast_graph(model, precision, ranges=ranges, emulate=True)
        (to / name).write_bytes(rounded.SerializeToString())
        files[name] = file_facts(to / name)
        kept += len(table)
    (to / MANIFEST).write_text(replace(bundle.manifest, files=files).to_json())
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--split", default="val")
    parser.add_argument("--range-split", default="testA", help="pictures that show what overflows")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    dataset = ReferDataset(args.data, args.dataset, split=args.range_split)
    chosen = dataset[:: max(1, len(dataset) // SAMPLES)][:SAMPLES]
    feeds = sample_feeds(bundle, [(sample.image_path, sample.sentence) for sample in chosen])
    nothing: dict[str, list[dict]] = {name: [] for name in feeds}
    for name, precision, inputs in (
        ("fp32", "", nothing),
        ("fp16", "fp16", feeds),
        ("bf16", "bf16", feeds),
        ("fp16, without ranges", "fp16", nothing),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path, kept = bundle.path, "all"
            if precision:
                path = Path(folder) / "bundle"
                kept = str(rounded_bundle(bundle, precision, inputs, path))
            found = evaluate(path, args.data, args.dataset, split=args.split, limit=args.limit)
        metrics = {
            metric: found["metrics"][metric] for metric in SHOWN if metric in found["metrics"]
        }
        if not precision:
            print(f"{'graph':22} {'kept in FP32':>12}", *(f"{metric:>7}" for metric in metrics))
        print(f"{name:22} {kept:>12}", *(f"{value:7.2f}" for value in metrics.values()), flush=True)


if __name__ == "__main__":
    main()
