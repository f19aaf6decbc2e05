"""The parity report: parity.json and the page with pictures."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from chromium import chromium, served
from PIL import Image

from tfanet.cli import main
from tfanet.errors import GateError, InputError
from tfanet.export.parity.page import MAX_PAGE_BYTES, Shown, render_page
from tfanet.export.parity.report import BINS, write_report
from tfanet.export.parity.stages import stages_of
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


class _Page(HTMLParser):
    """A report's page: its pictures by name, the places of its dots, and its text."""

    def __init__(self, folder):
        super().__init__()
        self.pictures, self.dots, self.text = [], [], ""
        self.feed((folder / "report.html").read_text())

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        for name in ("src", "href"):
            assert facts.get(name, "data:").startswith("data:")
        if tag == "img":
            content = base64.b64decode(facts["src"].partition(";base64,")[2])
            self.pictures.append((facts["alt"], Image.open(io.BytesIO(content))))
        if facts.get("class", "").startswith("dot "):
            self.dots.append(float(facts["style"].removeprefix("left: ").removesuffix("%")))

    def handle_data(self, data):
        self.text += data


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

    (emulated,) = report["emulated"].items()
    assert emulated[0] == rounded and emulated[1]["rounds"] and emulated[1]["passed"]
    worst = max(row["max_rel_error"] for row in emulated[1]["pictures"])
    assert worst == pytest.approx(stages[rounded]["mask_logit"], rel=1e-5)
    assert report["passed"] and report["failures"] == []
    assert report["digest"] == with_engine.digest
    assert ours["bytes"] == sum(
        (with_engine.path / name).stat().st_size for name in ("text.onnx", "image.onnx")
    )

    page = _Page(tmp_path / "report")
    names = [
        "picture",
        "PyTorch",
        *(x for n in [*report["backends"], rounded] for x in (n, f"error of {n}")),
    ]
    assert [name for name, _ in page.pictures] == names * 2
    assert "the <b>one.png</b>" in page.text  # escaped, so it is text
    assert "computes what PyTorch does" in page.text and "✓ passed" in page.text
    errors = [errors[part] for part in order for errors in stages.values()]
    expected = [100 + 100 / 8 * math.log10(max(error, 1e-8)) for error in errors]
    np.testing.assert_allclose(page.dots, expected, atol=0.006)
    # A map of errors: its palette's index is the logarithm.
    predictor = Predictor(with_engine.path, backend="onnxruntime-cpu", op_library=None)
    path, sentence = pictures[0]
    ids, mask = predictor.tokenize(sentence)
    image, _ = predictor.preprocess(path)
    with torch.no_grad():
        wanted = model(*map(torch.from_numpy, (image[None], ids, mask)))[0, 0].numpy()
    error = np.abs(predictor(path, sentence).logits - wanted) / np.abs(wanted).max()
    logs = 255 * (1 + np.log10(np.maximum(error, 1e-8)) / 8)
    found = np.asarray(dict(page.pictures[: len(names)])["error of onnxruntime, function body"])
    # Two runs of PyTorch need not add up in one order, of which only the smallest errors tell.
    assert np.abs(found - logs)[error > 3e-6].max(initial=0) <= 40
    assert np.median(np.abs(found.astype(float) - logs)) <= 1


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
    assert "✗ not passed" in _Page(tmp_path / "report").text
    assert not report["passed"] and report["failures"][0].startswith(
        "onnxruntime has a relative error of "
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


def test_a_refused_bundle_has_a_report_that_says_why(
    bundle, checkpoint, pictures, tmp_path, monkeypatch, capsys
):
    def refuse(*args, **options):
        raise GateError("parity failed: <onnxruntime>, case 'fixed'")

    monkeypatch.setattr("tfanet.export.parity.check.check_bundle", refuse)
    words = ["parity", "--bundle", str(bundle.path), "--checkpoint", str(checkpoint)]
    path, sentence = pictures[0]
    more = ["--report", str(tmp_path / "r"), "--picture", str(path), sentence]
    assert main([*words, *more]) == 2
    assert "parity failed" in capsys.readouterr().err
    page = _Page(tmp_path / "r")
    assert "does not compute what PyTorch does" in page.text
    assert "parity failed: <onnxruntime>, case 'fixed'" in page.text


def test_logits_that_are_not_finite(bundle, checkpoint, pictures, tmp_path, monkeypatch):
    def broken(text, image, case):
        logits = np.zeros((1, 1, 64, 64), np.float32)
        logits[0, 0, 0, :2] = np.nan, np.inf
        return logits

    monkeypatch.setattr("tfanet.export.parity.report.run_case", broken)
    report = write_report(bundle.path, tmp_path / "r", pictures[:1], checkpoint=checkpoint)
    rows = report["backends"]["onnxruntime"]
    assert rows["pictures"][0]["max_rel_error"] is None and not rows["passed"]
    assert sum(rows["histogram"]) == 64 * 64
    assert "onnxruntime gives logits that are not finite" in report["failures"]
    assert "not finite" in _Page(tmp_path / "r").text


def by_hand(pictures, backends=3):
    """A report's facts of pictures of noise, without running anything."""
    rng = np.random.default_rng(0)
    names = [f"backend {index}" for index in range(backends)]
    row = {"max_rel_error": 1e-6, "pixels_changed": 0, "pixels": 9, "iou": 100.0}
    facts = {
        "pictures": [row] * pictures,
        "histogram": [3, 5, *[0] * (len(BINS) - 2)],
        "rounds": False,
        "passed": True,
        "device": None,
        "milliseconds": 3.0,
        "bytes": 10,
    }
    report = {
        **dict.fromkeys(("bundle", "model", "family", "precision"), "a"),
        "digest": "0" * 64,
        "image_size": [64, 64],
        "machine": {"processor": "p", "cores": 2, "platform": "l"},
        "versions": {},
        "pictures": [{"file": "f", "sentence": "s", "choices": []}] * pictures,
        "passed": True,
        "failures": [],
        "limits": {"max_rel_error": 1e-4, "rounded_pixel_share": 1e-2},
        "torch": {"milliseconds": 9.0},
        "bins": BINS.tolist(),
        "backends": dict.fromkeys(names, facts),
        "emulated": {},
        "stages": {"onnxruntime": {"part": 1e-6}},
        "skipped": {},
    }
    picture = Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8))
    mask = rng.random((480, 640)) > 0.5
    errors = 10 ** -rng.uniform(0, 9, (480, 480))
    shown = Shown(picture, dict.fromkeys(("PyTorch", *names), mask), dict.fromkeys(names, errors))
    return report, [shown] * pictures


