"""`quantize_bundle`: an FP32 bundle and a calibration to a quantised bundle with its certificate.

The same inputs give the same bytes of every file that the manifest lists, and of the manifest
itself on processors with the same integer instructions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from tfanet.calibration import grid as grids
from tfanet.calibration.accept.certificate import GuardOptions, bound_loss, without_ids
from tfanet.calibration.accept.guard import check_bounds
from tfanet.calibration.accept.speed import measure_speed, write_timing
from tfanet.calibration.graph.layers import QUANTISED, Layer, quantised_share
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.measure.calibrator import measure_ranges
from tfanet.calibration.measure.sampler import CalibrationSet
from tfanet.calibration.ranges import Calibration, diff
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.errors import GateError, InputError, check_choice
from tfanet.progress import Progress, Stages
from tfanet.runtime.backends.integer import instructions, overflowing
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import FILES, Bundle, file_facts
from tfanet.runtime.bundle.write import check_target, new_bundle, write_manifest

__all__ = ["check_form", "quantize_bundle"]

TARGETS = ("any", "onnxruntime")
MOVED = 1.5  # times: where a range is exceeded by more, a new calibration is called for
CHECKED = 8  # pictures to find that out


def quantize_bundle(
    bundle: str | Path | Bundle,
    output: str | Path,
    calibration: Calibration | str | Path,
    guard: GuardOptions | None = None,
    *,
    target: str = "any",
    threads: int | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Write a bundle in the calibration's precision, INT8 or FP8.

    Args:
        bundle: FP32. output: the new bundle's directory. overwrite: replace a bundle that is there.
        calibration: of this model, or of another checkpoint of the same shape.
        guard: bound the loss; without it nothing is evaluated and the certificate says so.
        target: "any" for signed activations and 8-bit weights, which every runtime takes, and
            ONNX Runtime runs in floating point on x86 without VNNI; "onnxruntime" for its integer
            kernels, with the same result on every processor.
        threads: of the latency measurement.
        finish: called with the whole bundle before it takes its place, to add engines, say.

    Returns:
        The bundle, and a report: "certificate", which is in its manifest; "speed", which is in
        its timing.json; and "layers": name, macs, sensitivity (None without guard), precision, why.

    Raises:
        InputError: for a calibration of another model, or a bundle that is quantised already.
        GateError: where the bound cannot be met; nothing is written then.
    """
    check_target(output, overwrite=overwrite)
    known = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    check_form(target, known.precision)
    if guard is not None:
        check_bounds(guard.bounds, guard.min_share)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    stages = Stages(progress)
    quantising = stages.next("quantising", 0.9)
    models, certificate, layers = _quantize(opened, known, guard, target, quantising)
    stages.next("timing")
    # FP32 is timed as the file ships, its 2-D scans fused: that is what the user has today.
    speed = measure_speed(
        {name: onnx.load_from_string(opened.read(name)) for name in GRAPHS},
        models,
        opened,
        precision=known.precision,
        target=target,
        threads=threads,
    )
    with new_bundle(output, overwrite=overwrite) as work:
        _write(work, opened, models, certificate, speed)
        if finish is not None:
            finish(work)
    stages.end()
    return Bundle.open(output), {"certificate": certificate, "speed": speed, "layers": layers}


def check_form(target: str, precision: str) -> None:
    """Raises InputError for an unknown target, or one that the precision does not have."""
    check_choice("target", target, TARGETS)
    if target == "onnxruntime" and precision != grids.INT8.name:
        raise InputError(
            f"target is 'onnxruntime', a form of int8 graphs; {precision} has one form for all "
            "runtimes: leave the target out"
        )


