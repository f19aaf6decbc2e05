"""The part of `tfanet export` that quantises: its options, its checks and its report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.cli.calibrate import CALIBRATION, SHOWN
from tfanet.cli.options import DATA, OptionGroup, add_data_options
from tfanet.cli.output import table
from tfanet.errors import InputError
from tfanet.progress import Stages

if TYPE_CHECKING:
    from tfanet.calibration import Calibration, GuardOptions

__all__ = ["QUANTISATION", "Quantisation"]


def _add_range_options(parser: Any) -> None:
    CALIBRATION.add(parser)
    parser.add_argument(
        "--calibration-split",
        default="train",
        metavar="NAME",
        help="split to take those pictures from",
    )


def _add_guard_options(parser: Any) -> None:
    parser.add_argument(
        "--guard-split",
        default="val",
        metavar="NAME",
        help="split to measure the accuracy on",
    )
    parser.add_argument(
        "--guard-count", type=int, default=500, metavar="PICTURES", help="of that split"
    )
    parser.add_argument(
        "--max-drop",
        action="append",
        metavar="[METRIC=]POINTS",
        help="points that may be lost, such as P@0.9=1.0 or gIoU=0.5; given several times, all "
        "hold at once (default: 0.5, of mIoU)",
    )
    parser.add_argument(
        "--min-share",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="least share of the arithmetic to quantise, 0 to 1",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of all pictures"
    )


def _add_options(parser: Any) -> None:
    add_data_options(parser, required=False)
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="ranges made by `tfanet calibrate` (default: new ones, from --data)",
    )
    RANGES.add(parser)
    GUARD.add(parser)
    parser.add_argument(
        "--int8-target",
        default="any",
        metavar="NAME",
        help="any (signed activations, for every runtime) or onnxruntime (unsigned ones, which its "
        "x86 kernels run faster)",
    )


RANGES = OptionGroup(_add_range_options)
GUARD = OptionGroup(_add_guard_options)
QUANTISATION = OptionGroup(_add_options)


@dataclass(frozen=True)
class Quantisation:
    """What the options ask for, each of them checked.

    Attributes:
        known: ranges made before; without them they are measured.
        guard: None where there are no pictures to measure the accuracy on.
    """

    args: argparse.Namespace
    known: Calibration | None
    guard: GuardOptions | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Quantisation:
        """Raises InputError for an option that is wrong, or that would do nothing."""
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
        if args.calibration is not None:
            RANGES.refuse(
                args, "is for new ranges, and --calibration gives ranges made before: leave one out"
            )
        if args.data is None:
            for group in (DATA, GUARD):
                group.refuse(args, "is about pictures, and there are none: give --data, too")
        if args.precision != "int8" and args.int8_target != "any":
            raise InputError(
                f"--int8-target chooses a form of int8 graphs, and {args.precision} has one form: "
                "leave it out"
            )
        check_form(args.int8_target, args.precision)
        check_options(
            args.precision, args.observer, outliers=args.outliers, dual_region=args.dual_region
        )
        guard = None if args.data is None else _guard_options(args)
        if guard is not None:
            check_bounds(guard.bounds, guard.min_share)
            guard.items()
        if args.calibration is None:
            choose(
                args.data,
                split=args.calibration_split,
                count=args.count,
                seed=args.seed,
                **DATA.values(args),
            )
            return cls(args, None, guard)
        known = Calibration.load(args.calibration)
        if known.precision != args.precision:
            raise InputError(
                f"{args.calibration} holds ranges for {known.precision}, asked for is "
                f"{args.precision}: calibrate with --precision {args.precision}"
            )
        return cls(args, known, guard)

    def run(
        self, bundle: Any, finish: Callable[[Path], object] | None, stages: Stages
    ) -> tuple[Any, str]:
        """Quantise an FP32 bundle into --output; `finish` as of `quantize_bundle`."""
        from tfanet.calibration import calibrate, quantize_bundle

        args = self.args
        calibration = self.known or calibrate(
            bundle,
            args.data,
            split=args.calibration_split,
            precision=args.precision,
            seed=args.seed,
            **DATA.values(args),
            **CALIBRATION.values(args),
            progress=stages.next("", 0.3),
        )
        written, report = quantize_bundle(
            bundle,
            args.output,
            calibration,
            self.guard,
            target=args.int8_target,
            overwrite=args.overwrite,
            finish=finish,
            progress=stages.next("", 1.0 if finish is None else 0.7),
        )
        text = f"{written.path}\n\n{_layer_table(report['layers'])}\n\n{_summary(report)}"
        return {"manifest": written.manifest.to_dict(), **report}, text


def _guard_options(args: argparse.Namespace) -> GuardOptions:
    from tfanet.calibration import GuardOptions

    return GuardOptions(
        args.data,
        split=args.guard_split,
        count=args.guard_count,
        seed=args.seed,
        bounds=dict(map(_bound, args.max_drop or ["0.5"])),
        min_share=args.min_share,
        **DATA.values(args),
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
