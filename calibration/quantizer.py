"""`quantize_bundle`: an FP32 bundle and a calibration to an INT8 bundle with its certificate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from tfanet.errors import GateError, InputError
from tfanet.export.write import new_bundle
from tfanet.runtime.bundle import FILES, MANIFEST, Bundle, file_facts

from .accuracy import measure_latency, measure_metrics
from .calibrator import apply, measure_ranges, prepare
from .graph import load
from .guard import GuardResult, check_bound, search
from .placement import INT8, Layer, int8_share
from .ranges import Calibration, diff
from .sampler import CalibrationSet, choose
from .sensitivity import measure_sensitivity
from .source import GRAPHS, Progress, Source

__all__ = ["WORTH", "GuardOptions", "quantize_bundle", "recheck"]

TARGETS = ("any", "onnxruntime")
WORTH = 1.15  # below this gain in speed INT8 does not pay for what it may lose
MOVED = 1.5  # a range that moved by more calls for a new calibration
CHECKED = 8  # pictures to find that out
TOLERANCE = 0.1  # points that the same INT8 model may differ by between machines


@dataclass(frozen=True)
class GuardOptions:
    """What INT8 may lose, and on which data that is measured.

    Attributes:
        data, dataset, split, split_by, images: as for `ReferDataset`. count: pictures, chosen as
            for calibration with seed; a larger number than there are takes all.
        metric: mIoU, P@0.9 or gIoU. max_drop: points of it. min_share: of multiply-accumulates
            that stay in INT8. probes: pictures for each layer's sensitivity.
    """

    data: str | Path
    dataset: str | None = None
    split: str = "val"
    split_by: str | None = None
    images: str | Path | None = None
    count: int = 500
    seed: int = 0
    metric: str = "mIoU"
    max_drop: float = 0.5
    min_share: float = 0.5
    probes: int = 2

    def items(self) -> CalibrationSet:
        """The pictures."""
        return choose(
            self.data,
            self.dataset,
            self.split,
            count=self.count,
            seed=self.seed,
            split_by=self.split_by,
            images=self.images,
        )


def quantize_bundle(
    bundle: str | Path | Bundle,
    output: str | Path,
    calibration: Calibration | str | Path,
    guard: GuardOptions | None = None,
    *,
    target: str = "any",
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Write an INT8 bundle.

    Args:
        bundle: FP32. output: the new bundle's directory; one that is there is replaced.
        calibration: of this model, or of another checkpoint of the same shape.
        guard: bound the loss; without it nothing is evaluated and the certificate says so.
        target: "any" for signed activations, which every runtime takes; "onnxruntime" for unsigned
            ones, which its x86 kernels run faster.
        threads: of the latency measurement.

    Returns:
        The bundle, and a report: the certificate, and "layers": name, macs, sensitivity (None
        without guard), precision and why.

    Raises:
        InputError: for a calibration of another model, or a bundle that is quantised already.
        GateError: where the bound cannot be met; nothing is written then.
    """
    if target not in TARGETS:
        raise InputError(f"target is {target!r}: choose one of {', '.join(TARGETS)}")
    if guard is not None:
        check_bound(guard.metric, guard.max_drop, guard.min_share)
    known = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    source = Source.open(bundle)
    prepared, same = prepare(source, known)
    items = guard.items() if guard is not None else None
    if not same:
        _warn_of_other_weights(source, known, items)
    original = {name: load(source.bundle.file(name)) for name in GRAPHS}

    def quantized(keep_float: frozenset[str]) -> dict[str, ModelProto]:
        return apply(prepared, known, keep_float, unsigned=target == "onnxruntime")

    sensitivity: dict[str, float] = {}
    accuracy: dict[str, Any] = {}
    kept: tuple[str, ...] = ()
    if guard is not None and items is not None:
        found, sensitivity, accuracy = _guarded(
            prepared, known, guard, items, original, quantized, progress
        )
        kept = found.keep_float
    models = quantized(frozenset(kept))
    certificate = {
        "target": target,
        "calibration": {"observer": known.observer, **_short(known.data)},
        "int8_share": round(_share(source, kept), 4),
        "float_layers": sorted(kept),
        "accuracy": accuracy,
        "size_ratio": round(_bytes(models) / _bytes(original), 4),
        "speed": _speed(original, models, source.bundle, threads),
    }
    written = _write(source.bundle, Path(output), models, certificate)
    return written, {"certificate": certificate, "layers": _table(source, sensitivity, kept)}