def _quantize(
    bundle: Bundle,
    calibration: Calibration,
    guard: GuardOptions | None,
    target: str,
    progress: Progress | None,
) -> tuple[dict[str, ModelProto], dict[str, Any], list[dict[str, Any]]]:
    """The graphs, the certificate and the table of layers."""
    prepared = PreparedBundle.open(bundle)
    moved, same = move_channels(prepared, calibration)
    items = guard.items() if guard is not None else None
    if not same:
        _warn_of_other_weights(moved, calibration, items)

    def quantized(keep_float: frozenset[str]) -> dict[str, ModelProto]:
        return quantize_graphs(moved, calibration, keep_float, unsigned=target == "onnxruntime")

    sensitivity: dict[str, float] = {}
    accuracy: dict[str, Any] = {}
    kept: tuple[str, ...] = ()
    if guard is not None and items is not None:
        found, sensitivity, accuracy = bound_loss(
            moved, calibration, guard, items, quantized, progress
        )
        kept = found.keep_float
    models = quantized(frozenset(kept))
    original = sum(bundle.manifest.files[name]["size"] for name in GRAPHS)
    certificate = {
        "precision": calibration.precision,
        "target": target,
        "integer_instructions": instructions(),
        "calibration": {
            "observer": calibration.observer,
            "splits": {
                kind: sum(len(getattr(ranges, kind)) for ranges in calibration.graphs.values())
                for kind in ("outliers", "regions")
            },
            **without_ids(calibration.data),
        },
        "share": round(_share(prepared, kept), 4),
        "float_layers": sorted(kept),
        "accuracy": accuracy,
        "size_ratio": round(sum(m.ByteSize() for m in models.values()) / original, 4),
    }
    return models, certificate, _table(prepared, sensitivity, kept, calibration.precision)


def _warn_of_other_weights(
    moved: PreparedBundle, calibration: Calibration, items: CalibrationSet | None
) -> None:
    """Warn that the ranges are another checkpoint's, and where data show it, which are exceeded."""
    if items is None:
        warnings.warn(
            "the calibration was made with other weights of this model, and there is no data to "
            "compare ranges with: give --data, or calibrate again",
            stacklevel=4,
        )
        return
    few = replace(items, items=items.items[:CHECKED])
    now = measure_ranges(
        moved,
        few,
        precision=calibration.precision,
        observer=calibration.observer,
        smooth=False,
        bias_correction=False,
    )
    rows = [row for row in diff(calibration, now) if (row["ratio"] or 0) > MOVED]
    rows = [row for row in rows if row["after"] > row["before"]]
    worst = f", '{rows[0]['value']}' most, by {rows[0]['ratio']:.1f} times" if rows else ""
    warnings.warn(
        f"the calibration was made with other weights of this model; {len(rows)} ranges of "
        f"{sum(len(g.amax) for g in now.graphs.values())} are exceeded by more than {MOVED:g} times"
        f"{worst}: calibrate again where accuracy matters",
        stacklevel=4,
    )


def _write(
    work: Path,
    bundle: Bundle,
    models: Mapping[str, ModelProto],
    certificate: dict[str, Any],
    speed: dict[str, Any],
) -> None:
    for name, model in models.items():
        (work / name).write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(work / name), full_check=True)
        if certificate["target"] == "onnxruntime":
            _check_pairs(work / name)
    (work / "tokenizer.json").write_bytes(bundle.read("tokenizer.json"))
    manifest = replace(
        bundle.manifest,
        precision=certificate["precision"],
        engines=[],  # those of the FP32 graphs
        parity={**bundle.manifest.parity, "certificate": certificate},
        files={name: file_facts(work / name) for name in FILES},
        versions={**bundle.manifest.versions, "onnx": metadata.version("onnx")},
    )
    write_manifest(work, manifest)
    write_timing(work, speed)


def _check_pairs(path: Path) -> None:
    """Proves by the written file that it computes the same on every processor."""
    if weight := overflowing(path.read_bytes()):
        raise GateError(
            f"two products with the weight '{weight}' can overflow 16 bits: on x86 without VNNI "
            "the graph would be wrong, so nothing was written; this is a bug in tfanet, report it"
        )


def _share(prepared: PreparedBundle, kept: tuple[str, ...]) -> float:
    layers = prepared.all_layers()
    return quantised_share(layers, {layer.name for layer in layers} - set(kept))


def _table(
    prepared: PreparedBundle,
    sensitivity: Mapping[str, float],
    kept: tuple[str, ...],
    precision: str,
) -> list[dict[str, Any]]:
    names = {QUANTISED: precision}

    def row(layer: Layer) -> dict[str, Any]:
        given_back = layer.name in kept
        return {
            "name": layer.name,
            "macs": layer.macs,
            "sensitivity": sensitivity.get(layer.name),
            "precision": "float" if given_back else names.get(layer.placement, layer.placement),
            "why": "given back by the guard" if given_back else layer.why,
        }

    return [row(layer) for layer in prepared.all_layers()]
