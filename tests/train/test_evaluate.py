"""Evaluation of a checkpoint, recomputed here by another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tfanet.data import ReferDataset, make_shapes
from tfanet.errors import InputError
from tfanet.evaluation.evaluate import evaluate
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.model.tfanet.config import PRESETS
from tfanet.model.tfanet.network import TFANet
from tfanet.runtime.preprocess import image_to_tensor, load_image
from tfanet.runtime.tokenizer import TextTokenizer
from tfanet.training.train import TOKENIZER


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=0, val=3, testA=0, testB=0, seed=2)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "fresh.safetensors"
    save_checkpoint(path, TFANet(PRESETS["tfanet-tiny"]))
    return path


def test_metrics_are_those_of_a_plain_loop(shapes: Path, checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = evaluate(checkpoint, shapes, progress=lambda *step: seen.append(step))
    model = load_model(checkpoint)
    tokenizer = TextTokenizer(TOKENIZER, model.config.text_length)
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
