"""What graphs are compared on and held to: cases, relative errors, changed pixels, the limits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfanet.errors import GateError
from tfanet.runtime.backends.choose import GraphRunner
from tfanet.runtime.bundle.contract import Tokenization
from tfanet.runtime.bundle.graphs import (
    image_feed,
    names_of,
    random_tokens,
    run_graph,
    text_features,
)

__all__ = [
    "MAX_PIXEL_SHARE",
    "MAX_REL_ERROR",
    "MAX_ROUNDED_SHARE",
    "Case",
    "case_feed",
    "compare_logits",
    "make_cases",
    "relative_error",
    "run_case",
    "run_outputs",
]

MAX_REL_ERROR = 1e-4
MAX_PIXEL_SHARE = 1e-5  # of a mask's pixels that may change
MAX_ROUNDED_SHARE = 1e-2  # the same in a lower precision: beyond it something overflows or is lost


@dataclass(frozen=True)
class Case:
    """Inputs of both graphs."""

    name: str
    image: np.ndarray  # (batch, 3, H, W) float32
    token_ids: np.ndarray  # (batch, L) int64
    word_mask: np.ndarray  # (batch, L) float32


def make_cases(tokens: Tokenization, size: tuple[int, int], dynamic_batch: bool) -> list[Case]:
    """One fixed and some random pictures of `size` (H, W), each with a random sentence."""
    rng = np.random.default_rng(0)

    def sentences(batch: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [
            random_tokens(rng, tokens, int(rng.integers(1, tokens.length - 1)))
            for _ in range(batch)
        ]
        ids, masks = zip(*rows, strict=True)
        return np.concatenate(ids), np.concatenate(masks)

    height, width = size
    waves = np.sin(np.linspace(0, 9, height))[:, None] + np.cos(np.linspace(0, 7, width))[None]
    fixed = np.stack([waves, waves[::-1], waves[:, ::-1]])[None].astype(np.float32)
    cases = [Case("fixed", fixed, *sentences(1))]
    for batch in (1, 2) if dynamic_batch else (1,):
        image = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
        cases.append(Case(f"random, batch {batch}", image, *sentences(batch)))
    return cases


def run_case(text: GraphRunner, image: GraphRunner, case: Case) -> np.ndarray:
    """Mask logits of a case through both graphs."""
    return run_outputs(text, image, case)["mask_logit"]


def run_outputs(text: GraphRunner, image: GraphRunner, case: Case) -> dict[str, np.ndarray]:
    """All that the image graph gives for a case, by name."""
    return run_graph(image, case_feed(text, names_of(image.get_inputs()), case))


def case_feed(text: GraphRunner, inputs: Iterable[str], case: Case) -> dict[str, np.ndarray]:
    """The image graph's `inputs` by name, with the features that the text graph gives."""
    return image_feed(inputs, case.image, text_features(text, case.token_ids), case.word_mask)


def compare_logits(
    case: Case, backend: str, expected: np.ndarray, got: np.ndarray, threshold: float
) -> dict[str, Any]:
    """One row of a report. Raises GateError where a logit is not finite."""
    error = relative_error(got, expected)
    if not math.isfinite(error):
        raise GateError(f"parity: {backend} gives logits that are not finite in case {case.name!r}")
    return {
        "name": case.name,
        "backend": backend,
        "batch": case.image.shape[0],
        "max_rel_error": error,
        "pixels_changed": int(np.count_nonzero((got > threshold) != (expected > threshold))),
        "pixels": int(got.size),
    }


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """max|got - expected| / max|expected| to two digits; infinite where it has no finite value."""
    if got.shape != expected.shape:
        return math.inf
    if not got.size:
        return 0.0
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    error = np.abs(got - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(f"{error:.1e}") if np.isfinite(error) else math.inf
