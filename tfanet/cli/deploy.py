"""Verbs that make and run a bundle: export, predict, parity."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfanet.cli.output import Verbs, add_verb, image_size, progress_line, table
from tfanet.errors import InputError

__all__ = ["add_verbs", "parity_table"]


def add_verbs(verbs: Verbs) -> None:
    export = add_verb(verbs, "export", run_export)
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="a .safetensors or .pth file made by `tfanet train`")
    source.add_argument("--preset", help="tfanet-tiny (trained) or tfanet-base (random weights)")
    export.add_argument("--output", required=True, help="the bundle directory to write")
    export.add_argument(
        "--function",
        default="sequential",
        help="the scan in standard ops, for runtimes without our library: sequential (best on "
        "plain ONNX Runtime), parallel (for TensorRT-RTX and OpenVINO) or none",
    )
    export.add_argument(
        "--image-size", type=image_size, help="480 or HEIGHTxWIDTH, multiples of 32"
    )
    export.add_argument(
        "--dynamic-batch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave the batch open (default) or fix it at 1",
    )
    export.add_argument("--opset", type=int, default=20, help="ONNX opset, 18 to 23")

    predict = add_verb(verbs, "predict", run_predict, extra="runtime")
    predict.add_argument("--bundle", required=True)
    predict.add_argument("--image", required=True)
    predict.add_argument("--text", required=True, help="what to segment, in words")
    predict.add_argument("--output", required=True, help="the mask, written as a black/white PNG")
    predict.add_argument("--overlay", help="also write the picture with the mask on it")
    predict.add_argument("--threads", type=int, help="threads of the session (default: all cores)")

    parity = add_verb(verbs, "parity", run_parity)
    parity.add_argument("--bundle", required=True)
    parity.add_argument(
        "--checkpoint",
        help="the weights to compare with, if the bundle's preset does not hold them",
    )


def run_export(args: argparse.Namespace) -> tuple[Any, str]:
    """Export a checkpoint or preset to a bundle, and prove that it computes what PyTorch does."""
    from tfanet.export import export_bundle

    bundle = export_bundle(
        args.checkpoint or args.preset,
        args.output,
        function=args.function,
        image_size=args.image_size,
        dynamic_batch=args.dynamic_batch,
        opset=args.opset,
        progress=progress_line(),
    )
    manifest = bundle.manifest.to_dict()
    sizes = [(name, f"{facts['size'] / 1e6:.1f} MB") for name, facts in manifest["files"].items()]
    text = (
        f"{bundle.path}\n\n{table(('file', 'size'), sizes)}\n\n{parity_table(manifest['parity'])}"
    )
    return manifest, text


def run_predict(args: argparse.Namespace) -> tuple[Any, str]:
    """Segment what a sentence names in a picture, with a bundle; needs no PyTorch."""
    from tfanet.runtime import Predictor, load_image
    from tfanet.runtime.overlay import save_mask, save_overlay

    for path in filter(None, (args.output, args.overlay)):
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"cannot write {path}: its directory does not exist; create it first")
    image = load_image(args.image)
    prediction = Predictor(args.bundle, threads=args.threads)(image, args.text)
    save_mask(prediction.mask, args.output)
    if args.overlay:
        save_overlay(image, prediction.mask, args.overlay)
    result = {
        "mask": args.output,
        "overlay": args.overlay,
        "pixels": int(prediction.mask.sum()),
        "share": float(prediction.mask.mean()),
        "score": float(prediction.score),
        "timings_ms": prediction.timings,
    }
    timings = ", ".join(f"{name} {value:.1f} ms" for name, value in prediction.timings.items())
    text = (
        f"{args.output}: {result['pixels']} pixels ({result['share']:.1%} of the picture), "
        f"score {result['score']:.2f}\n{timings}"
    )
    return result, text


def run_parity(args: argparse.Namespace) -> tuple[Any, str]:
    """Compare a bundle with PyTorch on every backend that can run here."""
    from tfanet.export.parity import check_bundle

    report = check_bundle(args.bundle, checkpoint=args.checkpoint, progress=progress_line())
    return report, parity_table(report)


def parity_table(report: dict[str, Any]) -> str:
    """The parity report as a table, one row per backend and case."""
    rows = [
        (case["name"], case["backend"], f"{case['max_rel_error']:.1e}", case["pixels_changed"])
        for case in report["cases"]
    ]
    return table(("case", "backend", "largest relative error", "pixels changed"), rows)
