"""Checkpoints: safetensors files that carry their configuration, and official VMamba weights."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tfanet.backbone import VMamba
from tfanet.config import PRESETS, TFANetConfig, preset
from tfanet.errors import InputError
from tfanet.model import TFANet

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
    save_file(tensors, str(path), {CONFIG_KEY: json.dumps(model.config.to_dict(), sort_keys=True)})


def load_model(source: str | Path, *, config: TFANetConfig | None = None) -> TFANet:
    """A TFANet in evaluation mode.

    Args:
        source: a `.safetensors` checkpoint, a `.pth` file of a state dict, or a preset's name:
            "tfanet-tiny" comes with its trained weights, "tfanet-base" with random ones (seed 0).
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
    state = _load_pth(path)
    return _fill(config or PRESETS["tfanet-base"], state.get("model", state), path)


def load_vmamba(backbone: VMamba, path: str | Path) -> None:
    """Load an official VMamba v2 checkpoint into a backbone, strictly except for the classifier.

    Linear weights may be (out, in, 1, 1), and the scan's projections may carry their newer names
    and shapes (`x_proj.weight`, `dt_projs.weight`): the numbers are the same.

    Raises:
        InputError: naming missing, unexpected or mis-shaped parameters.
    """
    state = _load_pth(Path(path))
    official = state.get("model", state)
    own = backbone.state_dict()
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
    _load_strictly(backbone, renamed, Path(path))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into a model of any kind, strictly.

    `path` is a safetensors file or a `.pth` file of tensors; in the latter the state dict may lie
    under "state_dict" or "model", and its names may begin with "module.".

    Raises:
        InputError: where the file can't be read, or naming parameters that do not fit.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        state: dict[str, Any] = _read_safetensors(path)[0]
    else:
        state = _load_pth(path)
        state = state.get("state_dict", state.get("model", state))
    _load_strictly(model, {name.removeprefix("module."): v for name, v in state.items()}, path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error


def _load_safetensors(path: Path) -> TFANet:
    tensors, metadata = _read_safetensors(path)
    if CONFIG_KEY not in metadata:
        raise InputError(f"{path} carries no tfanet configuration: write it with tfanet.checkpoint")
    return _fill(TFANetConfig.from_dict(json.loads(metadata[CONFIG_KEY])), tensors, path)


def _load_pth(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the checkpoint")
    try:
        # Never without weights_only: a pickle is a program.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path} is not a plain checkpoint of tensors ({reason}): it was not loaded"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}: expected a dict of tensors")
    return state


def _fill(config: TFANetConfig, tensors: Mapping[str, Tensor], path: Path) -> TFANet:
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and overwritten
        model = TFANet(config)
    _load_strictly(model, tensors, path)
    return model.eval()


def _load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    faults = {
        "lacks": sorted(set(own) - set(tensors)),
        "has the unknown": sorted(set(tensors) - set(own)),
        "has another shape for": sorted(
            name for name in own if name in tensors and own[name].shape != tensors[name].shape
        ),
    }
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{path} {fault} {names[0]}{more}: it is of another model")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in tensors.items()})
