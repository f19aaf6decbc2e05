"""Masks of two ONNX graphs against the true ones, as `tfanet evaluate` scores them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.calibration.measure.collect import open_model
from tfanet.calibration.measure.sampler import CalibrationSet
from tfanet.calibration.measure.source import Inputs
from tfanet.evaluation.metrics import GeneralizedMetrics, Metrics
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS, image_feed
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.preprocess import logits_to_mask

__all__ = ["logits", "measure_latency", "measure_metrics"]

WARM_UP = 3


def logits(
    models: Mapping[str, ModelProto], inputs: Inputs, *, threads: int | None = None
) -> Iterator[np.ndarray]:
    """Mask logits (1, 1, H, W) float32 of each picture, by the two graphs."""
    text, image = (open_model(models[name], threads=threads) for name in GRAPHS)
    for picture, ids, mask in inputs():
        yield image.run(None, _feed(text, picture, ids, mask))[0]


def measure_metrics(
    models: Mapping[str, ModelProto],
    items: CalibrationSet,
    bundle: Bundle,
    *,
    progress: Progress | None = None,
    stage: str = "evaluating",
) -> dict[str, float]:
    """mIoU, oIoU and P@X (for gRefCOCO gIoU, cIoU, ...) in percent, at each picture's own size.

    Args:
        models: by file name. items: pictures, sentences and true masks. bundle: preprocessing.
    """
    metrics = GeneralizedMetrics() if items.dataset == "grefcoco" else Metrics()
    threshold = bundle.manifest.threshold
    results = logits(models, lambda: items.tensors(bundle))
    for index, (item, z) in enumerate(zip(items.items, results, strict=True)):
        true = item.ref.mask()
        height, width = true.shape
        metrics.update(
            logits_to_mask(z[0, 0], (height, width), threshold)[0],
            true,
            no_target=item.ref.no_target,
        )
        if progress is not None:
            progress(stage, index + 1, len(items.items))
    return metrics.compute()


def measure_latency(
    models: Mapping[str, Mapping[str, ModelProto]],
    bundle: Bundle,
    *,
    runs: int = 20,
    threads: int | None = None,
) -> dict[str, float]:
    """Median milliseconds of one sentence on one picture, by name, without preprocessing.

    The candidates take turns, so that what else the machine does falls on all of them.
    """
    rng = np.random.default_rng(0)
    height, width = bundle.manifest.preprocessing["size"]
    length = bundle.manifest.text["length"]
    picture = rng.standard_normal((1, 3, height, width)).astype(np.float32)
    ids = rng.integers(0, bundle.manifest.text["sos_id"], (1, length))
    mask = np.ones((1, length), np.float32)
    sessions = {
        name: [open_model(pair[graph], threads=threads) for graph in GRAPHS]
        for name, pair in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for run in range(WARM_UP + runs):
        for name, (text, image) in sessions.items():
            started = time.perf_counter()
            image.run(None, _feed(text, picture, ids, mask))
            if run >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def _feed(text: Any, picture: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    return image_feed(picture, text.run(None, {"token_ids": ids}), mask)
