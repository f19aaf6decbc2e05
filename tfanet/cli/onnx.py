"""`tfanet onnx`: a user's own model to one ONNX file."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.options import GRAPH
from tfanet.cli.output import Verbs, add_verb, table
from tfanet.cli.progress import progress_line

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    onnx = add_verb(
        verbs,
        "onnx",
        run_onnx,
        examples=(
            "tfanet onnx --model my_model:make --input 1x3x224x224 --output model.onnx",
            "tfanet onnx --model my_model:make --checkpoint my.pth "
            "--input image:1x3xheight=224xwidth=224 --output model.onnx",
        ),
    )
    onnx.add_argument(
        "--model",
        required=True,
        metavar="PACKAGE.MODULE:FACTORY",
        help="a function that makes the model",
    )
    onnx.add_argument(
        "--input",
        required=True,
        action="append",
        metavar="[NAME:]SHAPE[:DTYPE]",
        help="such as 1x3x224x224 or input_ids:1x16:int64, once per input; an axis written "
        "height=224 stays open",
    )
    onnx.add_argument("--output", required=True, metavar="FILE", help="the ONNX file to write")
    onnx.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a .safetensors or .pth file of the weights (default: those that the factory gives)",
    )
    GRAPH.add(onnx)
    onnx.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run_onnx(args: argparse.Namespace) -> tuple[Any, str]:
    """Export your own selective-scan model to ONNX, and prove that it computes the same."""
    from tfanet.export import export_onnx

    report = export_onnx(
        args.model,
        args.output,
        input=args.input,
        checkpoint=args.checkpoint,
        **GRAPH.values(args),
        overwrite=args.overwrite,
        progress=progress_line(),
    )
    return report, _text(report)


def _text(report: dict[str, Any]) -> str:
    scans = report["nodes"]["scans"]
    rounds = report["parity"]["reference"] != "PyTorch"
    rows = [
        (
            *(c["name"], c["backend"], f"{c['max_rel_error']:.1e}"),
            *([f"{c['pytorch_error']:.1e}" if "pytorch_error" in c else "-"] if rounds else []),
        )
        for c in report["parity"]["cases"]
    ]
    header = [
        f"compared with {report['parity']['reference']}",
        *("backend", "largest relative error"),
        *(["PyTorch's own"] if rounds else []),
    ]
    original = report["original"]
    own = (
        f"The model's own code and our operator differ by {original['max_rel_error']:.1e}."
        if original["compared"]
        else f"The model's own code was not compared: {original['reason']}."
    )
    standins = [
        f"A stand-in of tfanet was used for {name}: {why}."
        for name, why in report["standins"].items()
    ]
    skipped = [f"Not run: {name}: {why}" for name, why in report["parity"]["skipped"].items()]
    loading = [
        f"{runtime}\n{''.join(f'    {line}{chr(10)}' for line in lines.splitlines())}"
        for runtime, lines in report["loading"].items()
    ]
    parts = [
        f"{report['path']}: {report['size'] / 1e6:.1f} MB, opset {report['opset']}, "
        f"{report['nodes']['total']} nodes, of which {len(scans)} tfanet::SelectiveScan:",
        "\n".join(f"    {name}" for name in scans),
        "",
        table(header, rows),
        "\n".join([own, *standins, *skipped]),
        "",
        "\n".join(loading).rstrip(),
    ]
    return "\n".join(parts)
