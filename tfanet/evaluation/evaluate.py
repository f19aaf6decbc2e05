"""Measures a bundle or a checkpoint on one split of a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.data import ReferDataset, Sample
from tfanet.data.masks import mask_to_size
from tfanet.errors import InputError
from tfanet.evaluation.metrics import GeneralizedMetrics, Metrics
from tfanet.evaluation.protocols import PROTOCOLS
from tfanet.progress import Progress
from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor, plane_to_mask

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Model:
    """What is evaluated.

    Attributes:
        segment: one picture and its sentences to a mask logit (h, w) float32 for each, and whether
            the model says that the sentence means nothing; None where it does not say.
        facts: kind, family and preset, for the report.
    """

    segment: Callable[[Path, list[str]], list[tuple[np.ndarray, bool | None]]]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    facts: dict[str, str]


def _from_checkpoint(name: str | Path) -> _Model:
    """PyTorch, on the GPU where there is one."""
    import torch

    from tfanet.model.checkpoint import family_of, load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(name).to(device).eval()
    family, config = family_of(model), model.config
    tokenizer = family.make_tokenizer(config)
    preprocessing = family.preprocessing(config.image_size)

    @torch.inference_mode()
    def segment(path: Path, sentences: list[str]) -> list[tuple[np.ndarray, bool | None]]:
        image = torch.from_numpy(picture_to_tensor(load_image(path), preprocessing))
        ids, words = (torch.from_numpy(a).to(device) for a in tokenizer(sentences))
        batch = image.to(device)[None].expand(len(sentences), -1, -1, -1)
        found = family.run_image(model, batch, family.run_text(model, ids), words)
        by_role = {role: found[name] for name, role in family.image_outputs.items()}
        logits = by_role["mask"][:, 0].float().cpu().numpy()
        if "no_target" not in by_role:
            return [(logit, None) for logit in logits]
        nothing = (by_role["no_target"][:, 0] > 0).tolist()
        return list(zip(logits, nothing, strict=True))

    facts = {"kind": "checkpoint", "family": family.name, "preset": config.name}
    return _Model(segment, preprocessing, family.postprocessing, facts)


def _from_bundle(folder: Path) -> _Model:
    """The runtime without PyTorch."""
    from tfanet.runtime import Predictor

    predictor = Predictor(folder)
    manifest = predictor.bundle.manifest

    def segment(path: Path, sentences: list[str]) -> list[tuple[np.ndarray, bool | None]]:
        return [
            (found.logits, None if found.no_target is None else found.no_target > 0.5)
            for found in predictor(path, sentences)
        ]

    facts = {"kind": "bundle", "family": manifest.family, "preset": manifest.preset}
    return _Model(segment, manifest.preprocessing, manifest.postprocessing, facts)


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
    run together. Returns {"kind", "family", "preset", "dataset", "split_by", "split", "samples",
    "protocol", "metrics", "metrics_at_model_size", "seconds"}; the two tables hold mIoU, oIoU and
    P@X, for generalised data gIoU, cIoU, N-acc, T-acc and P@X. "metrics" are at the picture's own
    size, to which the prediction is resized; at the size of the model's logits the true mask is
    resized instead, by nearest neighbour, and a target too small to survive that is left out.
    "protocol" {"name", "table", "says", "strictly"} is that of the model's authors, see
    `PROTOCOLS`: which of the tables follows it, and how P@X is counted in both. A mask is empty
    where a head of the model says that nothing is meant.

    Raises InputError on a bad model, dataset, limit or batch.
    """
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give a number of samples, 1 or more")
    source = ReferDataset(data, dataset, split, split_by=split_by, images=images)
    samples = list(source[: limit or len(source)])
    found = _from_bundle(Path(model)) if Path(model).is_dir() else _from_checkpoint(model)
    pre, post = found.preprocessing, found.postprocessing
    protocol = PROTOCOLS[found.facts["family"]]
    kind = GeneralizedMetrics if source.generalised else Metrics
    at_picture, at_model = (kind(strictly=protocol.strictly) for _ in range(2))
    started = time.monotonic()
    for path, group in _by_picture(samples, batch):
        predictions = found.segment(path, [sample.sentence for sample in group])
        for sample, (logit, nothing) in zip(group, predictions, strict=True):
            true, no_target = sample.mask, sample.ref.no_target
            small = mask_to_size(true, pre, logit.shape)
            masks = plane_to_mask(logit, true.shape, pre, post)[0], logit > post.logit_threshold
            at_picture.update(masks[0], true, no_target=no_target, says_nothing=nothing)
            if small.any() or no_target:
                at_model.update(masks[1], small, no_target=no_target, says_nothing=nothing)
        if progress is not None:
            progress("evaluating", len(at_picture.ious), len(samples))
    return found.facts | {
        "dataset": source.dataset,
        "split_by": source.split_by,
        "split": split,
        "samples": len(samples),
        "protocol": asdict(protocol),
        "metrics": at_picture.compute(),
        "metrics_at_model_size": at_model.compute(),
        "seconds": time.monotonic() - started,
    }
