"""Checkpoints: safetensors files that carry their configuration, and official VMamba weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tfanet.errors import InputError
from tfanet.model.backbone import VMamba
from tfanet.model.config import PRESETS, TFANetConfig, preset
from tfanet.model.tfanet import TFANet
from tfanet.weights import (
    choose_level,
    load_weights,
    read_pth,
    read_safetensors,
    refuse_misfits,
)

__all__ = ["load_model", "load_vmamba", "load_weights", "save_checkpoint"]

CONFIG_KEY = "tfanet_config"
SEED = 0
# The scan's own parameters decide over thousands of steps: they stay float32 in a half checkpoint.
_FULL_PRECISION = ("A_logs", "Ds", "dt_projs_bias")


def save_checkpoint(path: str | Path, model: TFANet, *, half: bool = False) -> None:
    """Write the weights and the configuration to one safetensors file.

    `half` stores float16, except for the scan's A, D and delta bias; `load_model` reads float32.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        shrink = half and value.is_floating_point() and not name.endswith(_FULL_PRECISION)
        value = value.detach().cpu()
        tensors[name] = (value.half() if shrink else value).clone().contiguous()
    config = _by_sizes(model.config).to_dict()
    save_file(tensors, str(path), {CONFIG_KEY: json.dumps(config, sort_keys=True)})


def load_model(source: str | Path, *, config: TFANetConfig | None = None) -> TFANet:
    """A TFANet in evaluation mode.

    Args:
        source: a `.safetensors` checkpoint, a `.pth` file of a state dict, or a preset's name:
            "tfanet-tiny" comes with its trained weights, "tfanet-base" with random ones (seed 0).
            No other file is opened, whatever names it holds.
        config: needed for a `.pth` file, which does not carry one; default: the base preset.

    Raises:
        InputError: where the file is missing, damaged, or does not fit its configuration.
    """
    name = str(source)
    if name in PRESETS:
        shipped = resources.files("tfanet") / "assets" / f"{name}.safetensors"
        if shipped.is_file():
            with resources.as_file(shipped) as path:
                return _load_safetensors(path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return TFANet(preset(name)).eval()
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: give a checkpoint file or one of {', '.join(PRESETS)}"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    config = config or PRESETS["tfanet-base"]
    return _fill(config, choose_level(read_pth(path), set(_outline(config))), path)


def load_vmamba(backbone: VMamba, path: str | Path) -> None:
    """Load an official VMamba v2 checkpoint into a backbone, strictly except for the classifier.

    Linear weights may be (out, in, 1, 1), and the scan's projections may carry their newer names
    and shapes (`x_proj.weight`, `dt_projs.weight`): the numbers are the same.

    Raises:
        InputError: naming missing, unexpected or mis-shaped parameters.
    """
    own = backbone.state_dict()
    official = choose_level(read_pth(Path(path)), set(own))
    renamed: dict[str, Tensor] = {}
    for name, value in official.items():
        if name.startswith(("classifier.", "outnorm")):
            continue
        name = name.replace("x_proj.weight", "x_proj_weight")
        name = name.replace("dt_projs.weight", "dt_projs_weight")
        known = own.get(name)
        reshapes = name.endswith(("x_proj_weight", "dt_projs_weight")) or (
            value.ndim == 4 and value.shape[2:] == (1, 1)
        )
        if known is not None and reshapes and known.numel() == value.numel():
            value = value.reshape(known.shape)
        renamed[name] = value
    refuse_misfits(own, renamed, Path(path))
    backbone.load_state_dict(renamed)


def _load_safetensors(path: Path) -> TFANet:
    tensors, metadata = read_safetensors(path)
    if CONFIG_KEY not in metadata:
        raise InputError(f"{path} carries no tfanet configuration: write it with `save_checkpoint`")
    try:
        config = TFANetConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its configuration is not readable ({error})") from error
    return _fill(config, tensors, path)


def _by_sizes(config: TFANetConfig) -> TFANetConfig:
    """With a text tower that is built, not opened: a file of weights gives all of them."""
    return replace(config, text=replace(config.text, pretrained=None))


def _outline(config: TFANetConfig) -> dict[str, Tensor]:
    """Names and shapes of the weights; a file's sizes are looked at before they take memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return TFANet(_by_sizes(config)).state_dict()
        except RuntimeError as error:  # a size that no tensor can have
            raise InputError(
                f"no model can be built from the model configuration ({error})"
            ) from error


def _fill(config: TFANetConfig, tensors: Mapping[str, Tensor], path: Path) -> TFANet:
    refuse_misfits(_outline(config), tensors, path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and overwritten
        model = TFANet(_by_sizes(config))
    model.load_state_dict(tensors)
    return model.eval()
