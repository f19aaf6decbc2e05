"""Verbs that run a bundle: predict, bench, parity."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tfanet.cli.options import DATA, OptionGroup, add_data_options
from tfanet.cli.output import (
    Verbs,
    add_verb,
    parity_table,
    progress_line,
    table,
)
from tfanet.errors import InputError, plain

__all__ = ["add_verbs"]


def _add_report_options(parser: Any) -> None:
    parser.add_argument(
        "--picture",
        nargs=2,
        action="append",
        metavar=("FILE", "TEXT"),
        help="for the report, may be repeated (default: three pictures of the synthetic shapes)",
    )


def _add_fp32_options(parser: Any) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the weights to compare with (default: those of the bundle's preset)",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write parity.json and report.html there (default: no report)",
    )
    REPORT.add(parser)


# Options of `parity`.
REPORT = OptionGroup(_add_report_options)
FP32 = OptionGroup(_add_fp32_options)


def add_verbs(verbs: Verbs) -> None:
    predict = add_verb(
        verbs,
        "predict",
        run_predict,
        extra=None,
        examples=(
            "tfanet predict --bundle bundle --image photo.jpg --text 'the man on the left' "
            "--output mask.png",
        ),
    )
    predict.add_argument("--bundle", required=True, metavar="DIR", help="the bundle directory")
    predict.add_argument(
        "--digest",
        metavar="SHA256",
        help="refuse every bundle but the one with this digest (default: any)",
    )
    predict.add_argument("--image", required=True, metavar="FILE", help="the picture")
    predict.add_argument("--text", required=True, metavar="TEXT", help="what to segment, in words")
    predict.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="the PNG to write the mask into, black and white",
    )
    predict.add_argument(
        "--overlay",
        metavar="FILE",
        help="also write the picture with the mask on it (default: it is not written)",
    )
    predict.add_argument(
        "--threads",
        type=int,
        metavar="THREADS",
        help="of a run on the CPU (default: all cores that it may use)",
    )
    predict.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or the name of one of the "
        "bundle's engines (default: the first backend that can run here)",
    )
    predict.add_argument(
        "--host-code",
        nargs="+",
        default=[],
        metavar="ENGINE",
        help="engines that may run the CPU code that they carry: name only those that you built "
        "(default: none)",
    )

    bench = add_verb(
        verbs,
        "bench",
        run_bench,
        extra=None,
        examples=(
            "tfanet bench --bundle bundle",
            "tfanet bench --bundle bundle --backends onnxruntime-cpu pytorch-eager --batches 1 4",
        ),
    )
    bench.add_argument("--bundle", required=True, metavar="DIR", help="the bundle directory")
    bench.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="what to time (default: all that can run here)",
    )
    bench.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[1],
        metavar="PICTURES",
        help="that run together (default: 1)",
    )
    bench.add_argument(
        "--runs", type=int, default=30, metavar="CALLS", help="of each backend, timed"
    )
    bench.add_argument("--warmup", type=int, default=3, metavar="CALLS", help="before those")
    bench.add_argument(
        "--threads",
        type=int,
        metavar="THREADS",
        help="of a run on the CPU (default: all cores that it may use)",
    )
    bench.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="the weights, for PyTorch (default: those of the bundle's preset)",
    )

    parity = add_verb(
        verbs,
        "parity",
        run_parity,
        examples=(
            "tfanet parity --bundle bundle",
            "tfanet parity --bundle bundle --report report --picture photo.jpg 'the red car'",
            "tfanet parity --bundle bundle-int8 --data shapes",
        ),
    )
    parity.add_argument("--bundle", required=True, metavar="DIR", help="the bundle directory")
    add_data_options(parity, required=False)
    FP32.add(parity)


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
    instances = None
    if prediction.instances is not None:
        instances = [
            {
                "relevance": one.relevance,
                "pixels": int(one.mask.sum()),
                "words": one.words and [word._asdict() for word in one.words],
            }
            for one in prediction.instances
        ]
    result = {
        "mask": args.output,
        "overlay": args.overlay,
        "pixels": int(prediction.mask.sum()),
        "share": float(prediction.mask.mean()),
        "score": float(prediction.score),
        "no_target": prediction.no_target,
        "instances": instances,
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
    if prediction.no_target is not None:
        text += f"\nthe sentence means nothing in the picture: {prediction.no_target:.0%} likely"
    for one in instances or ():
        text += f"\nan object of {one['pixels']} pixels, {one['relevance']:.0%} relevant"
        if one["words"]:
            text += f", aligned with {_strongest(one['words'])}"
    return result, text


def _strongest(words: list[dict[str, Any]]) -> str:
    """The words with an even share or more of what all of them have, most first."""
    even = sum(word["share"] for word in words) / len(words)
    strongest = sorted((word for word in words if word["share"] >= even), key=lambda w: -w["share"])
    return ", ".join(f"'{plain(word['text'])}' ({word['share']:.0%})" for word in strongest)


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
    if args.data is not None:
        FP32.refuse(args, "is for an FP32 bundle, and --data for a quantised one: leave one out")
        return _recheck(args)
    DATA.refuse(args, "says more of --data, which is not given: give that, too")
    if args.report is None:
        REPORT.refuse(args, "is for the report: give --report DIR, too")
    else:
        from tfanet.runtime.bundle.write import check_folder

        check_folder(args.report)
    from tfanet.export.parity.check import check_bundle

    report = check_bundle(args.bundle, checkpoint=args.checkpoint, progress=progress_line())
    text = parity_table(report)
    if args.report:
        text += f"\n\n{_write_report(args)}"
    return report, text


def _recheck(args: argparse.Namespace) -> tuple[Any, str]:
    from tfanet.calibration import GuardOptions, recheck
    from tfanet.runtime.bundle.read import Bundle

    guard = GuardOptions(args.data, **DATA.values(args))
    checked = recheck(Bundle.open(args.bundle), guard, progress=progress_line())
    rows = [
        (row["metric"], *(f"{row[key]:.2f}" for key in ("certified", "measured", "allowed")))
        for row in checked
    ]
    text = table(("metric", "certified", "measured here", "least"), rows)
    made, here = checked[0]["certified_with"], checked[0]["measured_with"]
    if made != here:
        text += f"\n\ncertified with {made or 'unknown'} instructions, measured with {here}"
    return checked, text


def _write_report(args: argparse.Namespace) -> str:
    """Where it is, and what was chosen for its pictures."""
    from tfanet.data import ReferDataset, make_shapes
    from tfanet.export.parity.choices import in_words
    from tfanet.export.parity.report import write_report

    with tempfile.TemporaryDirectory() as folder:
        pictures = args.picture
        if not pictures:
            make_shapes(folder, train=0, val=3, testA=0, testB=0)
            refs = ReferDataset(folder).refs
            first = {ref.image_path: ref.sentences[0] for ref in reversed(refs)}
            pictures = sorted(first.items())
        report = write_report(
            args.bundle,
            args.report,
            pictures,
            checkpoint=args.checkpoint,
            progress=progress_line(),
        )
    lines = [f"{args.report}/report.html"]
    for picture in report["pictures"]:
        if picture["choices"]:
            made = in_words(picture["choices"])
            lines.append(f"{picture['file']}, {picture['sentence']}: {made}")
    return "\n".join(lines)
