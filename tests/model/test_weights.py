"""Weights of a user's model from checkpoints as trainers publish them."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tfanet.errors import InputError
from tfanet.weights import load_weights, read_pth

State = dict[str, Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ModuleDict({"model": nn.Linear(4, 2)})
    )


def filled(model: nn.Module, value: float) -> State:
    return {
        k: torch.full_like(v, value) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


OTHER = {"0.weight": torch.zeros(9, 9), "optimizer": torch.zeros(1)}
LEVELS: dict[str, tuple[Callable[[State], Any], str]] = {
    "the file itself": (lambda s: s, ""),
    "params": (lambda s: {"params": s}, "params"),
    "params_ema": (lambda s: {"params_ema": s}, "params_ema"),
    "lightning": (
        lambda s: {"state_dict": behind("model.", s) | {"loss.w": OTHER["optimizer"]}, "epoch": 3},
        "state_dict / model.",
    ),
    "distributed": (lambda s: {"state_dict": behind("module.", s)}, "state_dict / module."),
    "compiled": (
        lambda s: {"model": behind("module._orig_mod.", s)},
        "model / module._orig_mod.",
    ),
    "nested": (lambda s: {"checkpoint": {"net": s, "step": 4}, "note": "x"}, "checkpoint / net"),
    "a GAN": (lambda s: {"discriminator": OTHER, "generator": s}, "generator"),
    "unheard of": (lambda s: {"mine_v2": s, "optimizer": {"state": {0: OTHER}}}, "mine_v2"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEVELS)
def test_weights_are_found_at_any_level(tmp_path: Path, name: str) -> None:
    wrap, level = LEVELS[name]
    model = network()
    torch.save(wrap(filled(model, 0.5)), tmp_path / "c.pth")
    assert load_weights(model, tmp_path / "c.pth") == level
    assert all((p == 0.5).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("averaged", "trained"),
    [
        ("params_ema", "params"),
        ("model_ema", "model"),
        ("state_dict_ema", "state_dict"),
        ("ema", "net"),
    ],
)
def test_averaged_weights_come_first(tmp_path: Path, averaged: str, trained: str) -> None:
    model = network()
    for order in (1, -1):
        levels = [(trained, filled(model, 0.0)), (averaged, filled(model, 0.5))][::order]
        torch.save(dict(levels), tmp_path / "c.pth")
        assert load_weights(model, tmp_path / "c.pth") == averaged
        assert (model[0].weight == 0.5).all()
    # What fits comes before what is preferred.
    del levels[-1][1]["0.bias"]
    torch.save({averaged: levels[-1][1], trained: filled(model, 0.25)}, tmp_path / "c.pth")
    assert load_weights(model, tmp_path / "c.pth") == trained


def test_safetensors_with_a_prefix(tmp_path: Path) -> None:
    model = network()
    save_file(behind("module.", filled(model, 0.5)), tmp_path / "c.safetensors")
    assert load_weights(model, tmp_path / "c.safetensors") == "module."


class Renamed(nn.Module):
    """Takes the names and shapes of its first version, as published models do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        old = state.pop(f"{prefix}old_proj.kernel", None)
        if old is not None:
            state[f"{prefix}proj.weight"] = old[:, :, 0, 0]
            state[f"{prefix}proj.bias"] = state.pop(f"{prefix}old_proj.offset")
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("level", [None, "params"])
def test_a_model_converts_its_old_names_itself(tmp_path: Path, level: str | None) -> None:
    state: Any = {"old_proj.kernel": torch.ones(2, 3, 1, 1), "old_proj.offset": torch.ones(2)}
    torch.save({level: state} if level else state, tmp_path / "c.pth")
    model = Renamed()
    assert load_weights(model, tmp_path / "c.pth") == (level or "")
    assert (model.proj.weight == 1).all() and (model.proj.bias == 1).all()
    # The same inside another model, with a hook.
    outer = nn.Sequential(nn.Linear(3, 3), Renamed())
    outer.register_load_state_dict_pre_hook(
        lambda m, s, *_: s.update({k[4:]: s.pop(k) for k in [*s] if k.startswith("old/")})
    )
    inner = {f"1.{name}": value for name, value in state.items()}
    torch.save(inner | behind("old/0.", nn.Linear(3, 3).state_dict()), tmp_path / "c.pth")
    load_weights(outer, tmp_path / "c.pth")
    assert (outer[1].proj.weight == 1).all()


