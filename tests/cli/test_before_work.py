"""Options, and what they need, are checked before minutes of work begin, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import manifest_of

from tfanet.cli import main
from tfanet.data import make_shapes
from tfanet.runtime.bundle import FILES

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
EXPORT = ("export", "--preset", "tfanet-tiny")
ENGINE = (*EXPORT, "--target", "tensorrt-rtx")
INT8 = (*EXPORT, "--precision", "int8")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, train=2, val=2, testA=0, testB=0)
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Fails where a model is loaded or a graph is measured."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    for place in ("export.bundle.load_model", "calibration.measure.calibrator.PreparedBundle.open"):
        monkeypatch.setattr(f"tfanet.{place}", fail)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((*EXPORT, "--target", "tensorRT"), "target is 'tensorRT': choose one of tensorrt, "),
        ((*ENGINE, "--precision", "fp61"), "precision is 'fp61': choose fp32, fp16, bf16"),
        ((*ENGINE, "--profile", "4,2,1"), "min <= opt <= max"),
        ((*ENGINE, "--compute", "9.9"), "compute capability '9.9' is unknown"),
        ((*ENGINE, "--level", "6"), "level is 6"),
        ((*ENGINE, "--timeout", "0"), "timeout is 0.0: give seconds, above 0"),
        ((*ENGINE, "--timeout", "nan"), "timeout is nan"),
        ((*ENGINE, "--plugin", "aot"), "tensorrt-rtx has no plugins"),
        ((*ENGINE, "--inspect", "{file}"), "is a file: name a directory"),
        ((*ENGINE, "--precision", "fp16", "--range-data", "/nowhere"), "/nowhere"),
        ((*ENGINE, "--range-data", "/nowhere"), "--range-data says what stays in FP32"),
        ((*ENGINE, "--keep", "x"), "--keep says what stays in FP32 in an engine of fp16 or bf16"),
        ((*EXPORT, "--precision", "fp16"), "precision fp16 is an engine's: name a --target"),
        ((*EXPORT, "--precision", "int4"), "name a --target, tensorrt or tensorrt-rtx, or choose"),
        ((*EXPORT, "--profile", "4"), "--profile belongs to an engine (--target)"),
        ((*EXPORT, "--refit"), "--refit belongs to an engine (--target)"),
        ((*EXPORT, "--calibration", "r"), "--calibration belongs to --precision int8 or fp8"),
        ((*EXPORT, "--function", "magic"), "function is 'magic'"),
        ((*EXPORT, "--opset", "7"), "opset is 7"),
        (INT8, "--data"),
        ((*INT8, "--data", "/nowhere"), "/nowhere"),
        ((*INT8, "--data", "{shapes}", "--observer", "best"), "observer is 'best'"),
        ((*INT8, "--data", "{shapes}", "--calibration-split", "x"), "split 'x' is unknown"),
        ((*INT8, "--data", "{shapes}", "--guard-split", "x"), "split 'x' is unknown"),
        ((*INT8, "--data", "{shapes}", "--max-drop", "mAP=1"), "metric is 'mAP'"),
        ((*INT8, "--data", "{shapes}", "--min-share", "3"), "min_share is 3.0"),
        ((*INT8, "--data", "{shapes}", "--int8-target", "x"), "target is 'x'"),
        ((*INT8, "--data", "{shapes}", "--count", "0"), "count is 0"),
        ((*INT8, "--calibration", "/no.json"), "/no.json"),
        (
            ("export", "--bundle", "b", "--precision", "int8", "--opset", "21"),
            "--opset belongs to an export from PyTorch",
        ),
    ],
)
def test_a_mistake_is_told_before_work_begins(
    capsys, tmp_path, monkeypatch, no_work, shapes, argv, words
):
    if "tensorrt-rtx" in argv and not HAS_RTX:
        pytest.skip("tensorrt_rtx is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "shapes": shapes}
    argv = [arg.format(**places) for arg in argv]
    assert main([*argv, "--output", "out"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("verb", ["export", "int8"])
def test_the_output_is_looked_at_before_work_begins(capsys, tmp_path, no_work, shapes, verb):
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3}')
    argv = EXPORT if verb == "export" else (*INT8, "--data", str(shapes))
    for options in ((), ("--overwrite",)):
        assert main([*argv, "--output", str(extension), *options]) == 1
        assert "holds no bundle" in capsys.readouterr().err
    assert [path.name for path in extension.iterdir()] == ["manifest.json"]


def test_a_library_that_is_missing_is_told_before_work_begins(
    capsys, tmp_path, monkeypatch, no_work
):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    argv = (*EXPORT, "--target", "tensorrt", "--output", str(tmp_path / "out"))
    assert main(argv) == 3
    assert "tensorrt cannot be imported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_calibrate_replaces_no_file(capsys, tmp_path, no_work, shapes):
    (tmp_path / "ranges.json").write_text("mine")
    argv = ["calibrate", "--bundle", "b", "--data", str(shapes), "--output"]
    assert main([*argv, str(tmp_path / "ranges.json")]) == 1
    assert "exists: name another file, or give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "ranges.json").read_text() == "mine"


def test_predict_does_not_write_over_its_picture(capsys, tmp_path):
    (tmp_path / "p.png").write_text("mine")
    picture = str(tmp_path / "p.png")
    argv = ["predict", "--bundle", "b", "--image", picture, "--text", "a", "--output", picture]
    assert main(argv) == 1
    assert "is given twice: the result would be lost" in capsys.readouterr().err


def test_shapes_replace_their_own_files_only(tmp_path):
    make_shapes(tmp_path, train=1, val=0, testA=0, testB=0)
    (tmp_path / "shapes" / "notes.txt").write_text("mine")
    make_shapes(tmp_path, train=2, val=0, testA=0, testB=0, overwrite=True)
    assert (tmp_path / "shapes" / "notes.txt").read_text() == "mine"


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle whose graphs hold nothing: enough to be told apart and compared."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(b"\x08\x0a")
    parity = {"max_rel_error": 0.0, "pixels_changed": 0, "pixels": 1}
    manifest = replace(manifest_of(folder), scan={"calls": 1, "function": "none"}, parity=parity)
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def test_info_and_verify_print_and_take_the_digest(capsys, bundle):
    assert main(["info", "--bundle", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    digest = facts["digest"]
    assert facts["leftovers"] == {"killed": [], "foreign": []}
    assert main(["info", "--bundle", str(bundle), "--digest", digest]) == 0
    assert f"digest {digest}" in capsys.readouterr().out
    argv = ["verify", "--bundle", str(bundle)]
    assert main(argv) == 0 and "was not compared" in capsys.readouterr().out
    assert main([*argv, "--digest", digest]) == 0 and digest in capsys.readouterr().out
    assert main([*argv, "--digest", "abc"]) == 1
    assert main([*argv, "--digest", "0" * 64]) == 2
    assert main(["info", "--bundle", str(bundle), "--digest", "0" * 64]) == 1
    assert main(["verify", "--bundle", str(bundle.parent / "nowhere")]) == 1
    capsys.readouterr()
    (bundle / "text.onnx").write_bytes(b"\x08\x0b")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "text.onnx does not match its SHA-256" in error and error.count("\n") == 1


def test_info_names_what_is_left_and_what_is_foreign(capsys, bundle):
    left = bundle / ".tensorrt-rtx-fp16.abcdefgh"
    left.mkdir()
    (left / "image.tensorrt-rtx-fp16.engine").write_text("half")
    beside = bundle.parent / ".bundle.abcdefgh.partial"
    beside.mkdir()
    (bundle / "notes.txt").write_text("mine")
    assert main(["info", "--bundle", str(bundle)]) == 0
    out = capsys.readouterr().out
    for path in (left, beside):
        assert f"left by a killed process: {path}" in out
    assert f"not of the bundle: {bundle / 'notes.txt'}" in out
    shutil.rmtree(bundle)
    assert main(["info", "--bundle", str(bundle)]) == 1
    assert "its export was killed and left .bundle.abcdefgh.partial" in capsys.readouterr().err
