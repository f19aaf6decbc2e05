"""Engines of quantised bundles, from the command line to the manifest; they run on a GPU only."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tfanet.calibration import quantize_bundle
from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.export.engines.store import add_engine
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.bundle.read import FILES


def has_rtx() -> bool:
    try:
        import tensorrt_rtx  # noqa: F401
    except Exception:
        return False
    return True


needs_rtx = pytest.mark.skipif(not has_rtx(), reason="tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def signed(small, calibration, tmp_path_factory) -> Bundle:
    return quantize_bundle(small, tmp_path_factory.mktemp("signed") / "b", calibration)[0]


@needs_rtx
def test_export_to_an_int8_engine_in_one_go(capsys, small, calibration, tmp_path):
    ranges, target = tmp_path / "ranges.json", tmp_path / "int8"
    calibration.save(ranges)
    options = ("--precision", "int8", "--calibration", ranges, "--output", target)
    argv = ("export", "--bundle", small.path, *options, "--target", "tensorrt-rtx")
    code = main([str(arg) for arg in (*argv, "--profile", "1,1,2")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "image.tensorrt-rtx-int8." in captured.out
    bundle = Bundle.open(target)
    (record,) = bundle.manifest.engines
    assert (record["name"], record["precision"], record["rest"]) == (
        "tensorrt-rtx-int8",
        "int8",
        "fp32",
    )
    graph = bundle.manifest.files["image.onnx"]["sha256"]
    assert record["source"]["image.onnx"] == graph != small.manifest.files["image.onnx"]["sha256"]
    types = record["build"]["image.onnx"]["types"]
    assert types["int8"] > 50 and types["float"] > 100
    assert record["build"]["text.onnx"]["types"]["int8"] > 5
    assert record["profile"] == {"min": 1, "opt": 1, "max": 2}
    assert not record["parity"]["ran"] or record["parity"]["pixels_changed"] >= 0
    # What runs here is the same file of graphs.
    Predictor(target, backend="onnxruntime-cpu")(np.zeros((20, 30, 3), np.uint8), "the star")


@needs_rtx
def test_what_is_not_in_int8_may_be_in_fp16(signed, tmp_path):
    shutil.copytree(signed.path, tmp_path / "b")
    bundle = add_engine(tmp_path / "b", target="tensorrt-rtx", precision="fp16")
    (record,) = bundle.manifest.engines
    assert record["name"] == "tensorrt-rtx-int8-fp16"
    assert (record["precision"], record["rest"]) == ("int8", "fp16")
    types = record["build"]["image.onnx"]["types"]
    assert min(types[kind] for kind in ("int8", "half", "float")) > 50
    assert record["typed_graph"]["pixels_changed"] <= 0.01 * record["typed_graph"]["pixels"]
    for name in FILES:
        assert bundle.file(name).read_bytes() == signed.file(name).read_bytes()


def test_what_no_engine_takes_is_refused_before_a_build(
    capsys, small, signed, calibration, tmp_path
):
    unsigned, _ = quantize_bundle(small, tmp_path / "u", calibration, target="onnxruntime")
    with pytest.raises(InputError, match="--int8-target any"):
        add_engine(unsigned.path, target="tensorrt-rtx", precision="int8")
    with pytest.raises(InputError, match="'int8', the bundle's graphs are in fp32"):
        add_engine(small.path, target="tensorrt-rtx", precision="int8")
    argv = ("export", "--bundle", small.path, "--precision", "int8", "--data", "x", "--output", "o")
    both = ("--target", "tensorrt-rtx", "--int8-target", "onnxruntime")
    assert main([str(arg) for arg in (*argv, *both)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--int8-target" in error and "--target" in error
    for bundle in (unsigned, small, signed):
        assert not Bundle.open(bundle.path).manifest.engines
