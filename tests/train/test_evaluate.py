"""Evaluation of a checkpoint, recomputed here by another way."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_config import SMALL

from tfanet.cli import main
from tfanet.data import ReferDataset, make_shapes
from tfanet.errors import InputError
from tfanet.evaluation.evaluate import evaluate
from tfanet.evaluation.protocols import AT_MODEL_SIZE, AT_PICTURE_SIZE, PROTOCOLS
from tfanet.model.checkpoint import family_of, load_model, save_checkpoint
from tfanet.model.family import FAMILIES, find_family
from tfanet.model.tfanet.network import TFANet
from tfanet.runtime import image_to_tensor, load_image
from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=0, val=3, testA=0, testB=0, seed=2)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "fresh.safetensors"
    save_checkpoint(path, TFANet(replace(SMALL, text_length=20)))
    return path


def test_metrics_are_those_of_a_plain_loop(shapes: Path, checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = evaluate(checkpoint, shapes, progress=lambda *step: seen.append(step))
    model = load_model(checkpoint)
    tokenizer = family_of(model).make_tokenizer(model.config)
    ious = []
    inter = union = 0
    for sample in ReferDataset(shapes, "shapes", "val"):
        ids, words = tokenizer([sample.sentence])
        image = image_to_tensor(load_image(sample.image_path), model.config.image_size)
        with torch.no_grad():
            logit = model(
                torch.from_numpy(image)[None], torch.from_numpy(ids), torch.from_numpy(words)
            )
        true = torch.from_numpy(sample.mask)
        # Pillow's and PyTorch's bilinear enlargements agree to rounding away from ties.
        large = torch.nn.functional.interpolate(logit, true.shape, mode="bilinear", antialias=True)
        predicted = large[0, 0] > 0
        ious.append(float((predicted & true).sum() / (predicted | true).sum()))
        inter += int((predicted & true).sum())
        union += int((predicted | true).sum())
    assert report["samples"] == len(ious) == seen[-1][1] == seen[-1][2]
    assert report["metrics"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=0.2)
    assert report["metrics"]["oIoU"] == pytest.approx(100 * inter / union, abs=0.2)
    assert report["metrics_at_model_size"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=3)
    assert (report["kind"], report["dataset"], report["split"]) == ("checkpoint", "shapes", "val")
    assert (report["family"], report["preset"]) == ("tfanet", "tfanet-tiny")
    assert report["protocol"]["name"] == "TFANet's"
    assert report["protocol"]["table"] == "metrics"


def test_every_family_has_its_protocol() -> None:
    for name in FAMILIES:
        assert PROTOCOLS[name].name == f"{find_family(name).title}'s"
        assert PROTOCOLS[name].table in (AT_PICTURE_SIZE, AT_MODEL_SIZE)


@pytest.mark.parametrize("own", [AT_PICTURE_SIZE, AT_MODEL_SIZE])
def test_the_family_s_own_protocol_is_printed_first(
    own: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = {"name": "Somebody's", "table": own, "says": "masks of paper", "strictly": False}
    report = {"protocol": protocol, AT_PICTURE_SIZE: {"mIoU": 12.5}, AT_MODEL_SIZE: {"mIoU": 75}}
    evaluating = importlib.import_module("tfanet.evaluation.evaluate")
    monkeypatch.setattr(evaluating, "evaluate", lambda *_, **__: report)
    assert main(["evaluate", "--checkpoint", "x", "--data", "y"]) == 0
    first, _, second = capsys.readouterr().out.partition("at the ")
    assert first.startswith("Somebody's protocol: masks of paper")
    assert second.startswith("model's size:" if own == AT_PICTURE_SIZE else "pictures' own sizes:")
    values = {AT_PICTURE_SIZE: "12.50", AT_MODEL_SIZE: "75.00"}
    assert values.pop(own) in first
    assert values.popitem()[1] in second


def test_generalised_data_have_their_metrics(tmp_path: Path, checkpoint: Path) -> None:
    make_shapes(tmp_path, train=0, val=3, testA=0, testB=0, generalised=True)
    report = evaluate(checkpoint, tmp_path)
    expected = {"gIoU", "cIoU", "N-acc", "T-acc", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}
    assert report["metrics"].keys() == report["metrics_at_model_size"].keys() == expected
    assert report["samples"] == len(ReferDataset(tmp_path, split="val"))


@dataclass
class Answers:
    """A stand-in for a model: what it gives for each sentence, and how it is to be read."""

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    family: str
    logits: dict[str, np.ndarray]
    nothing: dict[str, bool] | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        evaluating = importlib.import_module("tfanet.evaluation.evaluate")
        monkeypatch.setattr(evaluating, "_from_checkpoint", lambda _: self)

    @property
    def facts(self) -> dict[str, str]:
        return {"kind": "checkpoint", "family": self.family, "preset": "x"}

    def segment(self, path: Path, sentences: list[str]) -> list[tuple[np.ndarray, bool | None]]:
        key = [f"{path.name} {sentence}" for sentence in sentences]
        return [(self.logits[k], None if self.nothing is None else self.nothing[k]) for k in key]


FIRST = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("family", ["asda", "crossvlt", "instalign"])
def test_protocols_by_a_plain_loop(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random logits, read as each family's authors do, with every step written out."""
    general = family == "instalign"
    make_shapes(tmp_path, train=0, val=4, testA=0, testB=0, generalised=general)
    data = ReferDataset(tmp_path, split="val")
    rng = np.random.default_rng(3)
    boxed = family == "asda"
    pre = Preprocessing((64, 64), **FIRST)
    post = Postprocessing("logit", 0.0)
    if boxed:
        pre = replace(pre, resize="letterbox-area", padding=(1, 2, 3))
        post = Postprocessing("probability", 0.35)
    size = (32, 32) if boxed else (64, 64)
    logits, nothing, own = {}, {}, []
    for sample in data:
        key = f"{sample.image_path.name} {sample.sentence}"
        true = sample.mask
        height, width = true.shape
        ratio = min(64 / height, 64 / width)
        rows, columns = (round(height * ratio), round(width * ratio)) if boxed else (64, 64)
        top, left = (64 - rows) // 2, (64 - columns) // 2
        # The truth at the model's size, pixel by pixel; the middle of each decides.
        small = np.zeros((64, 64), dtype=bool)
        for y in range(rows):
            for x in range(columns):
                at = int((y + 0.5) * height / rows), int((x + 0.5) * width / columns)
                small[top + y, left + x] = true[at]
        coarse = small[::2, ::2] if boxed else small
        z = np.where(coarse, 2.0, -2.0) + rng.normal(0, rng.uniform(0.2, 1.6), size)
        logits[key] = z.astype(np.float32)
        nothing[key] = bool(rng.random() < (0.8 if sample.ref.no_target else 0.15))
        if boxed:
            p = torch.from_numpy(1 / (1 + np.exp(-z)))[None, None]
            p = torch.nn.functional.interpolate(p, (64, 64), mode="bilinear")
            p = p[:, :, top : top + int(height * ratio), left : left + int(width * ratio)]
            p = torch.nn.functional.interpolate(p, (height, width), mode="bilinear", antialias=True)
            predicted, truth = p[0, 0].numpy() > 0.35, true
        else:
            predicted, truth = z > 0, small
        empty = general and nothing[key]
        both, either = (predicted & truth).sum(), (predicted | truth).sum()
        if empty:
            both, either = 0, truth.sum()
        share = both / either if truth.any() else float(empty)
        own.append((share, both, either, not sample.ref.no_target, empty))
    Answers(pre, post, family, logits, nothing if general else None).install(monkeypatch)
    report = evaluate("stand-in", tmp_path)
    assert report["protocol"]["name"].lower() == f"{family}'s"
    found = report[report["protocol"]["table"]]
    shares = np.array([row[0] for row in own])
    targets = np.array([row[3] for row in own])
    means = ("gIoU", "cIoU") if general else ("mIoU", "oIoU")
    assert found[means[0]] == pytest.approx(100 * shares.mean(), abs=0.05)
    overall = 100 * sum(row[1] for row in own) / sum(row[2] for row in own)
    assert found[means[1]] == pytest.approx(overall, abs=0.05)
    above = shares[targets] > 0.6 if boxed else shares[targets] >= 0.6
    assert found["P@0.6"] == pytest.approx(100 * above.mean(), abs=1e-9)
    assert 0 < found["P@0.6"] < 100
    if general:
        empty = np.array([row[4] for row in own])
        assert found["N-acc"] == pytest.approx(100 * empty[~targets].mean())
        assert found["T-acc"] == pytest.approx(100 * (~empty[targets]).mean())


def test_batches_change_nothing(shapes: Path, checkpoint: Path) -> None:
    one, many = (evaluate(checkpoint, shapes, batch=batch) for batch in (1, 16))
    assert one["metrics"] == pytest.approx(many["metrics"], abs=0.05)


def test_limit_and_mistakes(shapes: Path, checkpoint: Path) -> None:
    assert evaluate(checkpoint, shapes, limit=2)["samples"] == 2
    with pytest.raises(InputError, match="limit is 0"):
        evaluate(checkpoint, shapes, limit=0)
    with pytest.raises(InputError, match="batch is -1"):
        evaluate(checkpoint, shapes, batch=-1)
    with pytest.raises(InputError, match="split 'dev'"):
        evaluate(checkpoint, shapes, split="dev")
    with pytest.raises(InputError):
        evaluate(shapes / "none.safetensors", shapes)
