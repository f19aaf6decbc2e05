"""Verbs that measure a bundle: bench, parity."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from tfanet.cli.options import DATA, OptionGroup, add_data_options
from tfanet.cli.output import Verbs, add_verb, parity_table, table
from tfanet.cli.progress import progress_line
from tfanet.errors import GateError
from tfanet.progress import Progress, Stages

__all__ = ["add_verbs"]


def _add_report_options(parser: Any) -> None:
    parser.add_argument(
        "--picture",
        nargs=2,
        action="append",
        metavar=("FILE", "TEXT"),
        help="for the report, may be repeated (default: three pictures of the synthetic shapes)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")


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
        from tfanet.export.parity.report import check_report

        check_report(args.report, overwrite=args.overwrite)
    from tfanet.export.parity.check import check_bundle

    stages = Stages(progress_line())
    comparing = stages.next("", 0.5 if args.report else 1.0)
    try:
        report = check_bundle(args.bundle, checkpoint=args.checkpoint, progress=comparing)
    except GateError as error:
        if args.report:
            _write_report(args, stages.next(""), failure=str(error))
            stages.end()
        raise
    text = parity_table(report)
    if args.report:
        text += f"\n\n{_write_report(args, stages.next(''))}"
    stages.end()
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


def _write_report(args: argparse.Namespace, progress: Progress, failure: str | None = None) -> str:
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
            overwrite=args.overwrite,
            failure=failure,
            progress=progress,
        )
    lines = [f"{args.report}/report.html"]
    for picture in report["pictures"]:
        if picture["choices"]:
            made = in_words(picture["choices"])
            lines.append(f"{picture['file']}, {picture['sentence']}: {made}")
    return "\n".join(lines)
