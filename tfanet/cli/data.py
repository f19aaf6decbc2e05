"""`tfanet data`: check a dataset, or make the synthetic one."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.output import Verbs, add_verb, progress_line, table

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    data = verbs.add_parser("data", help="Check a referring dataset, or make the synthetic one.")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)

    check = add_verb(actions, "check", run_check, extra="train")
    check.add_argument("--data", required=True, help="the folder that holds the dataset's folder")
    check.add_argument("--dataset", default="refcoco")
    check.add_argument("--images", help="the picture folder, if it is not in the usual place")

    shapes = add_verb(actions, "make-shapes", run_make_shapes, extra="train")
    shapes.add_argument("--output", required=True)
    shapes.add_argument("--seed", type=int, default=0)


def run_check(args: argparse.Namespace) -> tuple[Any, str]:
    """Read every annotation of a dataset and compare its counts with the published ones."""
    from tfanet.data import check

    report = check(args.data, dataset=args.dataset, images=args.images, progress=progress_line())
    rows = [
        (s["split"], s["refs"], s["sentences"], s["expected_refs"] or "-", s["expected_sentences"] or "-")
        for s in report["splits"]
    ]
    header = ("split", "refs", "sentences", "published refs", "published sentences")
    return report, "\n".join([table(header, rows), *report["warnings"]])


def run_make_shapes(args: argparse.Namespace) -> tuple[Any, str]:
    """Draw a synthetic referring dataset of coloured shapes, in the layout of RefCOCO."""
    from tfanet.data import make_shapes

    report = make_shapes(args.output, seed=args.seed, progress=progress_line())
    rows = [(name, s["images"], s["sentences"]) for name, s in report["splits"].items()]
    return report, f"{args.output}\n\n{table(('split', 'pictures', 'sentences'), rows)}"
