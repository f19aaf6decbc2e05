"""How a family is trained: what it minimises, and the recipe of each preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Batch", "Recipe", "Training"]

# By name: image (B, 3, H, W), token_ids (B, L) int64, word_mask (B, L); target (B, 1, H, W) in
# {0, 1}, the union of instances, a list of B tensors (n, H, W) in {0, 1} of what is meant;
# no_target (B,) bool, whether that is nothing. Floats are float32.
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What a training uses where nothing else is said; see `TrainOptions`."""

    epochs: float
    batch: int
    lr: float
    rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 0
    clip: float = 0.0
    ema: float = 0.0
    by_picture: bool = False


@dataclass(frozen=True)
class Training:
    """How networks of a family are trained.

    Attributes:
        loss: of a network in training mode and a `Batch`, the scalar to minimise, and the mask
            logit (B, 1, h, w) that it came from, at the picture's size or a smaller one.
        recipes: by preset.
        maps: of a network and pictures (B, 3, H, W), what its backbone gives where nothing is said:
            maps (B, C_i, h_i, w_i), the largest first, for `tfanet pretrain`. None: it has none.
        objects: of a configuration and a number of categories, a module whose call with a network
            and a `Batch` gives the scalar to minimise, and which share of all annotated objects
            gets its category, for `tfanet pretrain --part queries`; see `ObjectDataset`. None: the
            family has no queries that hold objects.
        no_decay: last parts of the names of parameters that weight decay leaves alone, besides all
            vectors and scalars.
    """

    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    recipes: Mapping[str, Recipe]
    maps: Callable[[Any, Tensor], list[Tensor]] | None = None
    objects: Callable[[Any, int], nn.Module] | None = None
    no_decay: tuple[str, ...] = ()
