"""The verb that runs a bundle on pictures and videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.cli.output import Verbs, add_verb
from tfanet.cli.progress import progress_line
from tfanet.errors import InputError

if TYPE_CHECKING:  # what these import is needed by this verb alone
    from tfanet.cli.sources import Source

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    predict = add_verb(
        verbs,
        "predict",
        run_predict,
        extra=None,
        examples=(
            "tfanet predict --bundle tfanet-tiny --image photo.jpg --text 'the red circle' "
            "--output mask.png",
            "tfanet predict --bundle bundle --image 'photos/*.jpg' --text 'the dog' "
            "--text 'the cat' --output masks --results results.json",
            "tfanet predict --bundle bundle --image clip.mp4 --text 'the man' --overlay frames",
        ),
    )
    predict.add_argument(
        "--bundle", required=True, metavar="DIR", help="the bundle directory, or a shipped name"
    )
    predict.add_argument(
        "--digest",
        metavar="SHA256",
        help="refuse every bundle but the one with this digest (default: any)",
    )
    predict.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help="pictures, folders of them, patterns such as 'a/*.jpg', and videos (default: those of "
        "--lines)",
    )
    predict.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="what to segment, in words; may be repeated (default: those of --lines)",
    )
    predict.add_argument(
        "--lines",
        metavar="FILE",
        help='lines of JSON, {"image": PATH, "text": SENTENCE} (default: --image and --text)',
    )
    predict.add_argument(
        "--output",
        metavar="FILE",
        help="the PNG to write the mask into, black and white; for several masks, a folder "
        "(default: they are not written)",
    )
    predict.add_argument(
        "--overlay",
        metavar="FILE",
        help="also write the picture with the mask on it; for several, a folder (default: it is "
        "not written)",
    )
    predict.add_argument(
        "--results",
        metavar="FILE",
        help="write COCO's results, with masks as RLE, for pycocotools (default: not written)",
    )
    predict.add_argument(
        "--labels",
        metavar="FILE",
        help="write a COCO dataset of what was found, for supervision and FiftyOne (default: not "
        "written)",
    )
    predict.add_argument(
        "--threshold",
        type=float,
        metavar="SHARE",
        help="how likely a pixel is to be meant at least, 0 to 1 (default: the bundle's own)",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace files that are there")
    predict.add_argument(
        "--threads",
        type=int,
        metavar="THREADS",
        help="of a run on the CPU (default: all cores that it may use)",
    )
    predict.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or the name of one of the "
        "bundle's engines (default: the first backend that can run here)",
    )
    predict.add_argument(
        "--host-code",
        nargs="+",
        default=[],
        metavar="ENGINE",
        help="engines that may run the CPU code that they carry: name only those that you built "
        "(default: none)",
    )


def run_predict(args: argparse.Namespace) -> tuple[Any, str]:
    """Segment what sentences name in pictures and videos, with a bundle; needs no PyTorch.

    A picture that cannot be used is told and left out, and the exit code is then 1.
    """
    from tfanet.cli.places import Places
    from tfanet.cli.segment import Work
    from tfanet.runtime import Predictor
    from tfanet.runtime.shipped import shipped_bundle, shipped_names

    sources = _sources(args)
    single = len(sources) == 1 and _is_one(args, sources[0])
    given = {name: getattr(args, name) for name in ("output", "overlay", "results", "labels")}
    places = Places.check(given, sources, single=single, overwrite=args.overwrite)
    shipped = args.bundle in shipped_names() and not Path(args.bundle).is_dir()
    with Predictor(
        shipped_bundle(args.bundle) if shipped else args.bundle,
        digest=args.digest,
        threads=args.threads,
        backend=args.backend,
        host_code=args.host_code,
    ) as predictor:
        work = Work(predictor, places, args.threshold)
        if single:
            return work.one(sources[0])
        return work.several(sources, progress_line())


def _sources(args: argparse.Namespace) -> list[Source]:
    from tfanet.cli.sources import from_lines, from_paths

    if not (args.output or args.overlay or args.results or args.labels):
        raise InputError(
            "nothing would be written: give --output, --overlay, --results or --labels"
        )
    if args.lines is not None:
        for option in ("image", "text"):
            if getattr(args, option):
                raise InputError(f"--{option} is what each line of --lines says: give one of them")
        return from_lines(args.lines)
    if not args.image or not args.text:
        raise InputError("give --image and --text, or --lines: what to segment in what")
    return from_paths(args.image, args.text)


def _is_one(args: argparse.Namespace, source: Source) -> bool:
    """One picture and one sentence: what is written are files by name, no folders."""
    if args.lines is not None or len(source.texts) > 1 or source.is_video:
        return False
    return [Path(image) for image in args.image] == [source.path]  # and no folder or pattern
