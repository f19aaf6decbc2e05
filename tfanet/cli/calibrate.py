"""`tfanet calibrate`: the ranges of a bundle's activations; `calibrate diff`: two such files."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.options import DATA, OptionGroup, add_data_options
from tfanet.cli.output import Verbs, add_verb, table
from tfanet.cli.progress import progress_line
from tfanet.errors import InputError

__all__ = ["CALIBRATION", "add_verbs"]

SHOWN = 20  # rows of a table that may have hundreds


def _add_calibration_options(parser: Any) -> None:
    parser.add_argument(
        "--count", type=int, default=128, metavar="PICTURES", help="to measure ranges on"
    )
    parser.add_argument(
        "--observer",
        default="mse",
        metavar="NAME",
        help="what makes a range of the values: mse, entropy, percentile, moving-average or minmax",
    )
    parser.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="move outliers of channels from activations into weights (default)",
    )
    parser.add_argument(
        "--bias-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="correct biases for the mean error of rounded weights (default)",
    )
    parser.add_argument(
        "--outliers",
        action="store_true",
        help="give the text encoder's widest channels a range of their own",
    )
    parser.add_argument(
        "--dual-region",
        action="store_true",
        help="give the results of GELU and softmax two ranges, near zero and beyond",
    )


CALIBRATION = OptionGroup(_add_calibration_options)


def _add_verb_options(parser: Any) -> None:
    parser.add_argument("--bundle", metavar="DIR", help="the FP32 bundle to calibrate (no default)")
    parser.add_argument(
        "--output", metavar="FILE", help="the JSON file to write the ranges into (no default)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_data_options(parser, required=False)
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="split to take pictures from"
    )
    parser.add_argument("--precision", default="int8", help="what the ranges are for: int8 or fp8")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice of pictures"
    )
    CALIBRATION.add(parser)


VERB = OptionGroup(_add_verb_options)


def add_verbs(verbs: Verbs) -> None:
    calibrate = add_verb(
        verbs,
        "calibrate",
        run_calibrate,
        examples=(
            "tfanet calibrate --bundle bundle --data shapes --output ranges.json",
            "tfanet calibrate --bundle bundle --data shapes --precision fp8 --output fp8.json",
        ),
    )
    VERB.add(calibrate)
    actions = calibrate.add_subparsers(dest="action", metavar="diff")
    compare = add_verb(
        actions, "diff", run_diff, examples=("tfanet calibrate diff before.json after.json",)
    )
    compare.add_argument("before", metavar="FILE", help="a calibration file")
    compare.add_argument("after", metavar="FILE", help="another one, of the same model")


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
        split=args.split,
        precision=args.precision,
        seed=args.seed,
        **DATA.values(args),
        **CALIBRATION.values(args),
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

    VERB.refuse(
        args, "measures ranges, and `tfanet calibrate diff` compares two files: leave it out"
    )
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
