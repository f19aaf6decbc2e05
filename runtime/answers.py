"""Pictures and sentences to predictions: each prepared once, pairs of them run in batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing
from tfanet.runtime.picture import Picture, load_image
from tfanet.runtime.postprocess import prediction_of
from tfanet.runtime.prediction import Prediction, Sentence
from tfanet.runtime.preprocess import picture_to_tensor
from tfanet.runtime.running import RunningBundle

__all__ = ["Asked", "Prepared", "answers", "prepare"]

BATCH = 4  # pictures and sentences that run together: more are no faster and take more memory


class Prepared(NamedTuple):
    """A picture as the image graph takes it (3, h, w), as RGB, and how long that took, in ms."""

    tensor: np.ndarray
    image: Image.Image
    milliseconds: float


class Asked(NamedTuple):
    """What pictures are asked for: sentences, how masks are made, and ms of encoding."""

    sentences: list[Sentence]
    mask: Postprocessing
    instance: Postprocessing
    milliseconds: float


def prepare(source: Picture, facts: Preprocessing) -> Prepared:
    """Any picture as a bundle prepares it; raises ImageError where it cannot be used."""
    started = time.perf_counter()
    image = load_image(source)
    tensor = picture_to_tensor(image, facts)
    return Prepared(tensor, image, 1e3 * (time.perf_counter() - started))


def answers(
    running: RunningBundle, pictures: Iterable[Prepared], asked: Asked
) -> Iterator[Prediction]:
    """Of each picture its predictions in the order of sentences, run in full batches."""
    batch = min(BATCH, running.largest_batch)
    waiting: list[tuple[Prepared, Sentence]] = []
    for picture in pictures:
        for sentence in asked.sentences:
            waiting.append((picture, sentence))
            if len(waiting) == batch:
                yield from _together(running, waiting, asked)
                waiting = []
    if waiting:
        yield from _together(running, waiting, asked)


def _together(
    running: RunningBundle, pairs: list[tuple[Prepared, Sentence]], asked: Asked
) -> Iterator[Prediction]:
    started = time.perf_counter()
    images = np.stack([picture.tensor for picture, _ in pairs])
    found = running.run(images, [sentence for _, sentence in pairs])
    ran = 1e3 * (time.perf_counter() - started)
    for row, (picture, sentence) in enumerate(pairs):
        started = time.perf_counter()
        prediction = prediction_of(
            {role: values[row] for role, values in found.items()},
            sentence,
            picture.image,
            running.bundle.manifest.preprocessing,
            asked.mask,
            asked.instance,
        )
        timings = {
            "preprocess": picture.milliseconds,
            "text": asked.milliseconds,
            "image": ran,
            "postprocess": 1e3 * (time.perf_counter() - started),
        }
        yield replace(prediction, timings={**timings, "total": sum(timings.values())})
