"""Verbs that build a bundle's engines: engine, refit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from tfanet.cli.options import QUANTISED, OptionGroup
from tfanet.cli.output import Verbs, add_verb, table
from tfanet.cli.progress import progress_line

__all__ = ["ENGINE", "add_target_options", "add_verbs", "engine_builder", "engine_table"]

RANGE_SAMPLES = 32


def add_verbs(verbs: Verbs) -> None:
    engine = add_verb(
        verbs,
        "engine",
        run_engine,
        examples=(
            "tfanet engine --bundle bundle --target tensorrt --precision fp16",
            "tfanet engine --bundle bundle --target tensorrt-rtx --compute 8.9 12.0 --profile 4",
        ),
    )
    engine.add_argument(
        "--bundle", required=True, metavar="DIR", help="the bundle that gets the engine"
    )
    engine.add_argument(
        "--overwrite", action="store_true", help="replace an engine of this target and precision"
    )
    add_target_options(engine, required=True)
    ENGINE.add(engine)

    refit = add_verb(
        verbs,
        "refit",
        run_refit,
        examples=(
            "tfanet refit --bundle bundle --engine tensorrt-fp16 --overwrite",
            "tfanet refit --bundle trained-further --engine tensorrt-fp16 --engine-from bundle",
        ),
    )
    refit.add_argument(
        "--bundle",
        required=True,
        metavar="DIR",
        help="the bundle whose graphs give the weights; it gets the engine",
    )
    refit.add_argument(
        "--engine", required=True, metavar="NAME", help="of an engine built with --refit"
    )
    refit.add_argument(
        "--engine-from",
        metavar="DIR",
        help="the bundle that holds the engine (default: that of --bundle)",
    )
    refit.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the engine of this name, if it holds weights",
    )


def add_target_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options that say which engine is built."""
    parser.add_argument(
        "--target",
        required=required,
        metavar="NAME",
        help="build engine files: tensorrt (on the GPU that they are for) or tensorrt-rtx "
        f"(anywhere){'' if required else ' (default: none are built)'}",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="of the engine: fp32, fp16 or bf16, which in a quantised bundle is that of all that "
        "is not quantised. `tfanet export` also takes int8 and fp8, which are the graphs'",
    )


def _add_engine_options(parser: Any) -> None:
    parser.add_argument(
        "--profile",
        metavar="PICTURES",
        help="batch sizes of the engine: 4, or min,opt,max (default: 1, or 1,1,4 where the batch "
        "of the bundle is open)",
    )
    parser.add_argument(
        "--compute",
        nargs="+",
        default=[],
        metavar="X.Y",
        help="GPUs to compile for (tensorrt-rtx), such as 8.9 12.0 (default: 8.0 and later)",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="nodes that stay in FP32 in an engine of fp16 or bf16, by name, such as 'decoder.*' "
        "(default: what would overflow)",
    )
    parser.add_argument(
        "--range-data",
        metavar="DATA",
        help="a dataset whose pictures show what would overflow in an engine of fp16 or bf16 "
        "(default: the inputs of the parity check show it)",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        help="a file that keeps tactic timings from build to build (tensorrt; default: none is "
        "kept)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="that one engine may take",
    )
    parser.add_argument(
        "--level",
        type=int,
        metavar="N",
        help="0 (fast build) to 5 (most tactics tried) (default: the library's own)",
    )
    parser.add_argument("--tf32", action="store_true", help="let FP32 products round to TF32")
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help="let it run on more GPUs than this one (tensorrt): same-compute or ampere-plus "
        "(default: this GPU)",
    )
    parser.add_argument(
        "--plugin",
        metavar="FORM",
        help="the scan as a plugin (tensorrt): aot lies in the engine, library needs "
        "libtfanet_trt.so wherever the engine runs (default: standard operators)",
    )
    for flag, words in (
        ("version-compatible", "later versions may load it"),
        ("refit", "its weights can be replaced"),
        ("strip-weights", "it holds no weights until it is refitted"),
        ("weight-streaming", "its weights may stay in host memory"),
        ("editable-cache", "the timing cache can be edited (tensorrt)"),
    ):
        parser.add_argument(f"--{flag}", action="store_true", help=words)
    parser.add_argument(
        "--inspect",
        metavar="DIR",
        help="write there what each layer became (on a GPU; default: nothing is written)",
    )


ENGINE = OptionGroup(_add_engine_options)


def engine_builder(args: argparse.Namespace) -> Callable[..., Any]:
    """What adds the engine that the options ask for to a bundle; the options are checked now."""
    from tfanet.export.engines.build import EngineOptions, Profile
    from tfanet.export.engines.store import add_engine, check_engine

    options = EngineOptions(**{f.name: getattr(args, f.name) for f in fields(EngineOptions)})
    quantised = args.precision in QUANTISED
    check_engine(
        args.target,
        "fp32" if quantised else args.precision,
        options,
        own=args.precision if quantised else "fp32",
        keep=args.keep,
        measured=args.range_data is not None,
        overwrite=args.overwrite,
    )
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
    )


def run_engine(args: argparse.Namespace) -> tuple[Any, str]:
    """Build engine files of a bundle's graphs and add them to the bundle."""
    bundle = engine_builder(args)(Path(args.bundle), progress=progress_line())
    record = bundle.manifest.engines[-1]
    return record, f"{bundle.path}\n\n{engine_table(bundle.manifest.to_dict())}"


def run_refit(args: argparse.Namespace) -> tuple[Any, str]:
    """Give an engine the weights of a bundle's graphs, on its GPU, without building it again."""
    from tfanet.export.engines.refit import refit

    bundle = refit(args.bundle, args.engine, engine_from=args.engine_from, overwrite=args.overwrite)
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
