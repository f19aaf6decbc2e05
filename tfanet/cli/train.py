"""Verbs that need data: train, evaluate."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.output import Verbs, add_data_options, add_verb, progress_line, table

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    evaluate = add_verb(verbs, "evaluate", run_evaluate, extra="train")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", help="a bundle directory, run without PyTorch")
    what.add_argument("--checkpoint", help="a checkpoint file or preset name, run in PyTorch")
    add_data_options(evaluate)
    evaluate.add_argument("--split", default="val")
    evaluate.add_argument("--limit", type=int, help="only the first N samples")


def run_evaluate(args: argparse.Namespace) -> tuple[Any, str]:
    """mIoU, oIoU and Precision@X of a bundle or a checkpoint on a split."""
    from tfanet.evaluate import evaluate

    report = evaluate(
        args.bundle or args.checkpoint,
        args.data,
        dataset=args.dataset,
        split=args.split,
        split_by=args.split_by,
        images=args.images,
        limit=args.limit,
        progress=progress_line(),
    )
    rows = [(name, f"{value:.2f}") for name, value in report["metrics"].items()]
    return report, table(("metric", "percent"), rows)
