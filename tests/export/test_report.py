"""The parity report: parity.json and the page with pictures."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.export.parity.report import BINS, stages_of, write_report
from tfanet.model.checkpoint import save_checkpoint
from tfanet.runtime import Predictor


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for name, size in (("one.png", (70, 90, 3)), ("two.png", (64, 40, 3))):
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(tmp_path / name)
        made.append((tmp_path / name, f"the <b>{name}</b>"))
    return made


class _Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            facts = dict(attributes)
            assert facts["src"].startswith("data:image/png;base64,iVBOR")
            self.names.append(facts["alt"])

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_says_where_precision_is_lost(
    with_engine, model, checkpoint, pictures, tmp_path
):
    report = write_report(with_engine.path, tmp_path / "report", pictures, checkpoint=checkpoint)
    assert json.loads((tmp_path / "report" / "parity.json").read_text()) == report
    ours = report["backends"]["onnxruntime"]
    for row, (path, sentence) in zip(ours["pictures"], pictures, strict=True):
        assert row["max_rel_error"] < 1e-4 and row["iou"] > 99
        mask = Predictor(with_engine.path, backend="onnxruntime-cpu")(path, sentence).mask
        assert row["pixels"] == mask.size and row["pixels_changed"] <= 1e-3 * mask.size
    assert sum(ours["histogram"]) == 2 * 64 * 64
    assert sum(ours["histogram"][int(np.searchsorted(BINS, -3.5)) :]) == 0

    rounded = "tensorrt-rtx-fp16 (rounding emulated)"
    stages = report["stages"]
    assert list(stages) == ["onnxruntime", rounded]
    # Every part is found in the graph, in the order of computation, and computes what it does.
    order = list(stages["onnxruntime"])
    assert set(order) == {*stages_of(model), "mask_logit"}
    assert order[:3] == ["backbone.patch_embed", "backbone.layers.0.blocks", "fusion.0.align"]
    assert order[-2:] == ["decoder", "mask_logit"]
    assert max(stages["onnxruntime"].values()) < 1e-4
    assert list(stages[rounded]) == list(stages["onnxruntime"])
    assert 1e-5 < stages[rounded]["backbone.patch_embed"] < 1e-2

    page = _Images()
    page.feed((tmp_path / "report" / "report.html").read_text())
    assert page.names == ["picture", "PyTorch", *report["backends"]] * 2
    assert "the <b>one.png</b>" in page.text  # escaped, so it is text


def test_a_part_that_differs_is_seen_at_its_stage(bundle, model, pictures, tmp_path):
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fusion[1].cfsm.apply(
            lambda m: [p.mul_(1.5) for p in m.parameters(recurse=False)] and None
        )
    save_checkpoint(tmp_path / "other.safetensors", other)
    report = write_report(
        bundle.path, tmp_path / "report", pictures, checkpoint=tmp_path / "other.safetensors"
    )
    errors = report["stages"]["onnxruntime"]
    names = list(errors)
    first = next(name for name in names if errors[name] > 1e-3)
    assert first == "fusion.1.cfsm"
    assert errors["mask_logit"] > 2e-5  # FP32 noise is below 2e-6


def test_the_verb_writes_a_report_of_synthetic_pictures(bundle, checkpoint, tmp_path, capsys):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    words = ("parity", "--bundle", str(bundle.path), "--checkpoint", str(checkpoint))
    assert main([*words, "--report", str(tmp_path / "r")]) == 0
    assert str(tmp_path / "r" / "report.html") in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r" / "parity.json").read_text())["pictures"]) == 3


def test_no_picture_or_a_bad_one(bundle, checkpoint, tmp_path):
    with pytest.raises(InputError, match="no picture was given"):
        write_report(bundle.path, tmp_path / "r", [], checkpoint=checkpoint)
    bad = [(tmp_path / "missing.png", "a star")]
    with pytest.raises(InputError, match=r"missing\.png"):
        write_report(bundle.path, tmp_path / "r", bad, checkpoint=checkpoint)
    assert not (tmp_path / "r").exists()
