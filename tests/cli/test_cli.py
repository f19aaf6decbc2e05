"""The command line's promises: exit codes, one line per mistake, clean JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hand_made import image_model, write_bundle
from PIL import Image

from tfanet.cli import main
from tfanet.cli.output import table
from tfanet.runtime import Predictor


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        code = main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("fly",),
        ("export",),
        ("export", "--preset", "tfanet-tiny"),
        ("export", "--preset", "a", "--checkpoint", "b", "--output", "c"),
        ("export", "--preset", "tfanet-tiny", "--output", "x", "--image-size", "large"),
        ("data",),
    ],
)
def test_usage_mistakes_exit_with_1_and_one_line(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert code == 1
    assert out == ""
    assert err.startswith("tfanet") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("export", "--preset", "tfanet-huge", "--output", "x"), ["tfanet-huge", "tfanet-tiny"]),
        (("info", "--preset", "tfanet-huge"), ["tfanet-huge", "tfanet-base"]),
        (("info", "--bundle", "/nowhere"), ["/nowhere"]),
        (
            (
                "predict",
                "--bundle",
                "/nowhere",
                "--image",
                "/x.png",
                "--text",
                "a",
                "--output",
                "m",
            ),
            [],
        ),
        (("parity", "--bundle", "/nowhere"), ["/nowhere"]),
        (("evaluate", "--bundle", "/nowhere", "--data", "/nodata"), ["/no"]),
        (("data", "check", "--data", "/nodata"), ["/nodata"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_value(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert code == 1
    assert out == ""
    assert err.startswith("tfanet: error: ") and err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_exits_with_3_and_says_what_to_install(capsys, monkeypatch):

    monkeypatch.setitem(sys.modules, "tfanet.model.cost", None)
    code, _, err = run(capsys, "info", "--preset", "tfanet-tiny")
    assert code == 3
    assert "tfanet[export]" in err


def test_doctor_reports_every_backend_with_a_reason(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["backends"]["PyTorch (scan kernel)"]["available"]
    assert report["backends"]["ONNX Runtime CPU (scan kernel)"]["available"]
    for facts in report["backends"].values():
        assert facts["available"] == (facts["reason"] is None)
    assert report["packages"]["torch"]


def test_doctor_text_names_what_is_missing(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "ONNX Runtime CPU (scan kernel)" in out
    assert "TensorRT: " in out


def test_info_counts_the_base_model(capsys):
    code, out, _ = run(capsys, "info", "--preset", "tfanet-base", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["params"] == pytest.approx(268.46e6, rel=0.02)
    assert facts["flops"] == pytest.approx(311.30e9, rel=0.05)
    assert sum(call["calls"] for call in facts["scans"]) == 29


def test_info_shows_what_was_published_beside_what_is_counted(capsys):
    code, out, _ = run(capsys, "info", "--preset", "tfanet-base")
    assert code == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith("M parameters")]
    here, paper = float(row[2]), float(row[3])
    assert paper == 268.46
    assert float(row[4].rstrip("%")) == pytest.approx(100 * (here / paper - 1), abs=0.01)
    assert "published of tfanet-base (the paper):" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("RefCOCO val")]
    assert row[2:] == ["77.84", "76.54", "87.59", "81.38", "41.29"]
    # Another size is not the published one's.
    _, out, _ = run(capsys, "info", "--preset", "tfanet-base", "--image-size", "64")
    assert "M parameters  " not in out


def test_info_prints_the_ablation_rows(capsys):
    code, out, _ = run(capsys, "info", "--preset", "tfanet-base", "--table4")
    assert code == 0
    for paper in ("248.00", "262.98", "268.46", "201.55", "207.60", "311.30"):
        assert paper in out


def test_predict_tells_the_words_that_objects_align_with(capsys, tmp_path):
    bundle = write_bundle(tmp_path / "b", image_model(instances=6))
    picture, text = tmp_path / "p.png", "the Red umbrella \x1b"
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(picture)
    argv = ["predict", "--bundle", str(bundle), "--image", str(picture), "--text", text]
    argv += ["--output", str(tmp_path / "mask.png")]
    expected = Predictor(bundle)(picture, text).instances
    assert expected
    code, out, _ = run(capsys, *argv, "--json")
    assert code == 0
    for found, one in zip(json.loads(out)["instances"], expected, strict=True):
        words = [(word["text"], word["share"]) for word in found.pop("words")]
        assert words == list(one.words) and len(words) == 4
        assert found == {"relevance": one.relevance, "pixels": int(one.mask.sum())}
    code, out, _ = run(capsys, *argv, "--overwrite")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("an object of")]
    for line, one in zip(lines, expected, strict=True):
        told = re.findall(r"'([^']*)' \((\d+)%\)", line.partition("aligned with")[2])
        shares = {word.text.replace("\x1b", "\\x1b"): word.share for word in one.words}
        even = sum(shares.values()) / 4
        assert {name for name, _ in told} == {name for name in shares if shares[name] >= even}
        assert [shares[name] for name, _ in told] == sorted(
            (share for share in shares.values() if share >= even), reverse=True
        )
        assert all(round(100 * shares[name]) == int(percent) for name, percent in told)


def test_a_reader_that_stops_is_no_error():
    """`tfanet info ... | head`: the pipe is closed before anything is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-P", "-m", "tfanet", "info", "--preset", "tfanet-tiny", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_terminal_has_no_form_for_are_escaped(capsys, monkeypatch):
    def shows(_):
        """Facts."""
        return {}, "a \ud800 b"

    monkeypatch.setattr("tfanet.cli.inspect.run_info", shows)
    assert run(capsys, "info", "--preset", "x") == (0, "a \\ud800 b\n", "")


def test_table_aligns_its_columns():
    assert table(("name", "ms"), [("scan", 1.5), ("session", 10)]) == (
        "name      ms\n-------  ---\nscan     1.5\nsession   10"
    )
