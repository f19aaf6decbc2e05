"""Weights by rule, in the place of an official file that is not at hand.

The golden outputs in tests/model/golden/ are what the official networks compute with them.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["GOLDEN", "golden_image", "read_names", "weights_by_rule"]

GOLDEN = Path(__file__).parent.parent / "model" / "golden"
EMBEDDINGS = ("embedding", "pos_embed", "query_embed", "query_feat", "level_embed")


def read_names(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of a file of lines "name 512x768", or "name scalar"."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {
        name: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for name, shape in lines
    }


def weights_by_rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of the parameter or buffer of this name, float32, or 0 (int64) for a count."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    x = torch.from_numpy(drawn.astype(np.float32))
    if name.endswith("running_var"):
        return 1 + 0.1 * x.abs()
    if len(shape) < 2:
        return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    if any(part in name for part in EMBEDDINGS):
        return 0.5 * x
    return x / math.prod(shape[1:]) ** 0.5


def golden_image(size: tuple[int, int]) -> Tensor:
    """The normalised picture (1, 3, H, W) that the golden outputs belong to."""
    drawn = np.random.RandomState(1).standard_normal((1, 3, *size))
    return torch.from_numpy(drawn.astype(np.float32))
