"""Verbs that make and run a bundle: export, predict, parity."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from tfanet.cli.calibrate import add_int8_options, guard_options, run_quantise
from tfanet.cli.output import Verbs, add_data_options, add_verb, image_size, progress_line, table
from tfanet.errors import InputError

__all__ = ["add_verbs", "engine_table", "parity_table"]

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

    predict = add_verb(verbs, "predict", run_predict, extra="runtime")
    predict.add_argument("--bundle", required=True)
    predict.add_argument("--digest", help="of the bundle that is meant: another one is refused")
    predict.add_argument("--image", required=True)
    predict.add_argument("--text", required=True, help="what to segment, in words")
    predict.add_argument("--output", required=True, help="the mask, written as a black/white PNG")
    predict.add_argument("--overlay", help="also write the picture with the mask on it")
    predict.add_argument("--threads", type=int, help="threads (default: all cores that it may use)")
    predict.add_argument(
        "--backend",
        default="auto",
        help="tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu, or the name of one of the "
        "bundle's engines; default: the first of them that can run here",
    )
    predict.add_argument(
        "--host-code",
        nargs="+",
        default=[],
        metavar="ENGINE",
        help="engines that may run the CPU code which they carry; only for those that you built",
    )

    bench = add_verb(verbs, "bench", run_bench, extra="runtime")
    bench.add_argument("--bundle", required=True)
    bench.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that can run")
    bench.add_argument("--batches", nargs="+", type=int, default=[1], metavar="N")
    bench.add_argument("--runs", type=int, default=30, help="timed calls of each backend")
    bench.add_argument("--warmup", type=int, default=3, help="calls before those")
    bench.add_argument("--threads", type=int, help="of a run on the CPU (default: as predict)")
    bench.add_argument(
        "--checkpoint", help="the weights, if the bundle's preset does not hold them"
    )

    parity = add_verb(verbs, "parity", run_parity)
    parity.add_argument("--bundle", required=True)
    parity.add_argument(
        "--checkpoint",
        help="the weights to compare with, if the bundle's preset does not hold them",
    )
    add_data_options(parity, required=False)
    parity.add_argument("--report", metavar="DIR", help="write parity.json and report.html there")
    parity.add_argument(
        "--picture",
        nargs=2,
        action="append",
        metavar=("FILE", "TEXT"),
        help="for the report; default: three pictures of the synthetic shapes",
    )


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
    from tfanet.export.bundle_engine import add_engine, check_engine
    from tfanet.export.engine import Options, Profile

    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
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
    from tfanet.export.refit import refit

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
    from tfanet.export.write import check_target

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


def run_predict(args: argparse.Namespace) -> tuple[Any, str]:
    """Segment what a sentence names in a picture, with a bundle; needs no PyTorch."""
    from tfanet.export.write import check_output
    from tfanet.runtime import Predictor, load_image
    from tfanet.runtime.overlay import save_mask, save_overlay

    taken = {Path(args.image).resolve()}
    for path in filter(None, (args.output, args.overlay)):
        place = check_output(path, overwrite=True)
        if place in taken:
            raise InputError(f"{path} is given twice: the result would be lost, name another file")
        taken.add(place)
    image = load_image(args.image)
    predictor = Predictor(
        args.bundle,
        digest=args.digest,
        threads=args.threads,
        backend=args.backend,
        host_code=args.host_code,
    )
    prediction = predictor(image, args.text)
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
        "backend": predictor.info(),
    }
    predictor.close()
    backend = result["backend"]["engine"] or result["backend"]["backend"]
    timings = ", ".join(f"{name} {value:.1f} ms" for name, value in prediction.timings.items())
    text = (
        f"{args.output}: {result['pixels']} pixels ({result['share']:.1%} of the picture), "
        f"score {result['score']:.2f}\n{timings} on {backend}"
    )
    return result, text


def run_bench(args: argparse.Namespace) -> tuple[Any, str]:
    """Latency, throughput and memory of a bundle on every backend, beside PyTorch, in turn."""
    from tfanet.bench import bench

    options = ("backends", "batches", "runs", "warmup", "threads", "checkpoint")
    report = bench(
        args.bundle, **{name: getattr(args, name) for name in options}, progress=progress_line()
    )
    return report, bench_table(report)


def bench_table(report: dict[str, Any]) -> str:
    """The benchmark's report: a row for each call of each backend, and what was left out."""
    rows = []
    for name, result in report["candidates"].items():
        sizes = (f"{result['peak_bytes'] / 1e6:.0f}", f"{result['file_bytes'] / 1e6:.1f}")
        ratio = f"{result['ratio']:.2f}" if result["ratio"] else ""
        for call, latency in result["latency"].items():
            rate = result["images_per_second"].get(call.removeprefix("image, batch "))
            speed = "" if rate is None else f"{rate:.1f}"
            quantiles = (f"{latency[q]:.1f}" for q in ("p50", "p95", "p99"))
            first = call.startswith("image") and bool(ratio)
            rows.append((name, call, *quantiles, speed, ratio if first else "", *sizes))
            ratio = "" if first else ratio
            name, sizes = "", ("", "")
    header = (
        "backend",
        "call",
        "p50 ms",
        "p95",
        "p99",
        "images/s",
        "x eager",
        "peak MB",
        "file MB",
    )
    machine = report["machine"]
    head = f"{machine['processor']}, {report['threads']} threads, {report['runs']} calls in turn"
    skipped = "\n".join(f"{name}: {reason}" for name, reason in report["skipped"].items())
    return f"{head}\n\n{table(header, rows)}\n\n{skipped}".rstrip()


def run_parity(args: argparse.Namespace) -> tuple[Any, str]:
    """Compare a bundle with PyTorch on every backend that can run here; INT8 with its certificate.

    An INT8 bundle is evaluated again on the data that its certificate was measured on (--data).
    """
    if args.report is not None:
        from tfanet.export.write import check_folder

        check_folder(args.report)
        if args.data is not None:
            raise InputError("--report is of an FP32 bundle: leave it out, or --data")
    if args.data is not None:
        from tfanet.calibration import recheck
        from tfanet.runtime.bundle import Bundle

        checked = recheck(Bundle.open(args.bundle), guard_options(args), progress=progress_line())
        rows = [
            (row["metric"], *(f"{row[key]:.2f}" for key in ("certified", "measured", "allowed")))
            for row in checked
        ]
        return checked, table(("metric", "certified", "measured here", "least"), rows)
    from tfanet.export.parity import check_bundle

    report = check_bundle(args.bundle, checkpoint=args.checkpoint, progress=progress_line())
    text = parity_table(report)
    if args.report:
        _write_report(args)
        text += f"\n\n{args.report}/report.html"
    return report, text


def _write_report(args: argparse.Namespace) -> None:
    from tfanet.data import ReferDataset, make_shapes
    from tfanet.export.report import write_report

    with tempfile.TemporaryDirectory() as folder:
        pictures = args.picture
        if not pictures:
            make_shapes(folder, train=0, val=3, testA=0, testB=0)
            refs = ReferDataset(folder).refs
            first = {ref.image_path: ref.sentences[0] for ref in reversed(refs)}
            pictures = sorted(first.items())
        write_report(
            args.bundle,
            args.report,
            pictures,
            checkpoint=args.checkpoint,
            progress=progress_line(),
        )


def parity_table(report: dict[str, Any]) -> str:
    """The parity report as a table, one row per backend and case."""
    rows = [
        (case["name"], case["backend"], f"{case['max_rel_error']:.1e}", case["pixels_changed"])
        for case in report["cases"]
    ]
    return table(("case", "backend", "largest relative error", "pixels changed"), rows)
