"""Checkpoints: official VMamba names and shapes, round trips, and files that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import every_change, outcome
from small_config import SMALL

from tfanet.errors import InputError, StorageError
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.model.tfanet.backbone import VMamba, load_vmamba, vmamba_base, vmamba_small, vmamba_tiny
from tfanet.model.tfanet.config import TFANetConfig
from tfanet.model.tfanet.network import TFANet


def official_shapes(dims, depths, ratio) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the specification lists them for the published checkpoints."""
    c0 = dims[0]
    shapes = {
        "patch_embed.0.weight": (c0 // 2, 3, 3, 3), "patch_embed.0.bias": (c0 // 2,),
        "patch_embed.2.weight": (c0 // 2,), "patch_embed.2.bias": (c0 // 2,),
        "patch_embed.5.weight": (c0, c0 // 2, 3, 3), "patch_embed.5.bias": (c0,),
        "patch_embed.7.weight": (c0,), "patch_embed.7.bias": (c0,),
    }  # fmt: skip
    for i, (c, depth) in enumerate(zip(dims, depths, strict=True)):
        e, r = int(ratio * c), c // 16
        for j in range(depth):
            b = f"layers.{i}.blocks.{j}."
            shapes |= {
                b + "norm.weight": (c,), b + "norm.bias": (c,),
                b + "op.in_proj.weight": (e, c), b + "op.conv2d.weight": (e, 1, 3, 3),
                b + "op.x_proj_weight": (4, r + 2, e), b + "op.dt_projs_weight": (4, e, r),
                b + "op.dt_projs_bias": (4, e), b + "op.A_logs": (4 * e, 1), b + "op.Ds": (4 * e,),
                b + "op.out_norm.weight": (e,), b + "op.out_norm.bias": (e,),
                b + "op.out_proj.weight": (c, e),
                b + "norm2.weight": (c,), b + "norm2.bias": (c,),
                b + "mlp.fc1.weight": (4 * c, c), b + "mlp.fc1.bias": (4 * c,),
                b + "mlp.fc2.weight": (c, 4 * c), b + "mlp.fc2.bias": (c,),
            }  # fmt: skip
        if i < 3:
            d = f"layers.{i}.downsample."
            shapes |= {
                d + "1.weight": (2 * c, c, 3, 3), d + "1.bias": (2 * c,),
                d + "3.weight": (2 * c,), d + "3.bias": (2 * c,),
            }  # fmt: skip
    return shapes


@pytest.mark.parametrize(
    ("make", "dims", "depths", "ratio", "params"),
    [
        (vmamba_tiny, (96, 192, 384, 768), (2, 2, 8, 2), 1.0, None),
        (vmamba_small, (96, 192, 384, 768), (2, 2, 15, 2), 2.0, None),
        (vmamba_base, (128, 256, 512, 1024), (2, 2, 15, 2), 2.0, 87.53e6),
    ],
)
def test_backbones_have_the_official_names_and_shapes(make, dims, depths, ratio, params):
    with torch.device("meta"):
        state = make().state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == official_shapes(dims, depths, ratio)
    if params is not None:
        assert sum(v.numel() for v in state.values()) == pytest.approx(params, rel=1e-4)


def backbone() -> VMamba:
    return VMamba((16, 32, 48, 64), (1, 1, 2, 1), 2.0)


@pytest.mark.parametrize("newest", [False, True])
def test_official_checkpoints_load_in_both_spellings(tmp_path, newest):
    torch.manual_seed(0)
    source, target = backbone(), backbone()
    state = dict(source.state_dict())
    if newest:
        for name in list(state):
            value = state[name]
            if name.endswith("x_proj_weight"):
                state[name.replace("x_proj_weight", "x_proj.weight")] = state.pop(name).flatten(
                    0, 1
                )
            elif name.endswith("dt_projs_weight"):
                new = name.replace("dt_projs_weight", "dt_projs.weight")
                state[new] = state.pop(name).flatten(0, 1)
            elif value.ndim == 2 and name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
                state[name] = value[:, :, None, None]
    state["classifier.head.weight"] = torch.zeros(1000, 64)
    state["classifier.norm.bias"] = torch.zeros(64)
    path = tmp_path / "vssm.pth"
    torch.save({"model": state}, path)
    load_vmamba(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("layers.0.blocks.0.op.Ds"), "lacks layers.0.blocks.0.op.Ds"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
        (
            lambda s: s.update({"patch_embed.0.bias": torch.zeros(3)}),
            "shape for patch_embed.0.bias",
        ),
    ],
)
def test_vmamba_checkpoints_that_do_not_fit_are_named(tmp_path, edit, words):
    state = dict(backbone().state_dict())
    edit(state)
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=words):
        load_vmamba(backbone(), tmp_path / "x.pth")


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    torch.manual_seed(0)
    model = TFANet(SMALL).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, half=half)
    loaded = load_model(path)
    assert loaded.config == SMALL
    assert not loaded.training
    for name, value in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == value.dtype
        exact = not half or not value.is_floating_point() or name.endswith(("A_logs", "Ds"))
        assert torch.equal(got, value if exact else value.half().float()) or (
            name.endswith("dt_projs_bias") and torch.equal(got, value)
        )
    if half:
        assert path.stat().st_size < 2.2 * sum(p.numel() for p in model.parameters()) + 1e5


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_hostile_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, writer in (
        ("zip.pth", torch.save),
        ("raw.pth", lambda o, p: p.write_bytes(pickle.dumps(o))),
    ):
        path = tmp_path / name
        writer({"model": Hostile()}, path)
        with pytest.raises(InputError, match="not loaded"):
            load_model(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", "tfanet-huge"])
def test_missing_files_name_the_presets(tmp_path, name):
    with pytest.raises(InputError, match=r"does not exist.*tfanet-tiny"):
        load_model(tmp_path / name)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "a.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_model(tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no tfanet configuration"):
        load_model(tmp_path / "b.safetensors")
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(InputError, match="holds a list"):
        load_model(tmp_path / "c.pth")


