"""Weights from any trainer's files: where in the file they are, and whether all of them fit."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tfanet.errors import InputError, StorageError, plain

__all__ = [
    "choose_level",
    "load_weights",
    "misfits",
    "read_pth",
    "read_safetensors",
    "refuse_misfits",
    "write_safetensors",
]

State = Mapping[str, Tensor]

# Of two levels that fit equally well, averaged weights first: they are what is published and
# measured (timm and Real-ESRGAN choose so too); then the trainers' usual names.
_AVERAGED = ("params_ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_USUAL = ("state_dict", "model_state_dict", "model", "params", "net", "generator", "module")
_MAX_LEVELS, _MAX_DEPTH = 200, 4
_TRIES = 4
_SHOWN = 5  # names of one kind in a message


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Raises InputError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of tensors, contiguous and sharing no memory. Raises StorageError."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise StorageError(f"cannot write {path.name}: {error}") from error


class _NumpyKind:
    """What a pickle says of the kind of a NumPy number: its letter and width, and its byte order.

    It stands in for `numpy.dtype`, of which a file could make anything.
    """

    def __init__(self, kind: str, *_: Any) -> None:
        self.kind = kind
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numpy_number(kind: _NumpyKind, data: bytes) -> bool | int | float:
    """A NumPy number of a pickle, as Python's own."""
    if kind.kind[0] not in "biuf" or kind.order not in ("<", ">", "=", "|"):
        raise ValueError(f"a NumPy value of the kind {kind.kind!r:.20} is no number")
    (number,) = np.frombuffer(data, np.dtype(kind.kind).newbyteorder(kind.order))
    return number.item()


