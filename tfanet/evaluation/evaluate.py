"""Measures a bundle or a checkpoint on one split of a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfanet.data import ReferDataset, Sample
from tfanet.errors import InputError
from tfanet.evaluation.metrics import GeneralizedMetrics, Metrics
from tfanet.progress import Progress
from tfanet.runtime.preprocess import logits_to_mask

__all__ = ["evaluate"]

# One picture and its sentences to one (H, W) float32 mask logit each, at model resolution.
Segment = Callable[[Path, list[str]], list[np.ndarray]]


def _from_checkpoint(name: str | Path) -> tuple[Segment, float, dict[str, Any]]:
    """PyTorch, on the GPU where there is one: segments, threshold, facts."""
    import torch

    from tfanet.model.checkpoint import load_model
    from tfanet.runtime.preprocess import image_to_tensor, load_image
    from tfanet.runtime.tokenizer import TextTokenizer
    from tfanet.training.train import TOKENIZER

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(name).to(device).eval()
    config = model.config
    tokenizer = TextTokenizer(TOKENIZER, config.text_length)

    @torch.inference_mode()
    def segment(path: Path, sentences: list[str]) -> list[np.ndarray]:
        image = torch.from_numpy(image_to_tensor(load_image(path), config.image_size))
        ids, words = (torch.from_numpy(a).to(device) for a in tokenizer(sentences))
        batch = image.to(device)[None].expand(len(sentences), -1, -1, -1)
        return list(model(batch, ids, words)[:, 0].float().cpu().numpy())

    return segment, 0.0, {"kind": "checkpoint", "preset": config.name}


def _from_bundle(folder: Path) -> tuple[Segment, float, dict[str, Any]]:
    """The runtime without PyTorch: segments, threshold, facts."""
    from tfanet.runtime import Predictor

    predictor = Predictor(folder)

    def segment(path: Path, sentences: list[str]) -> list[np.ndarray]:
        predictions = predictor(path, sentences)
        assert isinstance(predictions, list)
        return [prediction.logits for prediction in predictions]

    threshold = predictor.bundle.manifest.postprocessing.logit_threshold
    return segment, threshold, {"kind": "bundle", "preset": predictor.info()["model"]}


def _by_picture(samples: list[Sample], batch: int) -> Iterator[tuple[Path, list[Sample]]]:
    """Neighbouring samples of one picture, at most `batch` together."""
    for path, group in groupby(samples, key=lambda sample: sample.image_path):
        together = list(group)
        for start in range(0, len(together), batch):
            yield path, together[start : start + batch]


def evaluate(
    model: str | Path,
    data: str | Path,
    dataset: str | None = None,
    split: str = "val",
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Segment every (picture, sentence) of a split and return the metrics, in percent.

    `model` is a bundle folder (run by the runtime), a checkpoint or a preset (run by PyTorch).
    `limit` takes the first so many samples only; `batch` is the most sentences of one picture that
    run together. Returns {"kind", "preset", "dataset", "split_by", "split", "samples", "metrics",
    "metrics_at_model_size", "seconds"}; the two tables hold mIoU, oIoU and P@X, for gRefCOCO gIoU,
    cIoU, N-acc and T-acc. "metrics" are at the picture's own size, to which the logits are resized;
    at model size the true mask is resized instead, by nearest neighbour, and a target too small to
    survive that is left out.

    Raises InputError on a bad model, dataset, limit or batch.
    """
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give a number of samples, 1 or more")
    source = ReferDataset(data, dataset, split, split_by=split_by, images=images)
    samples = list(source[: limit or len(source)])
    is_bundle = Path(model).is_dir()
    segment, threshold, facts = _from_bundle(Path(model)) if is_bundle else _from_checkpoint(model)
    kind = GeneralizedMetrics if source.dataset == "grefcoco" else Metrics
    at_picture, at_model = kind(), kind()
    started = time.monotonic()
    for path, group in _by_picture(samples, batch):
        logits = segment(path, [sample.sentence for sample in group])
        for sample, logit in zip(group, logits, strict=True):
            true = sample.mask
            mask = logits_to_mask(logit, true.shape, threshold)[0]
            at_picture.update(mask, true, no_target=sample.ref.no_target)
            height, width = logit.shape
            resized = Image.fromarray(true).resize((width, height), Image.Resampling.NEAREST)
            small = np.asarray(resized)
            if small.any() or sample.ref.no_target:
                at_model.update(logit > threshold, small, no_target=sample.ref.no_target)
        if progress is not None:
            progress("evaluating", len(at_picture.ious), len(samples))
    return facts | {
        "dataset": source.dataset,
        "split_by": source.split_by,
        "split": split,
        "samples": len(samples),
        "metrics": at_picture.compute(),
        "metrics_at_model_size": at_model.compute(),
        "seconds": time.monotonic() - started,
    }
