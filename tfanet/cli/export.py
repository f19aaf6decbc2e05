"""Verbs that make a bundle and its engines: export, engine, refit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from tfanet.cli.calibrate import add_int8_options, run_quantise
from tfanet.cli.output import (
    Verbs,
    add_verb,
    image_size,
    parity_table,
    progress_line,
    table,
)
from tfanet.errors import InputError

__all__ = ["add_verbs", "engine_table"]

RANGE_SAMPLES = 32
QUANTISED = ("int8", "fp8")  # precisions of a bundle's graphs


def add_verbs(verbs: Verbs) -> None:
    export = add_verb(verbs, "export", run_export)
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="a .safetensors or .pth file made by `tfanet train`")
    source.add_argument("--preset", help="tfanet-tiny (trained) or tfanet-base (random weights)")
    source.add_argument("--bundle", help="an FP32 bundle, to quantise")
    export.add_argument("--output", required=True, help="the bundle directory to write")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    _add_graph_options(export)
    _add_engine_options(export, required=False)
    add_int8_options(export)
    export.set_defaults(
        graph_options=_defaults(_add_graph_options),
        engine_options=_defaults(partial(_add_engine_options, required=False)),
        int8_options=_defaults(add_int8_options),
    )

    engine = add_verb(verbs, "engine", run_engine)
    engine.add_argument("--bundle", required=True)
    engine.add_argument(
        "--overwrite", action="store_true", help="replace an engine of this target and precision"
    )
    _add_engine_options(engine, required=True)

    refit = add_verb(verbs, "refit", run_refit)
    refit.add_argument("--bundle", required=True, help="its graphs give the weights")
    refit.add_argument("--engine", required=True, help="the name of an engine built with --refit")
    refit.add_argument("--engine-from", metavar="BUNDLE", help="where the engine is, if not there")


def _add_graph_options(export: argparse.ArgumentParser) -> None:
    export.add_argument(
        "--function",
        default="sequential",
        help="the scan in standard ops, for runtimes without our library: sequential (best on "
        "plain ONNX Runtime), parallel (for TensorRT-RTX and OpenVINO) or none",
    )
    export.add_argument(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="each 2-D scan as one node, tfanet::SS2D (default), or as its parts",
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


def _add_engine_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--target",
        required=required,
        help="build engine files: tensorrt (on the GPU they are for) or tensorrt-rtx (anywhere)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="of the engine: fp32, fp16 or bf16; or int8 or fp8 (`tfanet export`): of the graphs. "
        "Of a quantised bundle's engine, that of the rest",
    )
    parser.add_argument("--profile", help="batch sizes of the engine: 4, or min,opt,max")
    parser.add_argument(
        "--compute",
        nargs="+",
        default=[],
        metavar="X.Y",
        help="GPUs to compile for (tensorrt-rtx), such as 8.9 12.0; default: 8.0 and later",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="nodes that stay in FP32, by name, such as 'decoder.*'",
    )
    parser.add_argument("--range-data", help="a dataset whose pictures show what would overflow")
    parser.add_argument("--timing-cache", help="a file of tactic timings to use again (tensorrt)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one engine")
    parser.add_argument("--level", type=int, help="0 (fast build) to 5 (most tactics tried)")
    parser.add_argument("--tf32", action="store_true", help="let FP32 products round to TF32")
    parser.add_argument(
        "--hardware", help="same-compute or ampere-plus: more GPUs than this one (tensorrt)"
    )
    parser.add_argument(
        "--plugin",
        help="the scan as a plugin (tensorrt): aot lies in the engine, library needs "
        "libtfanet_trt.so wherever the engine runs; default: standard operators",
    )
    for flag, words in (
        ("version-compatible", "later versions may load it"),
        ("refit", "its weights can be replaced"),
        ("strip-weights", "it holds no weights until it is refitted"),
        ("weight-streaming", "its weights may stay in host memory"),
        ("editable-cache", "the timing cache can be edited (tensorrt)"),
    ):
        parser.add_argument(f"--{flag}", action="store_true", help=words)
    parser.add_argument("--inspect", metavar="DIR", help="write what each layer became (on a GPU)")


def _defaults(add: Callable[[argparse.ArgumentParser], None]) -> dict[str, Any]:
    """The options that a function adds to a parser, with their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    return vars(parser.parse_args([]))


