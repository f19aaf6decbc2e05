"""The two graphs of a bundle: their files, and what goes in and comes out by name.

A sentence is encoded once by TEXT and used on any number of pictures by IMAGE. Which features the
text graph gives, and which of them the image graph takes, is the model's own; the manifest says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = [
    "GRAPHS",
    "IMAGE",
    "TEXT",
    "image_feed",
    "names_of",
    "random_tokens",
    "run_graph",
    "text_features",
]

TEXT, IMAGE = "text.onnx", "image.onnx"
GRAPHS = (TEXT, IMAGE)


def names_of(values: Iterable[Any]) -> list[str]:
    """Names of a graph's inputs or outputs."""
    return [value.name for value in values]


def run_graph(graph: Any, feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A graph's outputs by name, of its inputs by name."""
    return dict(zip(names_of(graph.get_outputs()), graph.run(None, feed), strict=True))


def text_features(graph: Any, token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the text graph gives for token ids (B, L) int64, by name."""
    return run_graph(graph, {"token_ids": token_ids})


def image_feed(
    names: Iterable[str], image: Any, features: Mapping[str, Any], mask: Any
) -> dict[str, Any]:
    """The image graph's inputs by name.

    Args:
        names: of its inputs; those that are none of the model's are left to the caller.
        image: (B, 3, H, W). features: the text graph's outputs. mask: (B, L), 1 from the start to
            the end token, else 0.
    """
    known = {"image": image, **features, "word_mask": mask}
    return {name: known[name] for name in names if name in known}


def random_tokens(rng: np.random.Generator, text: Any, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (1, L) int64 and word mask (1, L) float32 of a sentence of random words.

    Args:
        text: a `Tokenization`. words: how many, 1 to L - 2.
    """
    ids = np.full((1, text.length), text.pad_id, np.int64)
    mask = np.zeros((1, text.length), np.float32)
    ids[0, 0], ids[0, words + 1] = text.sos_id, text.eos_id
    # From 1: a pad in the middle of a sentence would contradict the word mask.
    ids[0, 1 : words + 1] = rng.integers(1, text.sos_id, words)
    mask[0, : words + 2] = 1
    return ids, mask
