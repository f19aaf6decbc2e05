"""The pictures of a parity report, and what PyTorch makes of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tfanet.export.compare import Case
from tfanet.export.parity.choices import chosen, recorded
from tfanet.model.family import Choice
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor, plane_to_mask
from tfanet.runtime.tokenizer import tokenizer_of

__all__ = ["Reference", "Sample", "mask_of", "median_milliseconds", "prepare", "run_reference"]

TIMED = 3  # runs of one picture


@dataclass(frozen=True)
class Sample:
    """A picture with its sentence, and both as the graphs take them."""

    sentence: str
    picture: Image.Image
    case: Case


@dataclass(frozen=True)
class Reference:
    """What PyTorch gives.

    Attributes:
        logits: of each sample, (h, w). stages: what each part of the model gives, for each sample.
        choices: that the model makes. made: of these, for each sample. milliseconds: of a run.
    """

    logits: list[np.ndarray]
    stages: list[dict[str, np.ndarray]]
    choices: tuple[Choice, ...]
    made: list[list[dict[str, Any]]]
    milliseconds: float


def prepare(bundle: Bundle, path: str | Path, sentence: str) -> Sample:
    picture = load_image(path)
    ids, mask = tokenizer_of(bundle)(sentence)
    image = picture_to_tensor(picture, bundle.manifest.preprocessing)[None]
    return Sample(sentence, picture, Case(Path(path).name, image, ids, mask))


def run_reference(
    model: nn.Module, samples: Sequence[Sample], names: Sequence[str], choices: tuple[Choice, ...]
) -> Reference:
    """PyTorch's logits, what the modules of these names give and what it chose."""
    logits, stages = [], []

    def run(sample: Sample) -> np.ndarray:
        case = sample.case
        with torch.no_grad():
            z = model(*map(torch.from_numpy, (case.image, case.token_ids, case.word_mask)))
        values: np.ndarray = z[0, 0].numpy()
        return values

    for sample in samples:
        found: dict[str, np.ndarray] = {}
        with recorded(model, names, found):
            logits.append(run(sample))
        stages.append(found)
    made = [chosen(choices, found) for found in stages]
    milliseconds = median_milliseconds(lambda: run(samples[0]))
    return Reference(logits, stages, choices, made, milliseconds)


def median_milliseconds(run: Callable[[], object]) -> float:
    """Of a few runs of what has run before."""
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def mask_of(bundle: Bundle, sample: Sample, logits: np.ndarray) -> np.ndarray:
    """The mask at the picture's own size, (H, W) bool."""
    size = (sample.picture.height, sample.picture.width)
    manifest = bundle.manifest
    return plane_to_mask(logits, size, manifest.preprocessing, manifest.postprocessing)[0]
