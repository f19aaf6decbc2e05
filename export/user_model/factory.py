"""The user's model from "package.module:factory", with errors in one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import torch
from torch import nn

from tfanet.errors import InputError, MissingDependencyError

__all__ = ["current_folder", "load_factory", "reason"]

SEED = 0


def load_factory(name: str) -> nn.Module:
    """The module that "package.module:factory" stands for; random weights are always the same."""
    path, _, factory = name.partition(":")
    if not path or not factory:
        raise InputError(f"model is {name!r}, expected package.module:factory")
    with current_folder():
        return _load(name, path, factory)


def _load(name: str, path: str, factory: str) -> nn.Module:
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


@contextmanager
def current_folder() -> Iterator[None]:
    """While it lasts, modules are looked for in the current folder first, as `python -m` does.

    A project's own copy of an installed package must win, or another model would be exported.
    Afterwards the folder comes last: it may hold data, and what PyTorch imports later is not to be
    a file among them. No module of the standard library is ever taken from there, not even one that
    only other systems have and libraries try to import.
    """
    folder = os.getcwd()
    finder = _Folder(folder)
    if "" in sys.path or folder in sys.path or finder in sys.meta_path:
        yield
        return
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.meta_path.append(finder)


@dataclass(frozen=True)
class _Folder(MetaPathFinder):
    """Finds modules and packages of one folder; a folder without `__init__.py` is none."""

    folder: str

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self.folder], target)
        return None if spec is None or spec.origin is None else spec


def reason(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    line = (str(error).strip() or "no message").split("\n")[0]
    return f"{type(error).__name__}: {line}"
