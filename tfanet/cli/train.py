"""Verbs that need data: pretrain, train, evaluate."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.options import add_data_options, image_size
from tfanet.cli.output import SHARED, Verbs, add_verb, table
from tfanet.cli.progress import progress_line
from tfanet.errors import InputError
from tfanet.training.options import PARTS, PretrainOptions

__all__ = ["add_verbs"]

RECIPE = "(default: the preset's recipe)"


def add_verbs(verbs: Verbs) -> None:
    train = add_verb(
        verbs,
        "train",
        run_train,
        extra="train",
        examples=(
            "tfanet train --data shapes --output trained",
            "tfanet train --data shapes --output trained --resume",
            "tfanet train --data shapes --output trained --overwrite --log-with tensorboard",
            "tfanet train --data coco --dataset refcoco --preset tfanet-base --precision bf16 "
            "--output trained",
        ),
    )
    add_data_options(train)
    train.add_argument(
        "--output", required=True, metavar="DIR", help="the folder for checkpoints and the log"
    )
    train.add_argument(
        "--preset",
        default="tfanet-tiny",
        metavar="NAME",
        help="tfanet-tiny, tfanet-base, or of another family",
    )
    train.add_argument(
        "--init", metavar="FILE", help="a checkpoint to start from (default: fresh weights)"
    )
    train.add_argument("--split", default="train", metavar="NAME", help="split to train on")
    train.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="480 or HEIGHTxWIDTH (default: the preset's)",
    )
    train.add_argument(
        "--text-length",
        type=int,
        metavar="WORDS",
        help="of a sentence, specials included (default: the preset's)",
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="STEPS", help=f"of the optimiser {RECIPE}")
    length.add_argument("--epochs", type=float, metavar="TIMES", help=f"through the split {RECIPE}")
    train.add_argument(
        "--stop-after",
        type=int,
        metavar="STEPS",
        help="stop early, to resume later (default: at the end)",
    )
    train.add_argument(
        "--batch", type=int, metavar="SAMPLES", help=f"per process and step {RECIPE}"
    )
    train.add_argument(
        "--lr", type=float, metavar="RATE", help=f"learning rate of the new modules {RECIPE}"
    )
    train.add_argument(
        "--rate",
        dest="rates",
        action="append",
        metavar="NAME=FACTOR",
        help=f"on --lr for weights whose names begin so: backbone.=0.1; may be repeated {RECIPE}",
    )
    train.add_argument("--weight-decay", type=float, metavar="FACTOR", help=f"of AdamW {RECIPE}")
    train.add_argument(
        "--schedule",
        metavar="NAME",
        help=f"of the learning rate: cosine, constant-cosine or polynomial {RECIPE}",
    )
    train.add_argument("--warmup", type=int, metavar="STEPS", help=f"of linear warm-up {RECIPE}")
    train.add_argument(
        "--final-lr", type=float, default=1e-6, metavar="RATE", help="learning rate at the end"
    )
    train.add_argument(
        "--clip",
        type=float,
        metavar="NORM",
        help=f"largest one of the gradient; 0: no limit {RECIPE}",
    )
    train.add_argument(
        "--ema",
        type=float,
        metavar="FACTOR",
        help=f"decay of averaged weights; 0: none are kept {RECIPE}",
    )
    train.add_argument(
        "--precision", default="fp32", help="of the arithmetic: fp32, or bf16 or fp16 by autocast"
    )
    train.add_argument("--all-sentences", action="store_true", help="every sentence in each epoch")
    train.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the weights and the order of samples"
    )
    train.add_argument(
        "--workers", type=int, default=0, metavar="PROCESSES", help="that load pictures"
    )
    train.add_argument(
        "--save-every", type=int, default=500, metavar="STEPS", help="between checkpoints"
    )
    train.add_argument("--resume", action="store_true", help="go on from the state in --output")
    train.add_argument(
        "--overwrite", action="store_true", help="replace the training that is in --output"
    )
    train.add_argument(
        "--log-with",
        metavar="NAME",
        help="also log to tensorboard (files in --output) or wandb (default: to log.jsonl alone)",
    )

    pretrain = add_verb(
        verbs,
        "pretrain",
        run_pretrain,
        extra="train",
        examples=("tfanet pretrain --data shapes --preset crossvlt-tiny --output pretrained",),
    )
    add_data_options(pretrain)
    pretrain.add_argument(
        "--output", required=True, metavar="DIR", help="the folder for model.safetensors"
    )
    pretrain.add_argument(
        "--overwrite", action="store_true", help="replace model.safetensors that is there"
    )
    pretrain.add_argument("--preset", required=True, metavar="NAME", help="whose part is trained")
    pretrain.add_argument(
        "--part",
        choices=PARTS,
        default=PretrainOptions.part,
        help="the backbone, by pixels, or then InstAlign's queries, by whole objects",
    )
    pretrain.add_argument(
        "--init", metavar="FILE", help="the checkpoint to start from (default: fresh weights)"
    )
    pretrain.add_argument("--split", default="train", metavar="NAME", help="split to train on")
    pretrain.add_argument(
        "--steps",
        type=int,
        default=PretrainOptions.steps,
        metavar="STEPS",
        help="of the optimiser",
    )
    pretrain.add_argument(
        "--batch",
        type=int,
        default=PretrainOptions.batch,
        metavar="PICTURES",
        help="per step",
    )
    pretrain.add_argument(
        "--lr",
        type=float,
        default=PretrainOptions.lr,
        metavar="RATE",
        help="largest learning rate",
    )
    pretrain.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the weights and the order of pictures"
    )
    pretrain.add_argument(
        "--workers", type=int, default=0, metavar="PROCESSES", help="that load pictures"
    )

    evaluate = add_verb(
        verbs,
        "evaluate",
        run_evaluate,
        extra="train",
        examples=(
            "tfanet evaluate --bundle bundle --data shapes",
            "tfanet evaluate --checkpoint tfanet-tiny --data shapes --split testA --limit 50",
        ),
    )
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", metavar="DIR", help="a bundle directory, run without PyTorch")
    what.add_argument(
        "--checkpoint", metavar="FILE", help="a checkpoint file or preset name, run in PyTorch"
    )
    add_data_options(evaluate)
    evaluate.add_argument("--split", default="val", metavar="NAME", help="split to evaluate")
    evaluate.add_argument(
        "--limit", type=int, metavar="SAMPLES", help="take the first ones only (default: all)"
    )


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """What was said to a verb, by the names of its options."""
    return {name: value for name, value in vars(args).items() if name not in SHARED}


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
    """Teach a backbone, or queries, the objects that are seen; go on with `tfanet train --init`."""
    from tfanet.training.pretrain import pretrain

    options = PretrainOptions(**_flags(args))
    report = pretrain(options, progress=progress_line())
    what = "objects" if options.part == "queries" else "objects' pixels"
    text = (
        f"{report['checkpoint']}: {report['steps']} steps, loss {report['loss']:.3f}, "
        f"{report['accuracy']:.1f} % of recent {what} right"
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
