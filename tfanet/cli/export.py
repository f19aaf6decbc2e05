"""`tfanet export`: a checkpoint or preset to a bundle, quantised and with an engine if asked."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tfanet.cli.engine import ENGINE, add_target_options, engine_builder, engine_table
from tfanet.cli.options import GRAPH, QUANTISED, OptionGroup, image_size
from tfanet.cli.output import Verbs, add_verb, parity_table, table
from tfanet.cli.progress import progress_line
from tfanet.cli.quantise import QUANTISATION, Quantisation
from tfanet.cli.web import add_page_option, page_text, page_writer
from tfanet.errors import InputError
from tfanet.progress import Stages

__all__ = ["add_verbs"]


def _add_bundle_options(parser: Any) -> None:
    GRAPH.add(parser)
    parser.add_argument(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each 2-D scan as one node, tfanet::SS2D (default), or as its parts",
    )
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="480 or HEIGHTxWIDTH, multiples of 32 (default: the model's)",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="of a model that tells objects apart, give each one's mask too",
    )
    parser.add_argument(
        "--vocab",
        metavar="FILE",
        help="the vocab.txt of the model's BERT (default: that of bert-base-uncased)",
    )


FROM_PYTORCH = OptionGroup(_add_bundle_options)


def add_verbs(verbs: Verbs) -> None:
    export = add_verb(
        verbs,
        "export",
        run_export,
        examples=(
            "tfanet export --preset tfanet-tiny --output bundle",
            "tfanet export --preset tfanet-tiny --output bundle --web page",
            "tfanet export --checkpoint trained/model.safetensors --output bundle --overwrite",
            "tfanet export --bundle bundle --precision int8 --data shapes --output bundle-int8",
            "tfanet export --preset tfanet-tiny --target tensorrt --precision fp16 --output bundle",
        ),
    )
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a .safetensors or .pth file made by `tfanet train`",
    )
    source.add_argument(
        "--preset", metavar="NAME", help="such as tfanet-tiny (trained) or tfanet-base (not)"
    )
    source.add_argument("--bundle", metavar="DIR", help="an FP32 bundle, to quantise")
    export.add_argument(
        "--output", required=True, metavar="DIR", help="the bundle directory to write"
    )
    export.add_argument("--overwrite", action="store_true", help="replace what is there")
    page = export.add_argument_group("a page in the browser")
    page.add_argument(
        "--web",
        metavar="DIR",
        help="write a static page there that runs the bundle (default: none)",
    )
    add_page_option(page)
    add_target_options(export, required=False)
    FROM_PYTORCH.add(export.add_argument_group("graphs (--checkpoint, --preset)"))
    ENGINE.add(export.add_argument_group("engine (--target)"))
    QUANTISATION.add(export.add_argument_group("INT8 and FP8 (--precision int8, --precision fp8)"))


def run_export(args: argparse.Namespace) -> tuple[Any, str]:
    """Export a checkpoint or preset to a bundle, and prove that it computes what PyTorch does."""
    _check(args)
    write_page = page_writer(args, args.web) if args.web is not None else None
    result, text = _export(args)
    if write_page is None:
        return result, text
    page = write_page(args.output)
    return {**result, "page": page}, f"{text}\n\n{page_text(page)}"


def _export(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    build = engine_builder(args) if args.target else None
    stages = Stages(progress_line())

    def add_engine(work: Path) -> None:
        if build is not None:
            build(work, progress=stages.next(""))

    finish = None if build is None else add_engine
    if args.precision in QUANTISED:
        quantisation = Quantisation.of(args)
        with tempfile.TemporaryDirectory() as folder:
            fp32 = args.bundle
            if fp32 is None:
                exporting = stages.next("", 0.2)
                fp32 = _export_fp32(args, Path(folder) / "fp32", progress=exporting)
            result, text = quantisation.run(fp32, finish, stages)
        stages.end()
        if build is not None:
            text = f"{text}\n\n{engine_table(result['manifest'])}"
        return result, text
    exporting = stages.next("", 1.0 if build is None else 0.4)
    bundle = _export_fp32(
        args, args.output, overwrite=args.overwrite, finish=finish, progress=exporting
    )
    stages.end()
    manifest = bundle.manifest.to_dict()
    sizes = [(name, f"{facts['size'] / 1e6:.1f} MB") for name, facts in manifest["files"].items()]
    text = (
        f"{bundle.path}\n\n{table(('file', 'size'), sizes)}\n\n{parity_table(manifest['parity'])}"
    )
    return manifest, text


def _export_fp32(args: argparse.Namespace, output: str | Path, **more: Any) -> Any:
    """Every export from PyTorch on the command line, with all options that it has."""
    from tfanet.export import export_bundle

    source = args.checkpoint or args.preset
    return export_bundle(source, output, **FROM_PYTORCH.values(args), **more)


def _check(args: argparse.Namespace) -> None:
    """What can be known before minutes of work: the output, and options that would do nothing."""
    from tfanet.runtime.bundle.write import check_target

    check_target(args.output, overwrite=args.overwrite)
    quantised = args.precision in QUANTISED
    if not quantised:
        if args.bundle is not None:
            raise InputError(
                "--bundle makes a quantised bundle: add --precision int8 or fp8, or give "
                "--checkpoint or --preset"
            )
        QUANTISATION.refuse(args, "belongs to --precision int8 or fp8: leave it out, or add that")
    if args.web is None and args.onnxruntime_web is not None:
        raise InputError("--onnxruntime-web belongs to a page: add --web DIR, or leave it out")
    if args.target is None:
        if not quantised and args.precision != "fp32":
            raise InputError(
                f"precision {args.precision} is an engine's: name a --target, tensorrt or "
                "tensorrt-rtx, or choose int8 or fp8, which are the graphs'"
            )
        ENGINE.refuse(args, "belongs to an engine (--target): leave it out, or add that")
    if quantised and args.target and args.int8_target == "onnxruntime":
        raise InputError(
            "--int8-target onnxruntime writes unsigned activations, which an engine does not take: "
            f"leave it out, or leave --target {args.target} out"
        )
    if args.bundle is not None:
        FROM_PYTORCH.refuse(
            args,
            "belongs to an export from PyTorch: leave it out, or give --checkpoint or --preset in "
            "place of --bundle",
        )