@pytest.mark.parametrize("pictures", [1, 9])
def test_the_page_is_below_five_megabytes(pictures):
    report, shown = by_hand(pictures)
    page = render_page(report, shown)
    assert len(page.encode()) <= MAX_PAGE_BYTES == 5_000_000
    count = page.count('alt="picture"')
    assert 1 <= count <= pictures
    assert (f"The first {count} of {pictures} pictures" in page) == (count < pictures)


@pytest.mark.full
def test_nothing_overflows_in_a_browser(with_engine, checkpoint, pictures, tmp_path):
    """At three widths and in both schemes, of a report with an engine's emulated rounding."""
    names = ("a" * 90, "the second brown dog that lies behind the chair from the left")
    said = [(path, name) for (path, _), name in zip(pictures, names, strict=True)]
    write_report(with_engine.path, tmp_path / "r", said, checkpoint=checkpoint)
    with served(tmp_path / "r") as address, chromium(tmp_path / "profile") as browser:
        for width, scheme in itertools.product((360, 820, 1280), ("light", "dark")):
            page = browser.page(f"{address}report.html", width, 900, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            beyond = page.evaluate(
                "[...document.querySelectorAll('body *')].filter(one => "
                f"one.getBoundingClientRect().right > {width}).map(one => one.outerHTML)"
            )
            assert not beyond
            clipped = page.evaluate(
                "[...document.querySelectorAll('h1, h2, h3, p, dd, td, figcaption')].filter(one => "
                "one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML)"
            )
            assert not clipped
            page.screenshot(tmp_path / "shot.png", whole=True)
            with Image.open(tmp_path / "shot.png") as shot:
                assert shot.width == width and shot.height > 900
                assert (shot.convert("L").getpixel((2, 2)) > 200) == (scheme == "light")
            page.close()
        assert not browser.complaints()
        assert browser.requested() == {f"{address}report.html"} | {
            url for url in browser.requested() if url.startswith("data:")
        }
