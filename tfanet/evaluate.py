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
from tfanet.metrics import GeneralizedMetrics, Metrics
from tfanet.runtime.preprocess import logits_to_mask

__all__ = ["evaluate"]

# One picture and its sentences to one (H, W) float32 mask logit each, at model resolution.
Segment = Callable[[Path, list[str]], list[np.ndarray]]


def _from_checkpoint(name: str | Path) -> tuple[Segment, dict[str, Any]]:
    """PyTorch on the GPU where there is one; pictures are encoded with all their sentences."""
    import torch

    from tfanet.checkpoint import load_model
    from tfanet.runtime.preprocess import image_to_tensor, load_image
    from tfanet.runtime.tokenizer import TextTokenizer
    from tfanet.train import TOKENIZER

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

    return segment, {"kind": "checkpoint", "preset": config.name}


def _from_bundle(folder: Path) -> tuple[Segment, dict[str, Any]]:
    """The runtime without PyTorch."""
    from tfanet.runtime import Predictor

    predictor = Predictor(folder)

    def segment(path: Path, sentences: list[str]) -> list[np.ndarray]:
        return [predictor(path, sentence).logits for sentence in sentences]

    return segment, {"kind": "bundle", "preset": predictor.bundle.manifest["model"]["preset"]}


def _by_picture(samples: list[Sample]) -> Iterator[tuple[Path, list[Sample]]]:
    for path, group in groupby(samples, key=lambda sample: sample.image_path):
        yield path, list(group)


def evaluate(
    model: str | Path,
    data: str | Path,
    dataset: str | None = None,
    split: str = "val",
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Segment every (picture, sentence) of a split and return the metrics, in percent.

    `model` is a bundle folder (run by the runtime), a checkpoint or a preset (run by PyTorch).
    `limit` takes the first so many samples only. Returns {"kind", "preset", "dataset", "split_by",
    "split", "samples", "metrics", "metrics_at_model_size", "seconds"}; the two tables hold mIoU,
    oIoU and P@X, for gRefCOCO gIoU, cIoU, N-acc and T-acc. "metrics" are at the picture's own
    size, to which the logits are resized; at model size the true mask is resized instead, by
    nearest neighbour.

    Raises InputError on a bad model, dataset or limit.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: give a number of samples, 1 or more")
    source = ReferDataset(data, dataset, split, split_by=split_by, images=images)
    samples = list(source[: limit or len(source)])
    is_bundle = Path(model).is_dir()
    segment, facts = _from_bundle(Path(model)) if is_bundle else _from_checkpoint(model)
    kind = GeneralizedMetrics if source.dataset == "grefcoco" else Metrics
    at_picture, at_model = kind(), kind()
    started = time.monotonic()
    for path, group in _by_picture(samples):
        logits = segment(path, [sample.sentence for sample in group])
        for sample, logit in zip(group, logits, strict=True):
            true = sample.mask
            at_picture.update(logits_to_mask(logit, true.shape)[0], true)
            height, width = logit.shape
            small = Image.fromarray(true).resize((width, height), Image.Resampling.NEAREST)
            at_model.update(logit > 0, np.asarray(small))
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
