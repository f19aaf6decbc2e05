"""Checkpoints of every family: safetensors that carry their configuration, and official files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfanet.errors import InputError
from tfanet.model.config import Config
from tfanet.model.family import (
    FAMILIES,
    Family,
    family_of_config,
    find_family,
    find_preset,
    is_preset,
    presets,
)
from tfanet.model.shipped import graph_weights, rest_of
from tfanet.runtime.shipped import shipped_bundle
from tfanet.weights import (
    choose_level,
    load_weights,
    misfits,
    read_pth,
    read_safetensors,
    write_safetensors,
)

__all__ = ["family_of", "load_model", "load_weights", "save_checkpoint"]

CONFIG_KEY, FAMILY_KEY = "tfanet_config", "tfanet_family"
SEED = 0


def family_of(model: nn.Module) -> Family:
    """The family that a network belongs to, by its configuration.

    Raises:
        InputError: where it is a network of no family here.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Config):
        kind = type(model).__name__
        raise InputError(f"the model is a {kind}: give one of {', '.join(FAMILIES)}")
    return family_of_config(config)


def save_checkpoint(path: str | Path, model: nn.Module, *, half: bool = False) -> None:
    """Write the weights and the configuration to one safetensors file.

    `half` stores float16, except for what its family keeps in full (the scan's A, D and delta
    bias); `load_model` reads float32.
    """
    family = family_of(model)
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        shrink = half and value.is_floating_point() and not name.endswith(family.full_precision)
        value = value.detach().cpu()
        tensors[name] = (value.half() if shrink else value).clone().contiguous()
    config: Any = model.config
    facts = json.dumps(config.by_sizes().to_dict(), sort_keys=True)
    write_safetensors(Path(path), tensors, {CONFIG_KEY: facts, FAMILY_KEY: family.name})


def load_model(source: str | Path, *, config: Config | None = None) -> Any:
    """A network in evaluation mode.

    Args:
        source: a `.safetensors` checkpoint, a `.pth` file of a state dict, or a preset's name:
            tfanet-tiny comes with its trained weights, others with random ones (seed 0). No other
            file is opened, whatever names it holds.
        config: of a `.pth` file, which does not carry one; default: the base preset of the family
            that the names in the file belong to.

    Raises:
        InputError: where the file is missing, damaged, or does not fit its configuration.
    """
    name = str(source)
    if is_preset(name):
        rest = rest_of(name)
        if rest.is_file():
            return _load_safetensors(rest, graph_weights(shipped_bundle(name)))
        family, chosen = find_preset(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return family.network(chosen).eval()
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: give a checkpoint file or one of {', '.join(presets())}"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    return _load_official(path, config)


def _load_safetensors(path: Path, others: Mapping[str, Tensor] | None = None) -> nn.Module:
    """`others`: where the weights are that the file does not hold, if it is not a whole one."""
    tensors, metadata = read_safetensors(path)
    if CONFIG_KEY not in metadata:
        raise InputError(f"{path} carries no tfanet configuration: write it with `save_checkpoint`")
    # Before there were several families, no file said which.
    family = find_family(metadata.get(FAMILY_KEY, FAMILIES[0]))
    try:
        config = family.config.from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its configuration is not readable ({error})") from error
    if others is not None:
        outline = _outline(family, config)
        tensors = {name: others[name] for name in outline.keys() & others.keys()} | tensors
    return _fill(family, config, tensors, path)


def _load_official(path: Path, config: Config | None) -> nn.Module:
    document = read_pth(path)
    # Of all families: of a file of another one, too, the weights are found.
    marks = {mark for name in FAMILIES for mark in find_family(name).marks}
    if config is None:
        family = _recognised(choose_level(document, marks)) or find_family(FAMILIES[0])
        chosen: Config = family.presets[f"{family.name}-base"]
    else:
        family, chosen = family_of_config(config), config
    tensors = choose_level(document, marks.union(_outline(family, chosen)))
    if _recognised(tensors) in (None, family):
        if config is None and family.official_config is not None:
            chosen = family.official_config(tensors, chosen)
        if family.from_official is not None:
            tensors = family.from_official(tensors, chosen)
    return _fill(family, chosen, tensors, path)


def _recognised(tensors: Mapping[str, Tensor]) -> Family | None:
    """The family of which most marks are among the names; None where none is."""
    found = {name: sum(mark in tensors for mark in find_family(name).marks) for name in FAMILIES}
    best = max(FAMILIES, key=found.__getitem__)
    return find_family(best) if found[best] else None


def _looks_like(family: Family, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Of weights that do not fit: what they are instead, as far as marks and sizes tell."""
    seen = _recognised(tensors)
    if seen is not None and seen is not family:
        return f"it looks like a checkpoint of {seen.title}"
    for mark in family.marks:
        if mark in own and mark in tensors and own[mark].shape != tensors[mark].shape:
            for name, preset in family.presets.items():
                if not misfits(_outline(family, preset), tensors):
                    return f"it looks like {name}"
            theirs, ours = tuple(tensors[mark].shape), tuple(own[mark].shape)
            return f"its {mark} is {theirs}, not {ours}, so it is {family.title} of another size"
    return "it is of another model"


def _outline(family: Family, config: Config) -> dict[str, Tensor]:
    """Names and shapes of the weights; a file's sizes are looked at before they take memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return family.network(config.by_sizes()).state_dict()
        except RuntimeError as error:  # a size that no tensor can have
            raise InputError(
                f"no model can be built from the model configuration ({error})"
            ) from error


def _fill(family: Family, config: Config, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    own = _outline(family, config)
    fault = misfits(own, tensors)
    if fault:
        raise InputError(f"{path} {fault}: {_looks_like(family, own, tensors)}")
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and overwritten
        model = family.network(config.by_sizes())
    model.load_state_dict(tensors)
    return model.eval()
