"""Training: the loss falls, resuming changes nothing, schedules and groups are right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tfanet.cli import main
from tfanet.data import ReferDataset, make_shapes
from tfanet.data.batches import make_loader
from tfanet.errors import InputError, MissingDependencyError
from tfanet.model.checkpoint import load_model
from tfanet.model.family import FAMILIES, find_family
from tfanet.model.tfanet.config import PRESETS
from tfanet.model.tfanet.loss import segmentation_loss
from tfanet.model.tfanet.network import TFANet
from tfanet.training.train import TrainOptions, learning_rate_at, parameter_groups, train


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=6, val=2, testA=0, testB=0, seed=3)
    return root


NO_DECAY = ("A_logs", "Ds", "bias", "dt_projs_bias", "alpha", "gamma", "w")


def options(shapes: Path, output: Path, **changes: Any) -> TrainOptions:
    small = TrainOptions(shapes, output, image_size=(64, 64), batch=2, steps=4, warmup=2, seed=1)
    return replace(small, **changes)


def test_loss_falls_and_everything_is_written(shapes: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = train(
        options(shapes, tmp_path, steps=30, ema=0.9, save_every=20),
        progress=lambda *step: seen.append(step),
    )
    assert [step for _, step, _ in seen] == list(range(1, 31))
    assert {total for _, _, total in seen} == {30}
    losses = [float(message.split()[1].rstrip(",")) for message, _, _ in seen]
    assert losses[-1] < losses[0] - 0.1
    assert seen[-1][0].startswith("loss ") and "mIoU" in seen[-1][0]
    assert report["step"] == report["steps"] == 30
    model = load_model(report["checkpoint"])
    assert not model.training
    assert model.config.image_size == (64, 64)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 30
    assert log[-1]["loss"] == pytest.approx(report["loss"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "state.safetensors", "log.jsonl"}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopping_and_resuming_changes_no_bit(shapes: Path, tmp_path: Path, ema: float) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(options(shapes, whole, ema=ema))
    stopped = train(options(shapes, parts, ema=ema, stop_after=2))
    assert (stopped["step"], stopped["steps"]) == (2, 4)
    train(options(shapes, parts, ema=ema, resume=True))
    for name in ("state.safetensors", "model.safetensors"):
        expected, found = load_file(whole / name), load_file(parts / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key


def test_training_is_this_plain_loop(shapes: Path, tmp_path: Path) -> None:
    """Nothing of the general loop changes a bit of TFANet's weights."""
    chosen = options(shapes, tmp_path, clip=0.5, steps=2)
    train(chosen)
    torch.manual_seed(1)
    config = replace(PRESETS["tfanet-tiny"], image_size=(64, 64))
    model = TFANet(config).train()
    groups = parameter_groups(model, 1e-4, {})
    optimizer = torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.999), fused=True)
    family = find_family("tfanet")
    source = ReferDataset(shapes, "shapes", "train")
    loader = make_loader(
        source,
        preprocessing=family.preprocessing((64, 64)),
        tokenizer=family.make_tokenizer(config),
        batch=2,
        first_step=0,
        steps=2,
        seed=1,
        by_picture=True,
    )
    for step, batch in enumerate(loader):
        torch.manual_seed(1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, 2, chosen.filled())
        logit = model(batch["image"], batch["token_ids"], batch["word_mask"])
        segmentation_loss(logit, batch["target"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(saved[name], value), name


def test_generalised_data_train_too(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path, train=4, val=0, testA=0, testB=0, generalised=True)
    report = train(options(tmp_path, tmp_path / "out", steps=2, batch=8))
    assert math.isfinite(report["loss"])
    assert 0 <= report["mIoU"] <= 100


def test_average_is_what_the_checkpoint_holds(shapes: Path, tmp_path: Path) -> None:
    train(options(shapes, tmp_path, ema=0.9))
    state = load_file(tmp_path / "state.safetensors")
    model = load_model(tmp_path / "model.safetensors").state_dict()
    averaged = {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    assert averaged.keys() == model.keys()
    for name, value in averaged.items():
        torch.testing.assert_close(model[name], value)
    moved = [n for n, v in averaged.items() if not torch.equal(v, state[f"model.{n}"])]
    assert len(moved) > len(averaged) // 2


def test_bf16_trains(shapes: Path, tmp_path: Path) -> None:
    report = train(options(shapes, tmp_path, precision="bf16", steps=2))
    assert math.isfinite(report["loss"])


def test_starting_from_a_checkpoint(shapes: Path, tmp_path: Path) -> None:
    first = train(options(shapes, tmp_path / "a", steps=2))
    second = train(
        options(shapes, tmp_path / "b", steps=1, warmup=0, lr=1e-12, init=first["checkpoint"])
    )
    before = load_model(first["checkpoint"]).state_dict()
    after = load_model(second["checkpoint"]).state_dict()
    for name, value in before.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)


def test_schedules_by_hand(tmp_path: Path) -> None:
    tiny = TrainOptions("d", tmp_path, preset="tfanet-tiny", lr=1.0, warmup=10, final_lr=0.0)
    rates = [learning_rate_at(step, 110, tiny.filled()) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)

    powers = replace(tiny, schedule="polynomial", warmup=0).filled()
    rates = [learning_rate_at(step, 100, powers) for step in range(101)]
    assert rates == pytest.approx([(1 - n / 100) ** 0.9 for n in range(101)])

    base = TrainOptions("d", tmp_path, preset="tfanet-base").filled()
    assert (base.lr, base.epochs, base.batch) == (5e-5, 50, 8)
    assert base.rates == {"backbone.": 0.5, "text.": 0.5}
    rates = [learning_rate_at(step, 100, base) for step in range(100)]
    assert rates[:51] == [5e-5] * 51
    assert rates[75] == pytest.approx((5e-5 + 1e-6) / 2)
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert learning_rate_at(100, 100, base) == pytest.approx(1e-6)


def test_no_decay_on_what_the_specification_names() -> None:
    model = TFANet(PRESETS["tfanet-tiny"])
    groups = parameter_groups(model, 0.5, {"backbone.": 0.25, "text.": 0.25})
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(decay) == sum(1 for _ in model.parameters())
    assert {0.0, 0.5} == set(decay.values())
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last in NO_DECAY or "norm" in name.split(".")[-2]:
            assert decay[id(parameter)] == 0.0, name
        if last == "weight" and parameter.ndim == 4:
            assert decay[id(parameter)] == 0.5, name
        pretrained = name.startswith("backbone.") or name.startswith("text")
        assert scale[id(parameter)] == (0.25 if pretrained else 1.0), name


def test_the_longest_beginning_of_a_name_says_its_rate() -> None:
    model = TFANet(PRESETS["tfanet-tiny"])
    groups = parameter_groups(model, 0.0, {"backbone.": 0.1, "backbone.layers.1.": 0.0})
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        rate = 0.1 if name.startswith("backbone.") else 1.0
        expected = 0.0 if name.startswith("backbone.layers.1.") else rate
        assert scale[id(parameter)] == expected, name
    with pytest.raises(InputError, match="begins with 'backbones': the parts of this model are "):
        parameter_groups(model, 0.0, {"backbone.": 0.1, "backbones": 0.1})
    with pytest.raises(InputError, match=r"the rate of 'text\.' is -1: give a factor from 0"):
        parameter_groups(model, 0.0, {"text.": -1})


@pytest.mark.parametrize("family", [each for each in FAMILIES if find_family(each).training])
def test_every_recipe_names_weights_that_there_are(family: str) -> None:
    training = find_family(family).training
    assert training is not None
    model = load_model(f"{family}-tiny")
    for recipe in training.recipes.values():
        factors = {group["lr_scale"] for group in parameter_groups(model, 0.0, recipe.rates)}
        assert factors == {1.0, *recipe.rates.values()}


def test_rates_that_are_said_stand_beside_those_of_the_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {"projout.": 0.5, "fc_2.": 0.2}
    rates = TrainOptions("d", "o", preset="asda-tiny", rates=said).filled().rates
    kept = {"visumodel.": 0.1, "positional_embedding": 0.1}
    assert rates == kept | said
    for wrong in ("backbone.", "0.1", "=0.1", "backbone.=fast"):
        assert main(["train", "--data", "d", "--output", "o", "--rate", wrong]) == 1
        assert f"--rate is {wrong!r}: give NAME=FACTOR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "tfanet-huge"}, "'tfanet-huge' is unknown"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"lr": math.inf}, "lr is inf"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"split": "dev"}, "split 'dev' is unknown"),
        ({"data": "/nowhere"}, "/nowhere is not a folder"),
        ({"resume": True}, "cannot be resumed from"),
        ({"image_size": (60, 64)}, "60"),
    ],
)
def test_mistakes(shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(options(shapes, tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_resuming_another_training_is_refused(shapes: Path, tmp_path: Path) -> None:
    train(options(shapes, tmp_path, steps=2))
    with pytest.raises(InputError, match="training of 2 steps, these options give 3"):
        train(options(shapes, tmp_path, steps=3, resume=True))
    with pytest.raises(InputError, match="cannot be resumed from"):
        train(options(shapes, tmp_path, steps=2, ema=0.5, resume=True))
    (tmp_path / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be resumed from"):
        train(options(shapes, tmp_path, steps=2, resume=True))


def test_a_family_without_training_says_so(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = replace(find_family("tfanet"), training=None)
    monkeypatch.setattr("tfanet.model.tfanet.family.FAMILY", untrained)
    with pytest.raises(InputError, match="TFANet has no training here"):
        train(options(shapes, tmp_path))


def test_a_loss_that_explodes_stops_with_advice(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower lr"):
        train(options(shapes, tmp_path, lr=1e30, warmup=0, clip=0.0, steps=10))


def test_a_training_that_is_there_is_replaced_by_the_first_that_is_saved(
    shapes: Path, tmp_path: Path
) -> None:
    train(options(shapes, tmp_path, steps=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"holds model\.safetensors: name another folder, give"):
        train(options(shapes, tmp_path, steps=2))
    with pytest.raises(InputError, match="leave one out"):
        train(options(shapes, tmp_path, steps=2, resume=True, overwrite=True))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    again = options(shapes, tmp_path, steps=2, seed=5, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        train(again, progress=interrupt)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    train(again)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != content for name, content in before.items())
    assert [json.loads(line)["step"] for line in after["log.jsonl"].splitlines()] == [2]


def test_a_training_that_cannot_be_logged_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"log_with is 'wandbb'.*\(did you mean wandb\?\)"):
        TrainOptions("d", "o", log_with="wandbb").filled()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tfanet\[wandb\]'"):
        TrainOptions("d", "o", log_with="wandb").filled()


def test_tensorboard_gets_the_figures_of_the_log(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(options(shapes, tmp_path, steps=2, log_with="tensorboard"))
    (log,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    found = EventAccumulator(str(tmp_path / "tfanet")).Reload()
    for name in ("loss", "mIoU", "lr"):
        (scalar,) = found.Scalars(name)
        assert scalar.step == log["step"] and scalar.value == pytest.approx(log[name], rel=1e-6)