def _engine_builder(args: argparse.Namespace) -> Callable[[Path], Any]:
    """What adds the engine that the options ask for to a bundle; the options are checked now."""
    from tfanet.export.engines.build import EngineOptions, Profile
    from tfanet.export.engines.store import add_engine, check_engine

    options = EngineOptions(**{f.name: getattr(args, f.name) for f in fields(EngineOptions)})
    own = args.precision if args.precision in QUANTISED else "fp32"
    check_engine(args.target, "fp32" if own != "fp32" else args.precision, options, own=own)
    profile = Profile.parse(args.profile) if args.profile else None
    samples: list[tuple[Path, str]] = []
    if args.range_data:
        from tfanet.data import ReferDataset

        dataset = ReferDataset(args.range_data, split="val")
        step = max(1, len(dataset) // RANGE_SAMPLES)
        samples = [(s.image_path, s.sentence) for s in dataset[::step][:RANGE_SAMPLES]]
    return partial(
        add_engine,
        target=args.target,
        precision=args.precision,
        profile=profile,
        options=options,
        keep=args.keep,
        samples=samples,
        overwrite=args.overwrite,
        progress=progress_line(),
    )


def run_engine(args: argparse.Namespace) -> tuple[Any, str]:
    """Build engine files of a bundle's graphs and add them to the bundle."""
    bundle = _engine_builder(args)(Path(args.bundle))
    record = bundle.manifest.engines[-1]
    return record, f"{bundle.path}\n\n{engine_table(bundle.manifest.to_dict())}"


def run_refit(args: argparse.Namespace) -> tuple[Any, str]:
    """Give an engine the weights of a bundle's graphs, on its GPU, without building it again."""
    from tfanet.export.engines.refit import refit

    bundle = refit(args.bundle, args.engine, engine_from=args.engine_from)
    return bundle.manifest.engines[-1], f"{bundle.path}: engine {args.engine} has its weights"


def engine_table(manifest: dict[str, Any]) -> str:
    """A bundle's engines, one row per file."""
    rows = [
        (
            file,
            f"{manifest['files'][file]['size'] / 1e6:.1f} MB",
            f"{engine['library']} {engine['version']}",
            "{min}-{max}".format(**engine["profile"]),
            engine["build"][graph]["layers"],
            f"{engine['build'][graph]['seconds']:.0f} s",
        )
        for engine in manifest["engines"]
        for graph, file in sorted(engine["files"].items())
    ]
    return table(("engine", "size", "library", "batch", "layers", "built in"), rows)


def run_export(args: argparse.Namespace) -> tuple[Any, str]:
    """Export a checkpoint or preset to a bundle, and prove that it computes what PyTorch does."""
    _check_export(args)
    finish = _engine_builder(args) if args.target else None
    if args.precision in QUANTISED:
        result, text = run_quantise(args, finish)
        if finish is not None:
            text = f"{text}\n\n{engine_table(result['manifest'])}"
        return result, text
    from tfanet.export import export_bundle

    bundle = export_bundle(
        args.checkpoint or args.preset,
        args.output,
        function=args.function,
        fuse=args.fuse,
        image_size=args.image_size,
        dynamic_batch=args.dynamic_batch,
        opset=args.opset,
        overwrite=args.overwrite,
        finish=finish,
        progress=progress_line(),
    )
    manifest = bundle.manifest.to_dict()
    sizes = [(name, f"{facts['size'] / 1e6:.1f} MB") for name, facts in manifest["files"].items()]
    text = (
        f"{bundle.path}\n\n{table(('file', 'size'), sizes)}\n\n{parity_table(manifest['parity'])}"
    )
    return manifest, text


def _check_export(args: argparse.Namespace) -> None:
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
        _refuse_unused(args, args.int8_options, "belongs to --precision int8 or fp8")
    if args.target is None:
        if not quantised and args.precision != "fp32":
            raise InputError(
                f"precision {args.precision} is an engine's: name a --target, tensorrt or "
                "tensorrt-rtx, or choose int8 or fp8, which are the graphs'"
            )
        _refuse_unused(args, args.engine_options, "belongs to an engine (--target)")
    if quantised and args.target and args.int8_target == "onnxruntime":
        raise InputError(
            "--int8-target onnxruntime writes unsigned activations, which an engine does not take: "
            f"leave it out, or leave --target {args.target} out"
        )
    if args.bundle is not None:
        _refuse_unused(args, args.graph_options, "belongs to an export from PyTorch")


def _refuse_unused(args: argparse.Namespace, defaults: dict[str, Any], why: str) -> None:
    for name, default in defaults.items():
        if name not in ("target", "precision") and getattr(args, name) != default:
            raise InputError(f"--{name.replace('_', '-')} {why}: leave it out, or add that")
