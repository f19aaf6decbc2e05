"""What the image graph gives for a sentence, by role, as a `Prediction`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing
from tfanet.runtime.prediction import Instance, Prediction, Sentence, words_of
from tfanet.runtime.preprocess import plane_to_mask, probability

__all__ = ["INSTANCE", "prediction_of"]

RELEVANT = 0.5  # an instance is meant from here on
INSTANCE = Postprocessing("logit", 0.0)


def prediction_of(
    found: Mapping[str, np.ndarray],
    sentence: Sentence,
    image: Image.Image,
    pre: Preprocessing,
    post: Postprocessing,
    instance: Postprocessing = INSTANCE,
) -> Prediction:
    """A prediction, its timings empty.

    Args:
        found: of each role the values, without the batch. image: the picture as RGB. post,
            instance: of the mask and of the masks of instances.
    """
    size = (image.height, image.width)
    logits = found["mask"][0]
    mask, values = plane_to_mask(logits, size, pre, post)
    no_target, instances = None, None
    if "no_target" in found:
        no_target = float(probability(found["no_target"])[0])
        if found["no_target"][0] > 0:
            mask = np.zeros_like(mask)
    if "instances" in found:
        order = np.argsort(-found["relevance"], kind="stable")
        alignments = found.get("alignment", [None] * len(order))
        instances = tuple(
            Instance(
                plane_to_mask(found["instances"][index], size, pre, instance)[0],
                float(found["relevance"][index]),
                alignments[index],
                words_of(sentence, alignments[index]),
            )
            for index in order
            if found["relevance"][index] >= RELEVANT
        )
    score = _score(values, mask, post.value)
    return Prediction(
        mask, score, logits, {}, no_target, instances, text=sentence.text, image=image
    )


def _score(values: np.ndarray, mask: np.ndarray, kind: str) -> float:
    """Mean probability of a mask's pixels; `values` are logits or probabilities."""
    inside = values[mask]
    if not inside.size:
        return 0.0
    if kind == "logit":
        # In place: of 64 megapixels each step would take 256 MB.
        np.negative(inside, out=inside)
        np.exp(inside, out=inside)
        inside += 1
        np.divide(1, inside, out=inside)
    return float(np.mean(inside))
