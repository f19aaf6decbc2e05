"""The verb of the first minute: the shipped model on the shipped picture, or on one's own."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from tfanet.cli.output import Verbs, add_verb, table

__all__ = ["add_verbs"]

MODEL, TEXT, OTHER_TEXT = "tfanet-tiny", "the circle on the right", "the blue star"


def add_verbs(verbs: Verbs) -> None:
    demo = add_verb(
        verbs,
        "demo",
        run_demo,
        extra=None,
        examples=(
            "tfanet demo",
            f"tfanet demo --text '{OTHER_TEXT}' --overwrite",
            "tfanet demo --image photo.jpg --text 'the man on the left' --output result",
        ),
    )
    demo.add_argument(
        "--text",
        default=TEXT,
        metavar="TEXT",
        help=f"what to segment, in words (default: '{TEXT}')",
    )
    demo.add_argument(
        "--image",
        metavar="FILE",
        help="a picture of yours (default: the shipped one, six shapes)",
    )
    demo.add_argument(
        "--output",
        default="tfanet-demo",
        metavar="DIR",
        help="the folder for mask.png and overlay.png",
    )
    demo.add_argument("--overwrite", action="store_true", help="replace those that are there")


def run_demo(args: argparse.Namespace) -> tuple[Any, str]:
    """Segment a picture with the model that comes with tfanet; needs nothing else."""
    from tfanet.runtime import Predictor, load_image
    from tfanet.runtime.bundle.write import check_folder, check_output
    from tfanet.runtime.overlay import save_mask, save_overlay
    from tfanet.runtime.shipped import shipped_bundle, shipped_picture

    check_folder(args.output)
    folder = Path(args.output)
    mask, overlay = folder / "mask.png", folder / "overlay.png"
    if folder.is_dir():
        for path in (mask, overlay):
            check_output(path, overwrite=args.overwrite)
    image = load_image(args.image or shipped_picture())

    started = time.perf_counter()
    predictor = Predictor(shipped_bundle(MODEL), cache_size=0)  # sentences are timed, too
    predictor(image, args.text)  # the first run also allocates
    loaded = time.perf_counter()
    prediction = predictor(image, args.text)
    folder.mkdir(parents=True, exist_ok=True)
    save_mask(prediction.mask, mask)
    save_overlay(image, prediction.mask, overlay)
    result = {
        "text": args.text,
        "image": str(args.image or shipped_picture()),
        "mask": str(mask),
        "overlay": str(overlay),
        "pixels": int(prediction.mask.sum()),
        "share": float(prediction.mask.mean()),
        "score": float(prediction.score),
        "start_ms": 1e3 * (loaded - started),
        "timings_ms": prediction.timings,
        "backend": predictor.info(),
    }
    predictor.close()
    return result, _report(args, result)


def _report(args: argparse.Namespace, result: dict[str, Any]) -> str:
    timings = {"start, with a first run": result["start_ms"], **result["timings_ms"]}
    backend = result["backend"]
    again = "tfanet demo --overwrite"
    if args.output != "tfanet-demo":
        again += f" --output {shlex.quote(args.output)}"
    lines = [
        f"'{args.text}': {result['pixels']:,} pixels ({result['share']:.1%} of the picture), "
        f"score {result['score']:.2f}",
        f"Mask:    {result['mask']}",
        f"Overlay: {result['overlay']}",
        "",
        table(("step", "ms"), [(name, f"{value:.1f}") for name, value in timings.items()]),
        "",
        f"{backend['model']} on {backend['backend']}, the scan by {_SCANS[backend['scan']]}",
        "",
        "Try next:",
        f'  {again} --text "{OTHER_TEXT}"',
        f'  {again} --image PICTURE --text "..."',
        f"  tfanet bench --bundle {shlex.quote(backend['bundle'])}",
        "  pip install 'tfanet[export]' && tfanet export --help    # for models of your own",
    ]
    if args.image:
        lines[2:2] = [
            f"{backend['model']} has seen nothing but drawn shapes: of photographs it understands "
            "little."
        ]
    return "\n".join(lines)


_SCANS = {
    "operator library": "tfanet's kernel",
    "function body": "standard operators: no kernel is installed, which is several times slower",
}
