"""Masks of a bundle's two graphs against the true ones, scored as `tfanet evaluate` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto

from tfanet.calibration.graph.session import Inputs, mask_logits, open_model, run_graphs
from tfanet.calibration.measure.sampler import CalibrationSet
from tfanet.data import DATASETS
from tfanet.evaluation.metrics import GeneralizedMetrics, Metrics
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.preprocess import plane_to_mask

__all__ = ["logits", "measure_metrics"]


def logits(
    models: Mapping[str, ModelProto], inputs: Inputs, *, threads: int | None = None
) -> Iterator[np.ndarray]:
    """Mask logits (1, 1, H, W) float32 of each picture, by the two graphs."""
    sessions = {name: open_model(models[name], threads=threads) for name in GRAPHS}
    for pair in inputs():
        yield mask_logits(sessions, pair)


def measure_metrics(
    models: Mapping[str, ModelProto],
    items: CalibrationSet,
    bundle: Bundle,
    *,
    progress: Progress | None = None,
    stage: str = "evaluating",
) -> dict[str, float]:
    """mIoU, oIoU and P@X (of generalised data gIoU, cIoU, ...) in percent, at the pictures' sizes.

    Args:
        models: by file name. items: pictures, sentences and true masks. bundle: preprocessing.
    """
    metrics = GeneralizedMetrics() if DATASETS[items.dataset].generalised else Metrics()
    manifest = bundle.manifest
    pre, post = manifest.preprocessing, manifest.postprocessing
    names = {role: name for role, (name, _) in manifest.interface.image_outputs.items()}
    sessions = {name: open_model(models[name]) for name in GRAPHS}
    for index, (item, pair) in enumerate(zip(items.items, items.tensors(bundle), strict=True)):
        given = run_graphs(sessions, pair)
        true = item.ref.mask()
        height, width = true.shape
        metrics.update(
            plane_to_mask(given[names["mask"]][0, 0], (height, width), pre, post)[0],
            true,
            no_target=item.ref.no_target,
            says_nothing=bool(given[names["no_target"]] > 0) if "no_target" in names else None,
        )
        if progress is not None:
            progress(stage, index + 1, len(items.items))
    return metrics.compute()
