"""What a quantised bundle may lose, the proof that it loses no more, and the proof repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from tfanet.calibration.accept.accuracy import measure_metrics
from tfanet.calibration.accept.guard import GuardResult, search
from tfanet.calibration.accept.sensitivity import measure_sensitivity
from tfanet.calibration.graph.prepared import PreparedBundle, read_graph
from tfanet.calibration.measure.sampler import CalibrationSet, choose
from tfanet.calibration.ranges import Calibration
from tfanet.errors import GateError, InputError
from tfanet.progress import Progress, Stages
from tfanet.runtime.backends.integer import instructions
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import Bundle

__all__ = ["GuardOptions", "bound_loss", "recheck", "without_ids"]

TOLERANCE = 0.1  # points by which one quantised model may differ between machines


@dataclass(frozen=True)
class GuardOptions:
    """What INT8 or FP8 may lose, and on which data that is measured.

    Attributes:
        data, dataset, split, split_by, images: as for `ReferDataset`. count: pictures, chosen as
            for calibration with seed; all of them where there are fewer.
        bounds: points that each metric may lose (mIoU, P@0.9 or gIoU), all at once. min_share: of
            multiply-accumulates that stay quantised. probes: pictures for each layer's sensitivity.
    """

    data: str | Path
    dataset: str | None = None
    split: str = "val"
    split_by: str | None = None
    images: str | Path | None = None
    count: int = 500
    seed: int = 0
    bounds: Mapping[str, float] = field(default_factory=lambda: {"mIoU": 0.5})
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


def bound_loss(
    prepared: PreparedBundle,
    calibration: Calibration,
    guard: GuardOptions,
    items: CalibrationSet,
    quantized: Callable[[frozenset[str]], Mapping[str, ModelProto]],
    progress: Progress | None,
) -> tuple[GuardResult, dict[str, float], dict[str, Any]]:
    """Find the layers to give back to floating point so that no bound is exceeded.

    Args:
        prepared: with the channels moved. items: of `guard`.
        quantized: the models with the named layers in floating point.

    Returns:
        The layers to give back, every layer's sensitivity, and the certificate's accuracy.
    """
    bundle = prepared.bundle
    original = {name: read_graph(bundle, name) for name in GRAPHS}
    stages = Stages(progress)
    stage = "evaluating FP32"
    baseline = measure_metrics(
        original, items, bundle, progress=stages.next(stage, 0.25), stage=stage
    )
    del original
    sensitivity = measure_sensitivity(
        prepared,
        calibration,
        lambda: items.tensors(bundle),
        count=guard.probes,
        progress=stages.next("measuring sensitivity", 0.4),
    )

    def evaluate(keep_float: frozenset[str]) -> dict[str, float]:
        stage = f"evaluating {calibration.precision}, {len(keep_float)} layers given back"
        # How many there will be nobody knows: each takes half of what is left.
        telling = stages.next(stage, 0.5)
        return measure_metrics(quantized(keep_float), items, bundle, progress=telling, stage=stage)

    found = search(
        prepared.all_layers(),
        sensitivity,
        baseline,
        evaluate,
        bounds=guard.bounds,
        min_share=guard.min_share,
    )
    stages.end("the bounds hold")
    accuracy = {
        "max_drop": dict(guard.bounds),
        "drop": _rounded(found.drop),
        "fp32": _rounded(baseline),
        "quantised": _rounded(found.metrics),
        "evaluations": found.evaluations,
        "data": without_ids(items.facts()),
    }
    return found, sensitivity, accuracy


def recheck(
    bundle: Bundle, guard: GuardOptions, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Evaluate a quantised bundle again on the data of its certificate, on this machine.

    Args:
        guard: where the data are; split, seed, count and bounds are the certificate's.

    Returns:
        For each bounded metric: metric, certified and measured (percent), allowed (the least that
        passes), and the integer instructions of both processors, certified_with (None where the
        certificate does not say) and measured_with.

    Raises:
        InputError: where the certificate holds no accuracy, or was made on other data.
        GateError: where a metric is below what the certificate allows.
    """
    certificate = bundle.manifest.parity.get("certificate", {})
    accuracy = certificate.get("accuracy")
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
            f"{guard.data} holds other pictures or sentences than those that the certificate was "
            "measured on: give the same dataset"
        )
    models = {name: read_graph(bundle, name) for name in GRAPHS}
    measured = measure_metrics(models, items, bundle, progress=progress)
    report = []
    for metric, max_drop in accuracy["max_drop"].items():
        certified = accuracy["quantised"][metric]
        allowed = min(accuracy["fp32"][metric] - max_drop, certified - TOLERANCE)
        if measured[metric] < allowed:
            raise GateError(
                f"{metric} of {bundle.path} is {measured[metric]:.2f} here, the certificate "
                f"allows {allowed:.2f} and above: this runtime does not compute what was certified"
            )
        report.append(
            {
                "metric": metric,
                "certified": certified,
                "measured": measured[metric],
                "allowed": allowed,
                "certified_with": certificate.get("integer_instructions"),
                "measured_with": instructions(),
            }
        )
    return report


def without_ids(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a set without its list of ids, which the fingerprint stands for."""
    return {key: value for key, value in facts.items() if key != "sent_ids"}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
