"""`tfanet calibrate`, and what `tfanet export --precision int8` and `fp8` add to the export."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfanet.cli.output import Verbs, add_data_options, add_verb, progress_line, table
from tfanet.errors import InputError

__all__ = ["add_int8_options", "add_verbs", "guard_options", "run_quantise"]

SHOWN = 20  # rows of a table that may have hundreds


def add_verbs(verbs: Verbs) -> None:
    calibrate = add_verb(verbs, "calibrate", run_calibrate)
    calibrate.add_argument("--bundle", help="the FP32 bundle to calibrate")
    calibrate.add_argument("--output", help="the JSON file to write the ranges into")
    calibrate.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_data_options(calibrate, required=False)
    calibrate.add_argument("--split", default="train")
    calibrate.add_argument("--precision", default="int8", help="that ranges are for: int8 or fp8")
    _add_calibration_options(calibrate)
    actions = calibrate.add_subparsers(dest="action", metavar="diff")
    compare = add_verb(actions, "diff", run_diff)
    compare.add_argument("before", help="a calibration file")
    compare.add_argument("after", help="another one, of the same model")


def add_int8_options(export: argparse.ArgumentParser) -> None:
    """The options of `tfanet export` that belong to INT8 and FP8."""
    int8 = export.add_argument_group("INT8 and FP8 (--precision int8, --precision fp8)")
    add_data_options(int8, required=False)
    int8.add_argument("--calibration", help="ranges made before, instead of new ones from --data")
    int8.add_argument("--calibration-split", default="train", help="split to take ranges from")
    _add_calibration_options(int8)
    int8.add_argument("--guard-split", default="val", help="split that the accuracy is measured on")
    int8.add_argument("--guard-count", type=int, default=500, help="pictures of it")
    int8.add_argument(
        "--max-drop",
        action="append",
        metavar="[METRIC=]POINTS",
        help="points that may be lost: 0.5 (of mIoU, the default), or P@0.9=1.0 or gIoU=0.5; "
        "given several times, all hold at once",
    )
    int8.add_argument(
        "--min-share", type=float, default=0.5, help="least share of the arithmetic to quantise"
    )
    int8.add_argument(
        "--int8-target",
        default="any",
        help="any (signed activations, for every runtime) or onnxruntime (unsigned ones, which "
        "its x86 kernels run faster)",
    )


def _add_calibration_options(parser: Any) -> None:
    parser.add_argument("--count", type=int, default=128, help="calibration pictures")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument(
        "--observer", default="mse", help="mse, entropy, percentile, moving-average or minmax"
    )
    parser.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="move outliers of channels from activations into weights",
    )
    parser.add_argument(
        "--bias-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="correct biases for the mean error of rounded weights",
    )
    parser.add_argument(
        "--outliers",
        action="store_true",
        help="the text encoder's widest channels get a range of their own",
    )
    parser.add_argument(
        "--dual-region",
        action="store_true",
        help="what GELU and softmax give gets two ranges, near zero and beyond",
    )


def run_calibrate(args: argparse.Namespace) -> tuple[Any, str]:
    """Measure the ranges of a bundle's activations on pictures, for INT8 or FP8."""
    from tfanet.calibration import calibrate
    from tfanet.runtime.bundle.write import check_output

    missing = [name for name in ("bundle", "data", "output") if getattr(args, name) is None]
    if missing:
        raise InputError(f"calibrate needs --{missing[0]} (see tfanet calibrate --help)")
    check_output(args.output, overwrite=args.overwrite)
    calibration = calibrate(
        args.bundle,
        args.data,
        args.dataset,
        args.split,
        split_by=args.split_by,
        images=args.images,
        **_calibration_options(args),
        progress=progress_line(),
    )
    calibration.save(args.output, overwrite=args.overwrite)
    ranges = sum(len(graph.amax) for graph in calibration.graphs.values())
    result = {
        "output": args.output,
        "observer": calibration.observer,
        "ranges": ranges,
        "data": calibration.data,
    }
    pictures = calibration.data["count"]
    text = f"{args.output}: {ranges} ranges from {pictures} pictures, {calibration.observer}"
    return result, text


def run_diff(args: argparse.Namespace) -> tuple[Any, str]:
    """Compare the ranges of two calibrations, the most changed first."""
    from tfanet.calibration import Calibration, diff

    rows = diff(Calibration.load(args.before), Calibration.load(args.after))

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    shown = [
        (row["value"], *(number(row[key]) for key in ("before", "after", "ratio")))
        for row in rows[:SHOWN]
    ]
    changed = sum(row["before"] != row["after"] for row in rows)
    head = f"{changed} of {len(rows)} ranges differ"
    return rows, f"{head}\n\n{table(('value', 'before', 'after', 'ratio'), shown)}"


