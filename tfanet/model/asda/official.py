"""Weights by the names of the official ASDA code, and by those of OpenAI's CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.asda.config import ASDAConfig

__all__ = ["from_clip", "from_official", "official_config"]

# What no output depends on. `norm1` and `norm2` are the outermost ones.
_DEAD = re.compile(
    r"visumodel\.(positional_embedding|ln_post\..+|proj)"
    r"|fusion\.lang_attn\..+|fpn\.output_convs\.[01]\..+"
    r"|(up_proj_cat_proj_1|pool_proj_cat_proj_2|proj_cat|up_proj_cat_2|proj_0|norm1|norm2)\..+"
)
_ALIAS = re.compile(r"visu_resblocks\.(\d+)\.clip_module\.(.+)")
_IN_PROJ = re.compile(r"(.+)\.in_proj_(weight|bias)")
_POSITIONS = "textmodel_pos_embed"


def official_config(tensors: Mapping[str, Tensor], config: ASDAConfig) -> ASDAConfig:
    """`config` with the text length of an official state dict, which only a tensor's shape tells.

    Raises:
        InputError: for a length that no ASDA can have.
    """
    positions = tensors.get(_POSITIONS)
    if positions is None or positions.ndim != 3:
        return config
    return replace(config, text_length=positions.shape[1])


def from_official(tensors: Mapping[str, Tensor], config: Any = None) -> dict[str, Tensor]:
    """A state dict of the official code to one of `ASDA`.

    The blocks of the vision tower are stored twice there: the second copy is compared and dropped.
    Q, k and v are parted. What no output depends on is dropped by name; all else keeps its name.

    Raises:
        InputError: where the two copies differ.
    """
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if alias := _ALIAS.fullmatch(name):
            _compare(name, f"visumodel.transformer.resblocks.{alias[1]}.{alias[2]}", tensors)
        elif not _DEAD.fullmatch(name):
            kept |= _parted(name, value)
    return kept


def _compare(name: str, original: str, tensors: Mapping[str, Tensor]) -> None:
    if original not in tensors:
        raise InputError(f"the checkpoint has {name} but lacks {original}, which it repeats")
    one, other = tensors[name], tensors[original]
    if one is not other and not torch.equal(one, other):
        raise InputError(
            f"{name} and {original} are one parameter and differ: the checkpoint is damaged or was "
            "edited by halves, save it again from the model"
        )


def _parted(name: str, value: Tensor) -> dict[str, Tensor]:
    """q, k and v of a projection of all three; anything else as it is."""
    found = _IN_PROJ.fullmatch(name)
    if found is None or value.ndim == 0 or value.shape[0] % 3:
        return {name: value}
    thirds = value.chunk(3)
    return {
        f"{found[1]}.{part}.{found[2]}": third for part, third in zip("qkv", thirds, strict=True)
    }


def from_clip(tensors: Mapping[str, Tensor], config: ASDAConfig) -> dict[str, Tensor]:
    """Where a training starts: both towers by the names of OpenAI's CLIP (ViT-B/16 for the base).

    Load it with `strict=False`, into a network of `config` with fresh weights: nothing else is in
    it. The vision positions, made for another size, are resized bilinearly to the map of patches
    (half-pixel centres), that of the class kept; of the text positions the first L are taken.

    Raises:
        InputError: where a tower is missing or of other sizes than `config` says.
    """
    renamed = {
        "visual.class_embedding": "visumodel.class_embedding",
        "visual.conv1.weight": "visumodel.conv1.weight",
        "token_embedding.weight": "textmodel_token_embedding.weight",
    }
    for end in ("weight", "bias"):
        renamed[f"visual.ln_pre.{end}"] = f"visumodel.ln_pre.{end}"
        renamed[f"ln_final.{end}"] = f"textmodel_ln_final.{end}"
    towers = {"visual.transformer.": "visumodel.transformer.", "transformer.": "textmodel."}
    for name in tensors:
        for theirs, ours in towers.items():
            if name.startswith(theirs):
                renamed[name] = ours + name.removeprefix(theirs)
    wanted = [*renamed, "visual.positional_embedding", "positional_embedding"]
    missing = sorted(name for name in wanted if name not in tensors)
    if missing:
        raise InputError(
            f"the CLIP checkpoint lacks {missing[0]} and {len(missing) - 1} more: give a state "
            "dict by the names of OpenAI's CLIP with a vision transformer"
        )
    started: dict[str, Tensor] = {}
    for theirs, ours in renamed.items():
        started |= _parted(ours, tensors[theirs].float())
    places = _resized(tensors["visual.positional_embedding"].float(), config.grid)
    started["positional_embedding"] = places
    started[_POSITIONS] = tensors["positional_embedding"].float()[None, : config.text_length]
    return started


def _resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + s^2, V) to (1, 1 + h w, V)."""
    side = round((positions.shape[0] - 1) ** 0.5)
    if side * side + 1 != positions.shape[0]:
        raise InputError(
            f"visual.positional_embedding has {positions.shape[0]} positions: expected those of a "
            "class and of a square of patches"
        )
    square = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(square, grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[None, :1], resized.flatten(2).transpose(1, 2)], dim=1)