def test_loading_leaves_the_random_state_alone():
    with torch.device("meta"):
        names = set(TFANet(SMALL).state_dict())
    assert any(name.startswith("decoder.") for name in names)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    load_model("tfanet-tiny")
    assert torch.equal(torch.random.get_rng_state(), before)


def written(path: Path, configuration: Any, tensors: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path, {"tfanet_config": configuration})
    return path


def test_a_file_s_configuration_opens_no_other(tmp_path, monkeypatch):
    """Neither the network nor a folder: a checkpoint holds all weights of the text tower."""
    from transformers import CLIPTextModel

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("another model was opened")

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", opened)
    model = TFANet(SMALL).eval()
    config = SMALL.to_dict()
    config["text"]["pretrained"] = "openai/clip-vit-large-patch14"
    path = written(tmp_path / "m.safetensors", json.dumps(config), model.state_dict())
    assert load_model(path).config == SMALL
    torch.save(model.state_dict(), tmp_path / "m.pth")
    begun = replace(SMALL, text=replace(SMALL.text, pretrained="openai/clip"))
    assert load_model(tmp_path / "m.pth", config=begun).config == SMALL
    model.config = begun
    save_checkpoint(tmp_path / "n.safetensors", model)
    assert b"openai" not in (tmp_path / "n.safetensors").read_bytes()


def test_configurations_that_ask_for_too_much_are_refused_at_once(tmp_path):
    tensors = TFANet(SMALL).state_dict()
    for change, words in (
        ({"depths": [10**6, 1, 1, 1]}, "one of depths is 1000000: give a whole number from 0 to"),
        ({"dims": [8, 12, 16, 65536]}, "another shape for"),
        ({"text": {"vocabulary": 2**24, "width": 65536, "heads": 2}}, "lacks text.clip"),
    ):
        config = SMALL.to_dict() | change
        path = written(tmp_path / "m.safetensors", json.dumps(config), tensors)
        with pytest.raises(InputError, match=words):
            load_model(path)


def test_every_configuration_is_a_model_or_one_clear_line(tmp_path):
    tensors = TFANet(SMALL).state_dict()
    path = tmp_path / "m.safetensors"
    for text in ("", "{", "[" * 100_000, "1" * 5000, "null", '{"a": NaN}'):
        with pytest.raises(InputError):
            load_model(written(path, text, tensors))
    document = json.loads(json.dumps(SMALL.to_dict()))
    for changed in every_change(document):
        config = outcome(partial(TFANetConfig.from_dict, changed), InputError)
        assert config is None or isinstance(config, TFANetConfig)
    # Those that are allowed fit the weights, or are refused before they take memory.
    for change in ({"refine": [256] * 3}, {"ssm_ratio": 0.125}, {"align_dim": 1}, {"grid": 256}):
        written(path, json.dumps(document | change), tensors)
        outcome(partial(load_model, path), InputError)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": {"a": torch.ones(3)}, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"a": torch.ones(3)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    save_checkpoint(tmp_path / "c.safetensors", TFANet(SMALL))
    rng = np.random.default_rng(0)
    for name in ("a.pth", "b.pth", "c.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 4000), rng.integers(1, 4)):
                data[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(data[: rng.choice((len(data), int(place)))])
            outcome(partial(load_model, tmp_path / name, config=SMALL), InputError)


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write full\.safetensors: .*File too large"):
            save_checkpoint(tmp_path / "full.safetensors", TFANet(SMALL))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