def recheck(
    bundle: Bundle, guard: GuardOptions, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate an INT8 bundle again on the data of its certificate, on this machine.

    Args:
        guard: where the data are; split, seed and count are the certificate's.

    Returns:
        metric, certified and measured (percent), allowed (the least that passes).

    Raises:
        InputError: where the certificate holds no accuracy, or the data are other ones.
        GateError: where the metric is below what the certificate allows.
    """
    accuracy = bundle.manifest.parity.get("certificate", {}).get("accuracy")
    if not accuracy:
        raise InputError(
            f"{bundle.path} has no measured accuracy in its certificate: export it again with "
            "--data"
        )
    facts = accuracy["data"]
    items = replace(
        guard,
        dataset=facts["dataset"],
        split=facts["split"],
        split_by=facts["split_by"],
        count=facts["count"],
        seed=facts["seed"],
    ).items()
    if items.facts()["fingerprint"] != facts["fingerprint"]:
        raise InputError(
            f"{guard.data} holds other pictures or sentences than the certificate was measured "
            "with: give the same dataset"
        )
    models = {name: load(bundle.file(name)) for name in GRAPHS}
    metric = accuracy["metric"]
    measured = measure_metrics(models, items, bundle, progress=progress)[metric]
    bound = accuracy["fp32"][metric] - accuracy["max_drop"]
    allowed = min(bound, accuracy["int8"][metric] - TOLERANCE)
    report = {
        "metric": metric,
        "certified": accuracy["int8"][metric],
        "measured": measured,
        "allowed": allowed,
    }
    if measured < allowed:
        raise GateError(
            f"{metric} of {bundle.path} is {measured:.2f} here, the certificate allows "
            f"{allowed:.2f} and above: this runtime does not compute what was certified"
        )
    return report


def _guarded(
    source: Source,
    calibration: Calibration,
    guard: GuardOptions,
    items: CalibrationSet,
    original: Mapping[str, ModelProto],
    quantized: Any,
    progress: Progress | None,
) -> tuple[GuardResult, dict[str, float], dict[str, Any]]:
    """The layers to give back, every layer's sensitivity, and the certificate's accuracy."""
    bundle = source.bundle
    baseline = measure_metrics(original, items, bundle, progress=progress, stage="evaluating FP32")
    amax = {name: calibration.graphs[name].amax for name in GRAPHS}
    sensitivity = measure_sensitivity(
        source, amax, lambda: items.tensors(bundle), count=guard.probes, progress=progress
    )

    def evaluate(keep_float: frozenset[str]) -> dict[str, float]:
        stage = f"evaluating INT8, {len(keep_float)} layers given back"
        return measure_metrics(quantized(keep_float), items, bundle, progress=progress, stage=stage)

    found = search(
        source.all_layers(),
        sensitivity,
        baseline,
        evaluate,
        metric=guard.metric,
        max_drop=guard.max_drop,
        min_share=guard.min_share,
    )
    accuracy = {
        "metric": guard.metric,
        "max_drop": guard.max_drop,
        "drop": round(found.drop, 4),
        "fp32": {name: round(value, 4) for name, value in baseline.items()},
        "int8": {name: round(value, 4) for name, value in found.metrics.items()},
        "evaluations": found.evaluations,
        "data": _short(items.facts()),
    }
    return found, sensitivity, accuracy


def _warn_of_other_weights(
    source: Source, calibration: Calibration, items: CalibrationSet | None
) -> None:
    """Ranges of another checkpoint are used: say which of them this one exceeds, if data tell."""
    if items is None:
        warnings.warn(
            "the calibration was made with other weights of this model, and there is no data to "
            "compare ranges with: give --data, or calibrate again",
            stacklevel=3,
        )
        return
    few = replace(items, items=items.items[:CHECKED])
    now = measure_ranges(
        prepare(source, calibration)[0],
        few,
        observer=calibration.observer,
        smooth=False,
        bias_correction=False,
    )
    rows = [row for row in diff(calibration, now) if (row["ratio"] or 0) > MOVED]
    rows = [row for row in rows if row["after"] > row["before"]]
    worst = f", the most '{rows[0]['value']}' by {rows[0]['ratio']:.1f} times" if rows else ""
    warnings.warn(
        f"the calibration was made with other weights of this model; {len(rows)} ranges of "
        f"{sum(len(g.amax) for g in now.graphs.values())} are exceeded more than {MOVED:g} times"
        f"{worst}: calibrate again where accuracy matters",
        stacklevel=3,
    )


def _speed(
    original: Mapping[str, ModelProto],
    models: Mapping[str, ModelProto],
    bundle: Bundle,
    threads: int | None,
) -> dict[str, Any]:
    """FP32 against INT8 in ONNX Runtime on this machine's CPU, and what that advises."""
    times = measure_latency({"fp32": original, "int8": models}, bundle, threads=threads)
    gain = times["fp32"] / times["int8"]
    return {
        "backend": "onnxruntime-cpu",
        "fp32_ms": round(times["fp32"], 2),
        "int8_ms": round(times["int8"], 2),
        "gain": round(gain, 2),
        "verdict": "int8" if gain >= WORTH else "keep fp32: the gain is below 1.15 times here",
    }


def _write(
    bundle: Bundle, output: Path, models: Mapping[str, ModelProto], certificate: dict[str, Any]
) -> Bundle:
    with new_bundle(output) as work:
        for name, model in models.items():
            (work / name).write_bytes(model.SerializeToString(deterministic=True))
            onnx.checker.check_model(str(work / name), full_check=True)
        (work / "tokenizer.json").write_bytes(bundle.file("tokenizer.json").read_bytes())
        manifest = replace(
            bundle.manifest,
            precision=INT8,
            engines=[],  # those of the FP32 graphs
            parity={**bundle.manifest.parity, "certificate": certificate},
            files={name: file_facts(work / name) for name in FILES},
            versions={**bundle.manifest.versions, "onnx": metadata.version("onnx")},
        )
        (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(output)


def _share(source: Source, kept: tuple[str, ...]) -> float:
    layers = source.all_layers()
    return int8_share(layers, {layer.name for layer in layers} - set(kept))


def _bytes(models: Mapping[str, ModelProto]) -> int:
    return sum(model.ByteSize() for model in models.values())


def _short(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a set without its list of ids, which the fingerprint stands for."""
    return {key: value for key, value in facts.items() if key != "sent_ids"}


def _table(
    source: Source, sensitivity: Mapping[str, float], kept: tuple[str, ...]
) -> list[dict[str, Any]]:
    def row(layer: Layer) -> dict[str, Any]:
        given_back = layer.name in kept
        return {
            "name": layer.name,
            "macs": layer.macs,
            "sensitivity": sensitivity.get(layer.name),
            "precision": "float" if given_back else layer.precision,
            "why": "given back by the guard" if given_back else layer.why,
        }

    return [row(layer) for layer in source.all_layers()]
