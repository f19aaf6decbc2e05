"""What a layer computes in float32, whatever the type around it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wide"]


def wide(x: Tensor) -> Tensor:
    """x in float32 where its type is narrower; float64 stays, for references."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
