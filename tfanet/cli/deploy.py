"""Verbs that run a bundle: predict, bench, parity."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tfanet.cli.calibrate import guard_options
from tfanet.cli.output import (
    Verbs,
    add_data_options,
    add_verb,
    parity_table,
    progress_line,
    table,
)
from tfanet.errors import InputError

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    predict = add_verb(verbs, "predict", run_predict, extra="runtime")
    predict.add_argument("--bundle", required=True)
    predict.add_argument("--digest", help="of the bundle that is meant: another one is refused")
    predict.add_argument("--image", required=True)
    predict.add_argument("--text", required=True, help="what to segment, in words")
    predict.add_argument("--output", required=True, help="the mask, written as a black/white PNG")
    predict.add_argument("--overlay", help="also write the picture with the mask on it")
    predict.add_argument("--threads", type=int, help="threads (default: all cores that it may use)")
    predict.add_argument(
        "--backend",
        default="auto",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or the name of one of the "
        "bundle's engines; default: the first of them that can run here",
    )
    predict.add_argument(
        "--host-code",
        nargs="+",
        default=[],
        metavar="ENGINE",
        help="engines that may run the CPU code which they carry; only for those that you built",
    )

    bench = add_verb(verbs, "bench", run_bench, extra="runtime")
    bench.add_argument("--bundle", required=True)
    bench.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that can run")
    bench.add_argument("--batches", nargs="+", type=int, default=[1], metavar="N")
    bench.add_argument("--runs", type=int, default=30, help="timed calls of each backend")
    bench.add_argument("--warmup", type=int, default=3, help="calls before those")
    bench.add_argument("--threads", type=int, help="of a run on the CPU (default: as predict)")
    bench.add_argument(
        "--checkpoint", help="the weights, if the bundle's preset does not hold them"
    )

    parity = add_verb(verbs, "parity", run_parity)
    parity.add_argument("--bundle", required=True)
    parity.add_argument(
        "--checkpoint",
        help="the weights to compare with, if the bundle's preset does not hold them",
    )
    add_data_options(parity, required=False)
    parity.add_argument("--report", metavar="DIR", help="write parity.json and report.html there")
    parity.add_argument(
        "--picture",
        nargs=2,
        action="append",
        metavar=("FILE", "TEXT"),
        help="for the report; default: three pictures of the synthetic shapes",
    )


def run_predict(args: argparse.Namespace) -> tuple[Any, str]:
    """Segment what a sentence names in a picture, with a bundle; needs no PyTorch."""
    from tfanet.runtime import Predictor, load_image
    from tfanet.runtime.bundle.write import check_output
    from tfanet.runtime.overlay import save_mask, save_overlay

    taken = {Path(args.image).resolve()}
    for path in filter(None, (args.output, args.overlay)):
        place = check_output(path, overwrite=True)
        if place in taken:
            raise InputError(f"{path} is given twice: the result would be lost, name another file")
        taken.add(place)
    image = load_image(args.image)
    predictor = Predictor(
        args.bundle,
        digest=args.digest,
        threads=args.threads,
        backend=args.backend,
        host_code=args.host_code,
    )
    prediction = predictor(image, args.text)
    save_mask(prediction.mask, args.output)
    if args.overlay:
        save_overlay(image, prediction.mask, args.overlay)
    result = {
        "mask": args.output,
        "overlay": args.overlay,
        "pixels": int(prediction.mask.sum()),
        "share": float(prediction.mask.mean()),
        "score": float(prediction.score),
        "timings_ms": prediction.timings,
        "backend": predictor.info(),
    }
    predictor.close()
    backend = result["backend"]["engine"] or result["backend"]["backend"]
    timings = ", ".join(f"{name} {value:.1f} ms" for name, value in prediction.timings.items())
    text = (
        f"{args.output}: {result['pixels']} pixels ({result['share']:.1%} of the picture), "
        f"score {result['score']:.2f}\n{timings} on {backend}"
    )
    return result, text


def run_bench(args: argparse.Namespace) -> tuple[Any, str]:
    """Latency, throughput and memory of a bundle on every backend, beside PyTorch, in turn."""
    from tfanet.bench.measure import bench

    options = ("backends", "batches", "runs", "warmup", "threads", "checkpoint")
    report = bench(
        args.bundle, **{name: getattr(args, name) for name in options}, progress=progress_line()
    )
    return report, bench_table(report)


def bench_table(report: dict[str, Any]) -> str:
    """The benchmark's report: a row for each call of each backend, and what was left out."""
    rows = []
    for name, result in report["candidates"].items():
        sizes = (f"{result['peak_bytes'] / 1e6:.0f}", f"{result['file_bytes'] / 1e6:.1f}")
        ratio = f"{result['ratio']:.2f}" if result["ratio"] else ""
        for call, latency in result["latency"].items():
            rate = result["images_per_second"].get(call.removeprefix("image, batch "))
            speed = "" if rate is None else f"{rate:.1f}"
            quantiles = (f"{latency[q]:.1f}" for q in ("p50", "p95", "p99"))
            first = call.startswith("image") and bool(ratio)
            rows.append((name, call, *quantiles, speed, ratio if first else "", *sizes))
            ratio = "" if first else ratio
            name, sizes = "", ("", "")
    header = (
        "backend",
        "call",
        "p50 ms",
        "p95",
        "p99",
        "images/s",
        "x eager",
        "peak MB",
        "file MB",
    )
    machine = report["machine"]
    head = f"{machine['processor']}, {report['threads']} threads, {report['runs']} calls in turn"
    skipped = "\n".join(f"{name}: {reason}" for name, reason in report["skipped"].items())
    return f"{head}\n\n{table(header, rows)}\n\n{skipped}".rstrip()