# Beside tensors and Python's own data: the options of a training, and numbers of its log.
_PLAIN: list[Any] = [
    argparse.Namespace,
    (_NumpyKind, "numpy.dtype"),
    *((_numpy_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_pth(path: Path) -> dict[Any, Any]:
    """The dict in a `.pth` file; nothing but plain data and tensors is read.

    An `argparse.Namespace` is plain data too; NumPy's numbers become Python's.

    Raises:
        InputError: for a file that is damaged or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the checkpoint")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            warnings.simplefilter("ignore")  # of forms that it may not know: then it fails
            # Never without weights_only: a pickle is a program.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"{path} is not a plain checkpoint of tensors ({reason}): it was not loaded"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}: expected a dict of tensors")
    return state


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Load a state dict into a model of any kind: with the model's own code, and nothing left over.

    `path` is a safetensors file, or a `.pth` file of plain data. The weights may lie under any
    name, such as "params", "state_dict" or "model", and behind a prefix such as "module.": the
    level whose names fit the model best is taken, of equals averaged weights ("params_ema", "ema").

    Returns:
        The level that was taken: "params_ema", "state_dict / module.", or "" for the file itself.

    Raises:
        InputError: where the file can't be read, or naming parameters that do not fit.
    """
    path = Path(path)
    whole = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pth(path)
    levels = _ranked(whole, set(model.state_dict()))
    if not levels:
        raise InputError(f"{path} holds no weights by name: expected a dict of tensors")
    faults = []
    for name, state in levels[:_TRIES]:
        try:
            _load(model, state, path)
        except InputError as error:
            faults.append(error)
        else:
            return name
    raise faults[0]


def choose_level(document: Mapping[Any, Any], names: set[str]) -> State:
    """The level of a checkpoint whose names fit best; empty where it holds no tensor."""
    levels = _ranked(document, names)
    return levels[0][1] if levels else {}


def misfits(own: State, tensors: State) -> str:
    """What of a file does not fit a model, the first five of each kind; "" where all of it fits."""
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    return _listed(
        ("lacks", set(own) - set(tensors)),
        ("has the unknown", set(tensors) - set(own)),
        ("has another shape for", shapes),
        (_NO_FRACTIONS, _whole_numbers(own, tensors)),
    )


def refuse_misfits(own: State, tensors: State, path: Path) -> None:
    """Raises InputError where names or shapes are not the same."""
    _refuse(path, misfits(own, tensors))


_NO_FRACTIONS = "has no floating-point numbers for"


def _whole_numbers(own: State, tensors: State) -> list[str]:
    """Whole numbers for fractions: a quantised checkpoint, whose scales would be lost."""
    return [
        name
        for name, value in tensors.items()
        if name in own and own[name].is_floating_point() and not value.is_floating_point()
    ]


def _listed(*faults: tuple[str, Iterable[str]]) -> str:
    """Each fault that has names, and the first of them."""
    parts = []
    for fault, found in faults:
        names = sorted(found)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        if names:
            parts.append(f"{fault} {', '.join(f'{n:.100}' for n in names[:_SHOWN])}{more}")
    return ", ".join(parts)


def _refuse(path: Path, fault: str) -> None:
    if fault:
        raise InputError(f"{path} {fault}: it is of another model")


def _ranked(document: Mapping[Any, Any], names: set[str]) -> list[tuple[str, State]]:
    """Every level and prefix of a checkpoint that may be the model's weights, the best first."""
    ranked = []
    for level, state in _levels(document):
        for prefix in _prefixes(state, names):
            part = _without(state, prefix)
            common = len(names.intersection(part))
            leaf = level[-1] if level else ""
            order = (*_AVERAGED, *_USUAL)
            preference = order.index(leaf) if leaf in order else len(order)
            shown = " / ".join((*level, prefix) if prefix else level)
            # What fits, then what is too much, then the names, then what is larger.
            key = (-common, len(part) - common, preference, -len(part), len(level), len(prefix))
            ranked.append((key, shown, part))
    return [(shown, part) for _, shown, part in sorted(ranked, key=lambda entry: entry[:2])]


def _levels(
    document: Mapping[Any, Any], level: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dict in it that holds tensors by name, with the way to it."""
    open_levels: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [(level, document)]
    seen = 0
    while open_levels and seen < _MAX_LEVELS:
        level, found = open_levels.pop(0)
        seen += 1
        tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            yield level, _with_versions(tensors, getattr(found, "_metadata", None))
        if len(level) < _MAX_DEPTH:
            for key, value in found.items():
                if isinstance(key, str) and isinstance(value, Mapping):
                    open_levels.append(((*level, key), value))


class _State(dict[str, Tensor]):
    """A state dict with the versions of its modules, which convert old forms by them."""

    _metadata: Any


def _with_versions(tensors: State, versions: Any) -> State:
    state = _State(tensors)
    if isinstance(versions, Mapping):
        state._metadata = versions
    return state


def _prefixes(state: State, names: set[str]) -> set[str]:
    """What may stand before the model's names in this level: nothing, or what is before known ones.

    Some names suffice to find it; the longest are the least likely to be the end of others.
    """
    known = sorted(names, key=lambda name: (-name.count("."), -len(name), name))[:8]
    found = {""}
    for key in state:
        found |= {key.removesuffix(n) for n in known if key.endswith(f".{n}")}
        if key.startswith("module."):
            found.add("module.")
    return found


def _without(state: State, prefix: str) -> State:
    if not prefix:
        return state
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        stem = prefix[:-1]
        versions = {
            name.removeprefix(stem).removeprefix("."): value
            for name, value in versions.items()
            if isinstance(name, str) and (name == stem or name.startswith(prefix))
        }
    return _with_versions(part, versions)


def _load(model: nn.Module, state: State, path: Path) -> None:
    """With the model's own conversions of old names and shapes, then strictly."""
    own = model.state_dict(keep_vars=True)
    _refuse(path, _listed((_NO_FRACTIONS, _whole_numbers(own, state))))
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # a model's own code may raise anything
        shapes = re.findall(r"size mismatch for ([^\s:]+):", str(error))
        _refuse(path, _listed(("has another shape for", shapes)))
        raise InputError(
            f"{path} can't be loaded: {type(error).__name__}: {plain(str(error))[:200]}"
        ) from error
    # One parameter under two names is often saved under one.
    loaded = {id(value) for name, value in own.items() if name not in missing}
    lacking = [n for n in missing if id(own.get(n)) not in loaded]
    _refuse(path, _listed(("lacks", lacking), ("has the unknown", unexpected)))
