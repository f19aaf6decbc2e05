"""What a training starts from and needs beside the model, and how it is saved and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tfanet.errors import InputError
from tfanet.files import whole_file
from tfanet.model.checkpoint import family_of, load_model
from tfanet.model.family import find_preset
from tfanet.weights import write_safetensors

__all__ = ["Average", "load_start", "load_state", "save_state"]


def load_start(init: str | Path, preset: str) -> Any:
    """The model of a checkpoint to start from; InputError unless it is of the preset's family."""
    start = load_model(init)
    family, found = find_preset(preset)[0], family_of(start)
    if found is not family:
        raise InputError(
            f"{init} holds a {found.title}, the preset {preset} is a {family.title}: name a preset "
            f"of {found.title}, too"
        )
    return start


class Average:
    """Exponential moving average of a model's weights; it starts by following them closely."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    facts: dict[str, Any],
) -> None:
    """Write weights, AdamW moments, averaged weights and `facts` (JSON) to one safetensors file.

    The file appears whole or not at all.
    """
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"ema.{k}": v for k, v in average.weights.items()}
    # Tied weights would share memory, which safetensors refuses.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with whole_file(path) as part:
        write_safetensors(part, plain, {"training": json.dumps(facts, sort_keys=True)})


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> dict[str, Any]:
    """Put a saved state back in place and return its `facts`.

    Raises InputError where the file is missing, damaged, or of another model or options.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        model.load_state_dict(part("model."))
        for name, parameter in model.named_parameters():
            moments = {key: part(f"adam.{key}.").get(name) for key in _MOMENTS}
            if moments["step"] is not None:
                optimizer.state[parameter] = {
                    # AdamW keeps its step counter on the CPU.
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in moments.items()
                    if value is not None
                }
        if average is not None:
            saved = part("ema.")
            for name, value in average.weights.items():
                value.copy_(saved[name])
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path} cannot be resumed from ({reason}): use the preset and options that made it"
        ) from error
    return facts


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