def test_old_batch_norms_lack_a_counter_and_load_as_in_pytorch(tmp_path: Path) -> None:
    model = network()
    state = filled(model, 0.5)
    del state["1.num_batches_tracked"]
    torch.save({"state_dict": behind("module.", state)}, tmp_path / "c.pth")
    load_weights(model, tmp_path / "c.pth")


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    torch.save({"embed.weight": torch.ones(5, 3)}, tmp_path / "c.pth")
    load_weights(model, tmp_path / "c.pth")
    assert (model["head"].weight == 1).all()


MISFITS: dict[str, tuple[Callable[[State], Any], str]] = {
    "less": (lambda s: s.pop("0.bias"), r"c\.pth lacks 0\.bias: it is of another model"),
    "more": (lambda s: s.update(extra=torch.zeros(1)), r"has the unknown extra: "),
    "shape": (lambda s: s.update({"0.bias": torch.zeros(9)}), r"has another shape for 0\.bias: "),
    "whole numbers": (
        lambda s: s.update({"0.weight": torch.ones(4, 3, dtype=torch.int8)}),
        r"has no floating-point numbers for 0\.weight",
    ),
    "nothing": (lambda s: s.clear(), r"holds no weights by name"),
    "another": (
        lambda s: (s.clear(), s.update(a=torch.zeros(1))),
        r"lacks 0\.bias, 0\.weight, (\S+, ){2}\S+ and 3 more, has the unknown a: it is of another",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_is_left_over_is_named(tmp_path: Path, name: str) -> None:
    edit, words = MISFITS[name]
    model = network()
    state = filled(model, 0.5)
    edit(state)
    torch.save({"params": state}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=words):
        load_weights(model, tmp_path / "c.pth")


def test_a_model_whose_own_loading_fails(tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise KeyError("old form\nof 2021")

    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"can't be loaded: KeyError: 'old form\\nof 2021'"):
        load_weights(Broken(3, 2), tmp_path / "c.pth")


def kept_options(path: Path) -> dict[Any, Any]:
    options = argparse.Namespace(lr=3e-5, name="best", resume=None, sizes=[480, 416])
    numbers = {
        kind: np.dtype(kind).type(1) for kind in ("float64", "float32", "float16", "int64", "uint8")
    }
    document = {"model": {"w": torch.ones(2)}, "args": options, "no": np.bool_(False), **numbers}
    torch.save(document, path)
    return document


def test_options_and_numpy_s_numbers_are_plain_data(tmp_path: Path) -> None:
    expected = kept_options(tmp_path / "c.pth")
    read = read_pth(tmp_path / "c.pth")
    assert type(read["args"]) is argparse.Namespace and read["args"] == expected["args"]
    assert torch.equal(read["model"]["w"], torch.ones(2))
    for name in ("float64", "float32", "float16", "int64", "uint8"):
        assert type(read[name]) is (float if "float" in name else int) and read[name] == 1
    assert read["no"] is False
    big_endian = np.dtype(">f8").type(2.5)
    torch.save({"a": big_endian, "b": np.float64(-73.25)}, tmp_path / "d.pth")
    assert read_pth(tmp_path / "d.pth") == {"a": 2.5, "b": -73.25}


def test_numbers_of_older_numpy_are_read(tmp_path: Path) -> None:
    """NumPy 1 named its modules otherwise; bytes of protocol 2 come as text."""
    module = b"numpy.core.multiarray"
    data = pickle.dumps({"best_iou": np.float64(0.5)}, protocol=2)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "old.pth"
    torch.save({"best_iou": np.float64(0.5)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content.replace(b"numpy._core.multiarray", module))
    assert module in path.read_bytes()
    assert read_pth(path) == {"best_iou": 0.5}


class Subclass(argparse.Namespace):
    pass


OTHERS: dict[str, Any] = {
    "a class of options": Subclass(lr=1),
    "another class": pathlib.PurePosixPath("a"),
    "a function": os.getcwd,
    "an array": np.ones(3),
    "an object": np.dtype("O"),
    "text of NumPy": np.str_("a"),
    "a date": np.datetime64("2024-01-01"),
    "a complex number": np.complex64(1),
    "a record": np.zeros(1, [("a", "f8")])[0],
    "a partial call": functools.partial(print, "a"),
    "within options": argparse.Namespace(path=pathlib.PurePosixPath("a")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_read(tmp_path: Path, name: str) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "x": OTHERS[name]}, tmp_path / "c.pth")
    before = set(torch.serialization.get_safe_globals())
    if name == "an object":  # the description of a kind alone is only data that nobody looks at
        assert not isinstance(read_pth(tmp_path / "c.pth")["x"], np.dtype)
    else:
        with pytest.raises(InputError, match=r"not a plain checkpoint of tensors.*not loaded"):
            read_pth(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before
