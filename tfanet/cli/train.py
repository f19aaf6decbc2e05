"""Verbs that need data: pretrain, train, evaluate."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.options import add_data_options, image_size
from tfanet.cli.output import (
    Verbs,
    add_verb,
    progress_line,
    table,
)
from tfanet.errors import InputError

__all__ = ["add_verbs"]

UNSAID = argparse.SUPPRESS  # the options of Python have the default


def add_verbs(verbs: Verbs) -> None:
    train = add_verb(verbs, "train", run_train, extra="train")
    add_data_options(train)
    train.add_argument("--output", required=True, help="the folder for checkpoints and the log")
    train.add_argument(
        "--preset", default="tfanet-tiny", help="tfanet-tiny, tfanet-base, or of another family"
    )
    train.add_argument("--init", help="a checkpoint to start from, instead of fresh weights")
    train.add_argument("--split", default="train", help="split to train on (default: train)")
    train.add_argument("--image-size", type=image_size, help="480 or HEIGHTxWIDTH")
    train.add_argument("--text-length", type=int, help="words per sentence, specials included")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="steps of the optimiser")
    length.add_argument("--epochs", type=float, help="times through the split")
    train.add_argument("--stop-after", type=int, help="stop at this step, to resume later")
    train.add_argument("--batch", type=int, help="samples per process and step")
    train.add_argument("--lr", type=float, help="learning rate of the new modules")
    train.add_argument(
        "--rate",
        dest="rates",
        action="append",
        metavar="NAME=FACTOR",
        help="factor on --lr for weights whose names begin so: backbone.=0.1; may be repeated",
    )
    train.add_argument("--weight-decay", type=float, help="of AdamW")
    train.add_argument(
        "--schedule",
        choices=("cosine", "constant-cosine", "polynomial"),
        help="of the learning rate",
    )
    train.add_argument("--warmup", type=int, help="steps of linear warm-up")
    train.add_argument("--final-lr", type=float, default=1e-6, help="learning rate at the end")
    train.add_argument("--clip", type=float, help="largest norm of the gradient; 0: no limit")
    train.add_argument("--ema", type=float, help="decay of averaged weights; 0: none are kept")
    train.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), default="no", help="of autocast"
    )
    train.add_argument("--all-sentences", action="store_true", help="every sentence in each epoch")
    train.add_argument(
        "--seed", type=int, default=0, help="of the weights and of the order of samples"
    )
    train.add_argument("--workers", type=int, default=0, help="processes that load pictures")
    train.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    train.add_argument("--resume", action="store_true", help="go on from the state in --output")

    pretrain = add_verb(verbs, "pretrain", run_pretrain, extra="train")
    add_data_options(pretrain)
    pretrain.add_argument("--output", required=True, help="the folder for model.safetensors")
    pretrain.add_argument("--preset", required=True, help="whose backbone is trained")
    pretrain.add_argument("--split", default="train", help="split to train on (default: train)")
    pretrain.add_argument("--steps", type=int, default=UNSAID, help="steps of the optimiser")
    pretrain.add_argument("--batch", type=int, default=UNSAID, help="pictures per step")
    pretrain.add_argument("--lr", type=float, default=UNSAID, help="largest learning rate")
    pretrain.add_argument(
        "--seed", type=int, default=0, help="of the weights and of the order of pictures"
    )
    pretrain.add_argument("--workers", type=int, default=0, help="processes that load pictures")

    evaluate = add_verb(verbs, "evaluate", run_evaluate, extra="train")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", help="a bundle directory, run without PyTorch")
    what.add_argument("--checkpoint", help="a checkpoint file or preset name, run in PyTorch")
    add_data_options(evaluate)
    evaluate.add_argument("--split", default="val", help="split to evaluate (default: val)")
    evaluate.add_argument("--limit", type=int, help="only the first N samples")


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """What was said to a verb, by the names of its options."""
    return {k: v for k, v in vars(args).items() if k not in ("verb", "run", "package", "json")}


def run_train(args: argparse.Namespace) -> tuple[Any, str]:
    """Train a model, or resume a training; `accelerate launch -m tfanet train` uses many GPUs."""
    from tfanet.training.train import TrainOptions, train

    flags = _flags(args)
    flags["rates"] = dict(map(_rate, args.rates or ()))
    report = train(TrainOptions(**flags), progress=progress_line())
    text = (
        f"{report['checkpoint']}: step {report['step']} of {report['steps']}, "
        f"loss {report['loss']:.3f}, mIoU {report['mIoU']:.1f} on recent training batches"
    )
    return report, text


def _rate(text: str) -> tuple[str, float]:
    """`backbone.=0.1`."""
    name, _, factor = text.rpartition("=")
    try:
        rate = float(factor)
    except ValueError:
        name = ""
    if not name:
        raise InputError(f"--rate is {text!r}: give NAME=FACTOR, such as backbone.=0.1")
    return name, rate


def run_pretrain(args: argparse.Namespace) -> tuple[Any, str]:
    """Teach a backbone the categories of what it sees; `tfanet train --init` goes on from there."""
    from tfanet.training.pretrain import PretrainOptions, pretrain

    report = pretrain(PretrainOptions(**_flags(args)), progress=progress_line())
    text = (
        f"{report['checkpoint']}: {report['steps']} steps, loss {report['loss']:.3f}, "
        f"{report['accuracy']:.1f} % of recent objects' pixels right"
    )
    return report, text


def run_evaluate(args: argparse.Namespace) -> tuple[Any, str]:
    """IoU and other metrics of a bundle or a checkpoint on a split, by its family's protocol."""
    from tfanet.evaluation.evaluate import evaluate
    from tfanet.evaluation.protocols import AT_MODEL_SIZE, AT_PICTURE_SIZE

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
    protocol = report["protocol"]
    own = protocol["table"]
    headings = {
        AT_PICTURE_SIZE: "at the pictures' own sizes:",
        AT_MODEL_SIZE: "at the model's size:",
    }
    headings[own] = f"{protocol['name']} protocol: {protocol['says']}"
    parts = []
    for name in sorted(headings, key=lambda name: name != own):
        rows = [(metric, f"{value:.2f}") for metric, value in report[name].items()]
        parts.append(f"{headings[name]}\n\n{table(('metric', 'percent'), rows)}")
    return report, "\n\n".join(parts)
