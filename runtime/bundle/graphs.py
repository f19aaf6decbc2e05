"""The two graphs of a bundle: their files, and the names of what goes in and comes out.

A sentence is encoded once by TEXT and used on any number of pictures by IMAGE.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["GRAPHS", "IMAGE", "IMAGE_INPUTS", "TEXT", "TEXT_OUTPUTS", "image_feed"]

TEXT, IMAGE = "text.onnx", "image.onnx"
GRAPHS = (TEXT, IMAGE)
TEXT_OUTPUTS = ("word_features", "sentence_feature")
IMAGE_INPUTS = ("image", *TEXT_OUTPUTS, "word_mask")


def image_feed(image: Any, features: Iterable[Any], mask: Any) -> dict[str, Any]:
    """The image graph's inputs by name.

    Args:
        image: (B, 3, H, W). features: the text graph's outputs, (B, T, L) and (B, T).
        mask: (B, L), 1 from the start to the end token, else 0.
    """
    return dict(zip(IMAGE_INPUTS, (image, *features, mask), strict=True))