def run_quantise(
    args: argparse.Namespace, finish: Callable[[Path], object] | None
) -> tuple[Any, str]:
    """Quantise a bundle, a checkpoint or a preset; exported to FP32 first where it is no bundle.

    `finish` is called with the whole bundle before it takes its place.
    """
    from tfanet.calibration import calibrate, quantize_bundle

    guard, known = _check_quantise(args)
    show = progress_line()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from tfanet.export import export_bundle

            bundle = export_bundle(
                args.checkpoint or args.preset,
                Path(folder) / "fp32",
                function=args.function,
                image_size=args.image_size,
                dynamic_batch=args.dynamic_batch,
                opset=args.opset,
                progress=show,
            )
        calibration = known or calibrate(
            bundle,
            args.data,
            args.dataset,
            args.calibration_split,
            split_by=args.split_by,
            images=args.images,
            **_calibration_options(args),
            progress=show,
        )
        written, report = quantize_bundle(
            bundle,
            args.output,
            calibration,
            guard,
            target=args.int8_target,
            overwrite=args.overwrite,
            finish=finish,
            progress=show,
        )
    text = f"{written.path}\n\n{_layer_table(report['layers'])}\n\n{_summary(report)}"
    return {"manifest": written.manifest.to_dict(), **report}, text


def _check_quantise(args: argparse.Namespace) -> tuple[Any, Any]:
    """The guard and the ranges that the options name, every option checked before work begins."""
    from tfanet.calibration import Calibration
    from tfanet.calibration.accept.guard import check_bounds
    from tfanet.calibration.measure.calibrator import check_options
    from tfanet.calibration.measure.sampler import choose
    from tfanet.calibration.quantizer import check_form

    if args.calibration is None and args.data is None:
        raise InputError(
            f"--precision {args.precision} needs ranges of activations: give --data, or "
            "--calibration FILE made by `tfanet calibrate`"
        )
    check_form(args.int8_target, args.precision)
    check_options(
        args.precision, args.observer, outliers=args.outliers, dual_region=args.dual_region
    )
    guard = None
    if args.data is not None:
        guard = guard_options(args)
        check_bounds(guard.bounds, guard.min_share)
        guard.items()
    if args.calibration is None:
        where = {name: getattr(args, name) for name in ("split_by", "images", "count", "seed")}
        choose(args.data, args.dataset, args.calibration_split, **where)
        return guard, None
    known = Calibration.load(args.calibration)
    if known.precision != args.precision:
        raise InputError(
            f"{args.calibration} holds ranges for {known.precision}, asked for is "
            f"{args.precision}: calibrate with --precision {args.precision}"
        )
    return guard, known


def guard_options(args: argparse.Namespace) -> Any:
    """The `GuardOptions` of a command line; for `parity`, which has no bound, only the data."""
    from tfanet.calibration import GuardOptions

    where = {name: getattr(args, name) for name in ("data", "dataset", "split_by", "images")}
    if not hasattr(args, "max_drop"):
        return GuardOptions(**where)
    return GuardOptions(
        **where,
        split=args.guard_split,
        count=args.guard_count,
        seed=args.seed,
        bounds=dict(map(_bound, args.max_drop or ["0.5"])),
        min_share=args.min_share,
    )


def _bound(text: str) -> tuple[str, float]:
    """`P@0.9=1.0`, or the points of mIoU alone."""
    metric, _, points = text.rpartition("=")
    try:
        return metric or "mIoU", float(points)
    except ValueError:
        raise InputError(
            f"--max-drop is {text!r}: give points, such as 0.5, or METRIC=POINTS, such as P@0.9=1.0"
        ) from None


def _calibration_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(args, name)
        for name in (
            "precision",
            "count",
            "seed",
            "observer",
            "smooth",
            "bias_correction",
            "outliers",
            "dual_region",
        )
    }


def _layer_table(layers: list[dict[str, Any]]) -> str:
    """The most sensitive layers, and all that were given back."""
    kinds = dict.fromkeys(sorted(row["precision"] for row in layers))
    counts = ", ".join(
        f"{sum(row['precision'] == kind for row in layers)} {kind}" for kind in kinds
    )
    head = f"{len(layers)} layers: {counts}"
    measured = [row for row in layers if row["sensitivity"] is not None]
    if not measured:
        return head
    measured.sort(key=lambda row: -row["sensitivity"])
    rows = [
        (row["name"], f"{row['sensitivity']:.5f}", row["precision"], row["why"] or "-")
        for place, row in enumerate(measured)
        if place < SHOWN or row["why"]
    ]
    header = ("layer", "sensitivity", "precision", "why")
    return f"{head}; the most sensitive:\n\n{table(header, rows)}"


def _summary(report: dict[str, Any]) -> str:
    certificate, speed = report["certificate"], report["speed"]
    accuracy, kind = certificate["accuracy"], certificate["precision"].upper()
    times = ", ".join(f"{name} {value} ms" for name, value in speed["milliseconds"].items())
    lines = [
        f"{certificate['share']:.1%} of the arithmetic in {kind}, "
        f"{certificate['size_ratio']:.1%} of the size",
        f"{speed['backend']}: {times}",
        *(f"verdict for {backend}: {verdict}" for backend, verdict in speed["verdicts"].items()),
    ]
    if accuracy:
        rows = [
            (name, f"{value:.2f}", f"{accuracy['quantised'][name]:.2f}")
            for name, value in accuracy["fp32"].items()
        ]
        lines += ["", table(("metric", "FP32", kind), rows), ""]
        lines += [
            f"{metric} dropped by {accuracy['drop'][metric]:.2f} points, {bound:g} allowed"
            for metric, bound in accuracy["max_drop"].items()
        ]
        lines.append(f"{accuracy['evaluations']} evaluations")
    return "\n".join(lines)
