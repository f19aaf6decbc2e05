"""The user's model from "package.module:factory", with errors in one line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch
from torch import nn

from tfanet.errors import InputError, MissingDependencyError

__all__ = ["load_factory", "reason"]

SEED = 0


def load_factory(name: str) -> nn.Module:
    """The module that "package.module:factory" stands for; random weights are always the same."""
    path, _, factory = name.partition(":")
    if not path or not factory:
        raise InputError(f"model is {name!r}, expected package.module:factory")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no module {error.name!r}: run in its folder, or put that on PYTHONPATH"
            ) from error
        raise MissingDependencyError(
            f"{path} imports {error.name!r}, which is not installed: install it"
        ) from error
    except Exception as error:
        raise InputError(f"importing {path} failed: {reason(error)}") from error
    for part in factory.split("."):
        if not hasattr(found, part):
            raise InputError(f"{path} has no {factory!r}: name a function that makes the model")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InputError(f"{name} is a {type(found).__name__}, expected a model or a function")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            try:
                found = found()
            except Exception as error:
                raise InputError(f"{name}() failed: {reason(error)}") from error
    if not isinstance(found, nn.Module):
        raise InputError(f"{name} gives a {type(found).__name__}, expected a torch.nn.Module")
    return found


def reason(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    line = (str(error).strip() or "no message").split("\n")[0]
    return f"{type(error).__name__}: {line}"
