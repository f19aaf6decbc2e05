"""INT8 and FP8 against FP32 on one dataset: accuracy, size, latency and share, scheme by scheme.

    python benchmarks/quantisation.py --data shapes --dataset shapes --count 500

A row that starts with "+" adds to the default of `tfanet export --precision int8`, which is
"MSE, smoothed, bias corrected"; "for ONNX Runtime" is that with --int8-target onnxruntime.
"onnxruntime, static" is `onnxruntime.quantization` of all convolutions and products, min-max,
symmetric, per channel. "in 8 bits" is the share of multiply-accumulates, "logit error" is relative
to FP32. Latency is of one picture with one sentence in ONNX Runtime on this machine's CPU, all
schemes taking turns; FP8 is computed there to prove accuracy, no CPU has it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from tfanet.calibration.accept.accuracy import logits, measure_metrics
from tfanet.calibration.accept.speed import measure_latency
from tfanet.calibration.graph.fold import fold_weights
from tfanet.calibration.graph.prepared import PreparedBundle, read_graph
from tfanet.calibration.graph.session import open_model
from tfanet.calibration.measure.calibrator import measure_ranges
from tfanet.calibration.measure.sampler import CalibrationSet, choose
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.cli.output import progress_line, table
from tfanet.runtime.bundle.graphs import GRAPHS, TEXT, image_feed, text_features
from tfanet.runtime.bundle.read import Bundle

from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader

Models = dict[str, ModelProto]
PRODUCTS = ("Conv", "MatMul", "Gemm")
PLAIN = {"smooth": False, "bias_correction": False}
# Options of `measure_ranges`.
SCHEMES: dict[str, dict[str, Any]] = {
    "min-max": {"observer": "minmax", **PLAIN},
    "percentile": {"observer": "percentile", **PLAIN},
    "entropy": {"observer": "entropy", **PLAIN},
    "MSE": PLAIN,
    "MSE, smoothed": {"bias_correction": False},
    "MSE, smoothed, bias corrected": {},
    "+ outliers": {"outliers": True},
    "+ dual region": {"dual_region": True},
    "+ both": {"outliers": True, "dual_region": True},
    "for ONNX Runtime": {},
    "for ONNX Runtime + both": {"outliers": True, "dual_region": True},
    "FP8": {"precision": "fp8"},
}
SHOWN = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", help="FP32; default: exports --checkpoint")
    parser.add_argument("--checkpoint", default="tfanet-tiny", help="a file or a preset")
    parser.add_argument("--data", required=True)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--calibration-split", default="train")
    parser.add_argument("--calibration-count", type=int, default=128)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=500, help="pictures to evaluate")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            from tfanet.export import export_bundle

            bundle = export_bundle(args.checkpoint, Path(folder) / "bundle")
        else:
            bundle = Bundle.open(args.bundle)
        print(compare(bundle, args, Path(folder)))


def compare(bundle: Bundle, args: argparse.Namespace, folder: Path) -> str:
    """The table."""
    chosen = choose(args.data, args.dataset, args.calibration_split, count=args.calibration_count)
    items = choose(args.data, args.dataset, args.split, count=args.count)
    prepared = PreparedBundle.open(bundle)
    fp32: Models = {name: onnx.read_graph(bundle, name) for name in GRAPHS}
    schemes = {"FP32": fp32, "onnxruntime, static": static(bundle, chosen, folder)}
    for name, options in SCHEMES.items():
        calibration = measure_ranges(prepared, chosen, **options, progress=progress_line())
        moved, _ = move_channels(prepared, calibration)
        schemes[name] = quantize_graphs(moved, calibration, unsigned="for ONNX Runtime" in name)
    few = list(itertools.islice(items.tensors(bundle), 16))
    exact = np.concatenate(list(logits(fp32, lambda: few)))
    times = measure_latency(schemes, bundle, runs=50, threads=args.threads)
    rows = []
    for name, models in schemes.items():
        metrics = measure_metrics(models, items, bundle, progress=progress_line(), stage=name)
        got = np.concatenate(list(logits(models, lambda: few)))
        error = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
        size = sum(model.ByteSize() for model in models.values())
        rows.append(
            (
                name,
                *(f"{metrics[metric]:.2f}" for metric in SHOWN),
                f"{error:.4f}",
                f"{size / 1e6:.2f}",
                f"{times[name]:.1f}",
                f"{share(prepared, models):.1%}",
            )
        )
    header = ("scheme", *SHOWN, "logit error", "MB", "ms", "in 8 bits")
    return table(header, rows)


def static(bundle: Bundle, chosen: CalibrationSet, folder: Path) -> Models:
    """Both graphs by onnxruntime.quantization; its calibrator runs the scan's function body.

    It refuses weights behind a Reshape, so these are folded first, as for ours.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it advises on preparation at every call
    models: Models = {}
    for name in GRAPHS:
        folded, target = folder / f"folded_{name}", folder / f"static_{name}"
        onnx.save(_renamed(fold_weights(read_graph(bundle, name))), folded)
        quantization.quantize_static(
            str(folded),
            str(target),
            _Reader(feeds(bundle, chosen, name)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
        )
        models[name] = onnx.load(target)
    return models


def _renamed(model: ModelProto) -> ModelProto:
    """Constants with a suffix: the tool copies shared ones as name + number, which other values
    of an export may be called."""
    names = {tensor.name: f"{tensor.name}_constant" for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    return model


class _Reader(CalibrationDataReader):
    """The feeds one after another, as onnxruntime.quantization asks for them."""

    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def feeds(bundle: Bundle, chosen: CalibrationSet, name: str) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of one graph on every picture."""
    text = open_model(read_graph(bundle, TEXT))
    for picture, ids, mask in chosen.tensors(bundle):
        if name == TEXT:
            yield {"token_ids": ids}
            continue
        taken = bundle.manifest.interface.image_inputs
        yield image_feed(taken, picture, text_features(text, ids), mask)


def share(prepared: PreparedBundle, models: Mapping[str, ModelProto]) -> float:
    """Multiply-accumulates of nodes that read quantised values only; node names stay the same."""
    inside = set()
    for model in models.values():
        dequantized = {
            node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
        }
        inside |= {
            node.name
            for node in model.graph.node
            if node.op_type in PRODUCTS and set(node.input[:2]) <= dequantized
        }
    layers = prepared.all_layers()
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.node in inside) / total


if __name__ == "__main__":
    main()