def run_parity(args: argparse.Namespace) -> tuple[Any, str]:
    """Compare a bundle with PyTorch on every backend that can run here; INT8 with its certificate.

    An INT8 bundle is evaluated again on the data that its certificate was measured on (--data).
    """
    if args.report is not None:
        from tfanet.runtime.bundle.write import check_folder

        check_folder(args.report)
        if args.data is not None:
            raise InputError("--report is of an FP32 bundle: leave it out, or --data")
    if args.data is not None:
        from tfanet.calibration import recheck
        from tfanet.runtime.bundle.read import Bundle

        checked = recheck(Bundle.open(args.bundle), guard_options(args), progress=progress_line())
        rows = [
            (row["metric"], *(f"{row[key]:.2f}" for key in ("certified", "measured", "allowed")))
            for row in checked
        ]
        text = table(("metric", "certified", "measured here", "least"), rows)
        made, here = checked[0]["certified_with"], checked[0]["measured_with"]
        if made != here:
            text += f"\n\ncertified with {made or 'unknown'} instructions, measured with {here}"
        return checked, text
    from tfanet.export.parity.check import check_bundle

    report = check_bundle(args.bundle, checkpoint=args.checkpoint, progress=progress_line())
    text = parity_table(report)
    if args.report:
        _write_report(args)
        text += f"\n\n{args.report}/report.html"
    return report, text


def _write_report(args: argparse.Namespace) -> None:
    from tfanet.data import ReferDataset, make_shapes
    from tfanet.export.parity.report import write_report

    with tempfile.TemporaryDirectory() as folder:
        pictures = args.picture
        if not pictures:
            make_shapes(folder, train=0, val=3, testA=0, testB=0)
            refs = ReferDataset(folder).refs
            first = {ref.image_path: ref.sentences[0] for ref in reversed(refs)}
            pictures = sorted(first.items())
        write_report(
            args.bundle,
            args.report,
            pictures,
            checkpoint=args.checkpoint,
            progress=progress_line(),
        )
