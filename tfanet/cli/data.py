"""`tfanet data`: check a dataset, or make the synthetic one."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.options import add_data_options
from tfanet.cli.output import Verbs, add_verb, table
from tfanet.cli.progress import progress_line

__all__ = ["add_verbs"]

SPLIT_SIZES = {"train": 2000, "val": 200, "testA": 100, "testB": 100}


def add_verbs(verbs: Verbs) -> None:
    summary = "Check a referring dataset, or make the synthetic one."
    data = verbs.add_parser("data", help=summary, description=summary)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)

    checked = add_verb(
        actions,
        "check",
        run_check,
        extra="train",
        examples=(
            "tfanet data check --data coco --dataset refcocog --split-by umd",
            "tfanet data check --data shapes",
        ),
    )
    add_data_options(checked)

    shapes = add_verb(
        actions,
        "make-shapes",
        run_make_shapes,
        extra="train",
        examples=(
            "tfanet data make-shapes --output shapes",
            "tfanet data make-shapes --output shapes --generalised --train 500 --seed 1",
        ),
    )
    shapes.add_argument(
        "--output", required=True, metavar="DIR", help="the folder to write the dataset into"
    )
    for split, count in SPLIT_SIZES.items():
        shapes.add_argument(
            f"--{split}", type=int, default=count, metavar="PICTURES", help=f"in the split {split}"
        )
    shapes.add_argument(
        "--generalised",
        action="store_true",
        help="sentences that mean several things or none, too, in the format of gRefCOCO",
    )
    shapes.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing")
    shapes.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def run_check(args: argparse.Namespace) -> tuple[Any, str]:
    """Read every annotation of a dataset and compare its counts with the published ones."""
    from tfanet.data import check

    report = check(
        args.data,
        args.dataset,
        split_by=args.split_by,
        images=args.images,
        progress=progress_line(),
    )
    columns = ("refs", "sentences", "published_refs", "published_sentences")
    rows = [
        (split, *("-" if facts[column] is None else facts[column] for column in columns))
        for split, facts in report["splits"].items()
    ]
    counts = table(("split", *(column.replace("_", " ") for column in columns)), rows)
    head = f"{report['dataset']} ({report['split_by']}), {report['pictures']} pictures: no fault"
    return report, "\n".join([f"{head}\n\n{counts}", *report["warnings"]])


def run_make_shapes(args: argparse.Namespace) -> tuple[Any, str]:
    """Draw a synthetic dataset of coloured shapes, in the layout of RefCOCO or gRefCOCO."""
    from tfanet.data import make_shapes

    report = make_shapes(
        args.output,
        **{split: getattr(args, split) for split in SPLIT_SIZES},
        seed=args.seed,
        generalised=args.generalised,
        overwrite=args.overwrite,
        progress=progress_line(),
    )
    columns = ("images", "refs", "sentences")
    rows = [(split, *(facts[c] for c in columns)) for split, facts in report.items()]
    return report, f"{args.output}\n\n{table(('split', *columns), rows)}"
