"""From the command line to an INT8 bundle that runs, is certified, and can be checked again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfanet.calibration import Calibration, GuardOptions, quantize_bundle, recheck
from tfanet.calibration.accept import speed
from tfanet.calibration.graph.layers import quantised_share
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.measure.sampler import choose
from tfanet.cli import main
from tfanet.errors import GateError, InputError
from tfanet.evaluation.evaluate import evaluate
from tfanet.evaluation.metrics import Metrics
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.bundle.read import FILES, MANIFEST, TIMING, file_facts

BOUNDS = {"mIoU": 100, "P@0.9": 100}
ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def ranges(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    calibration.save(path)
    return path


@pytest.fixture(scope="module")
def int8(small: Bundle, calibration, shapes: Path, tmp_path_factory) -> tuple[Bundle, dict]:
    guard = GuardOptions(shapes, "shapes", count=12, bounds=BOUNDS, probes=1)
    path = tmp_path_factory.mktemp("int8") / "bundle"
    return quantize_bundle(small, path, calibration, guard, target="onnxruntime")


def test_an_int8_bundle_runs_and_says_what_it_is(int8, small, shapes):
    bundle, report = int8
    assert bundle.manifest.precision == "int8"
    certificate = bundle.manifest.parity["certificate"]
    assert certificate == json.loads(json.dumps(report["certificate"]))
    for field in ("inputs", "outputs", "preprocessing", "text", "scan", "model"):
        assert getattr(bundle.manifest, field) == getattr(small.manifest, field)
    item = choose(shapes, "shapes", "val", count=3).items[0]
    exact = Predictor(small.path)(item.ref.image_path, item.sentence).logits
    rounded = Predictor(bundle.path)(item.ref.image_path, item.sentence).logits
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.1
    assert "sent_ids" not in certificate["calibration"]
    weights = [bundle.file(name).stat().st_size for name in ("image.onnx", "text.onnx")]
    assert certificate["size_ratio"] == pytest.approx(
        sum(weights) / sum(small.file(n).stat().st_size for n in ("image.onnx", "text.onnx")),
        rel=0.01,
    )


def test_certified_metrics_are_those_of_the_runtime(int8, small, shapes):
    bundle, _ = int8
    accuracy = bundle.manifest.parity["certificate"]["accuracy"]
    items = choose(shapes, "shapes", "val", count=12).items
    for path, certified in ((small.path, accuracy["fp32"]), (bundle.path, accuracy["quantised"])):
        predictor, metrics = Predictor(path), Metrics()
        for item in items:
            metrics.update(predictor(item.ref.image_path, item.sentence).mask, item.ref.mask())
        assert metrics.compute() == pytest.approx(certified, abs=1e-3)
    assert accuracy["max_drop"] == {"mIoU": 100, "P@0.9": 100}
    assert accuracy["drop"] == pytest.approx(
        {m: accuracy["fp32"][m] - accuracy["quantised"][m] for m in ("mIoU", "P@0.9")}, abs=1e-3
    )
    assert evaluate(bundle.path, shapes, "shapes", limit=2)["samples"] == 2


def test_the_same_inputs_give_the_same_bytes_and_times_are_kept_apart(
    int8, small, calibration, shapes, tmp_path
):
    bundle, report = int8
    guard = GuardOptions(shapes, "shapes", count=12, bounds=BOUNDS, probes=1)
    again, _ = quantize_bundle(small, tmp_path / "b", calibration, guard, target="onnxruntime")
    for name in (MANIFEST, *FILES):
        assert (again.path / name).read_bytes() == (bundle.path / name).read_bytes()
    timing = json.loads((bundle.path / TIMING).read_text())
    assert timing == report["speed"] and TIMING not in bundle.manifest.files
    assert timing["pair"] == ["fp32", "int8"] == list(timing["milliseconds"])
    assert timing["gain"] > 0 and set(timing["verdicts"]) == {"onnxruntime-cpu"}
    assert not re.search(r"_ms|seconds|gain", (bundle.path / MANIFEST).read_text())


def test_a_verdict_is_of_the_pair_that_was_measured(small, monkeypatch):
    times = {"fp32": 23.1, "int8": 20.0}
    monkeypatch.setattr(speed, "measure_latency", lambda *_, **__: times)
    here = speed.measure_speed({}, {}, small, precision="int8", target="onnxruntime")
    assert here["verdicts"] == {"onnxruntime-cpu": "int8"} and here["gain"] == 1.16
    times["int8"] = 20.2
    other = speed.measure_speed({}, {}, small, precision="int8", target="any")
    assert other["verdicts"]["onnxruntime-cpu"].startswith("keep fp32")
    # FP16 is the rival on a GPU, and was not measured: nothing is claimed of it.
    assert other["verdicts"]["tensorrt"] == other["verdicts"]["tensorrt-rtx"] == speed.ELSEWHERE
    assert "not measured" in speed.ELSEWHERE


def test_the_table_of_layers_adds_up(int8, small):
    bundle, report = int8
    prepared = PreparedBundle.open(small)
    kept = set(bundle.manifest.parity["certificate"]["float_layers"])
    rows = report["layers"]
    assert [row["name"] for row in rows] == [layer.name for layer in prepared.all_layers()]
    inside = {row["name"] for row in rows if row["precision"] == "int8"}
    assert not inside & kept
    certified = bundle.manifest.parity["certificate"]["share"]
    assert certified == pytest.approx(quantised_share(prepared.all_layers(), inside), abs=1e-4)
    assert all((row["sensitivity"] is not None) >= (row["name"] in inside) for row in rows)


def test_a_certificate_is_checked_again_on_its_data(int8, shapes, tmp_path):
    bundle, _ = int8
    report = recheck(bundle, GuardOptions(shapes))
    assert sorted(row["metric"] for row in report) == ["P@0.9", "mIoU"]
    for row in report:
        assert row["measured"] == pytest.approx(row["certified"], abs=1e-3)
    parity = json.loads(json.dumps(bundle.manifest.parity))
    accuracy = parity["certificate"]["accuracy"]
    accuracy["quantised"]["mIoU"] = accuracy["fp32"]["mIoU"] = 99.0
    accuracy["max_drop"] = {"P@0.9": 100, "mIoU": 0.5}
    better = replace(bundle, manifest=replace(bundle.manifest, parity=parity))
    with pytest.raises(GateError, match=r"the certificate allows 98\.50"):
        recheck(better, GuardOptions(shapes))
    accuracy["data"]["fingerprint"] = "0"
    with pytest.raises(InputError, match="other pictures"):
        recheck(better, GuardOptions(shapes))
    parity["certificate"]["accuracy"] = {}
    with pytest.raises(InputError, match="no measured accuracy"):
        recheck(better, GuardOptions(shapes))


def test_what_is_int8_cannot_be_quantised_again(int8, calibration, tmp_path):
    bundle, _ = int8
    with pytest.raises(InputError, match="quantised already"):
        quantize_bundle(bundle, tmp_path / "twice", calibration)
    # Not even where the manifest hides it.
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in FILES:
        (hidden / name).write_bytes(bundle.file(name).read_bytes())
    manifest = replace(
        bundle.manifest, precision="fp32", files={n: file_facts(hidden / n) for n in FILES}
    )
    (hidden / MANIFEST).write_text(manifest.to_json())
    with pytest.raises(InputError, match="quantised already"):
        PreparedBundle.open(hidden)
    assert not (tmp_path / "twice").exists()


def test_a_calibration_of_another_model_writes_nothing(small, calibration, tmp_path):
    for key, value, words in (
        ("fingerprint", "0", "is of another model"),
        ("image_size", [480, 480], r"images of \[480, 480\]"),
    ):
        other = replace(calibration, model={**calibration.model, key: value})
        with pytest.raises(InputError, match=words):
            quantize_bundle(small, tmp_path / "out", other)
    assert list(tmp_path.iterdir()) == []


def test_a_bound_that_fails_leaves_nothing_behind(small, calibration, shapes, tmp_path):
    guard = GuardOptions(shapes, "shapes", count=2, probes=1, min_share=1.0)
    with pytest.raises(GateError, match="less than the 100% asked for"):
        quantize_bundle(small, tmp_path / "out", calibration, guard)
    with pytest.raises(InputError, match="metric is 'mAP'"):
        quantize_bundle(small, tmp_path / "out", calibration, replace(guard, bounds={"mAP": 1}))
    with pytest.raises(InputError, match="target is 'gpu'"):
        quantize_bundle(small, tmp_path / "out", calibration, target="gpu")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_quantised_with_a_warning(retrained, calibration, shapes, tmp_path):
    with pytest.warns(UserWarning, match="no data to compare"):
        quantize_bundle(retrained, tmp_path / "a", calibration)
    guard = GuardOptions(shapes, "shapes", count=2, bounds=BOUNDS, probes=1)
    with pytest.warns(UserWarning, match=r"[1-9]\d* ranges of \d+ are exceeded"):
        quantize_bundle(retrained, tmp_path / "b", calibration, guard)


def test_the_command_line_from_calibration_to_parity(capsys, small, shapes, tmp_path, monkeypatch):
    data = ("--data", shapes, "--dataset", "shapes")
    ranges = tmp_path / "ranges.json"
    code, out, err = run(
        capsys, "calibrate", "--bundle", small.path, *data, "--output", ranges,
        "--count", 32, "--observer", "minmax", "--no-smooth", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["ranges"] == sum(
        len(graph.amax) for graph in Calibration.load(ranges).graphs.values()
    )
    code, out, _ = run(capsys, "calibrate", "diff", ranges, ranges)
    assert code == 0 and out.startswith("0 of ")
    target = tmp_path / "int8"
    code, out, err = run(
        capsys, "export", "--bundle", small.path, "--precision", "int8", "--output", target,
        "--calibration", ranges, *data, "--guard-count", 2,
        "--max-drop", 100, "--max-drop", "P@0.9=99.5",
    )  # fmt: skip
    assert code == 0, err
    assert "of the arithmetic in INT8" in out and "evaluations" in out
    assert "100 allowed" in out and "99.5 allowed" in out
    accuracy = Bundle.open(target).manifest.parity["certificate"]["accuracy"]
    assert accuracy["max_drop"] == {"mIoU": 100, "P@0.9": 99.5}
    code, out, err = run(capsys, "parity", "--bundle", target, *data)
    assert code == 0 and "mIoU" in out, err
    code, _, err = run(capsys, "parity", "--bundle", target)
    assert code == 1 and "--data" in err and err.count("\n") == 1
    code, out, _ = run(capsys, "info", "--bundle", target)
    assert code == 0 and "arithmetic in INT8" in out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("calibrate",), 1, "--bundle"),
        (("calibrate", "--bundle", "{small}", "--data", "x"), 1, "--output"),
        (("calibrate", "--bundle", "/no", "--data", "x", "--output", "r.json"), 1, "/no"),
        (("calibrate", "--bundle", "{small}", "--data", "/no", "--output", "r.json"), 1, "/no"),
        (("calibrate", "--bundle", "{small}", "--data", "x", "--output", "/no/r.json"), 1, "/no"),
        (("calibrate", "diff", "/no.json", "/no.json"), 1, "/no.json"),
        (("export", "--bundle", "{small}", "--output", "o"), 1, "--precision int8"),
        (
            (
                *("export", "--bundle", "{small}", "--output", "o", "--precision", "int8"),
                *("--data", "x", "--calibration", "/no.json", "--max-drop", "P@0.9=much"),
            ),
            1,
            "P@0.9=much",
        ),
        (("export", "--bundle", "{small}", "--output", "o", "--precision", "int8"), 1, "--data"),
        (
            (
                *("export", "--bundle", "{small}", "--output", "o", "--precision", "int8"),
                *("--calibration", "/no.json"),
            ),
            1,
            "/no.json",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, small, tmp_path, monkeypatch, argv, code, words):
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, *(arg.format(small=small.path) for arg in argv))
    assert (got, out) == (code, "")
    assert err.startswith("tfanet: error: ") and err.count("\n") == 1 and words in err
    assert list(tmp_path.iterdir()) == []


def test_calibration_needs_no_pytorch_and_the_runtime_no_calibration():
    def imported(line: str) -> set[str]:
        code = f"{line}\nimport sys\nprint(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        return set(done.stdout.split())

    assert "torch" not in imported("import tfanet.calibration, tfanet.cli.calibrate")
    modules = imported("import tfanet.runtime")
    assert not {"torch", "onnx"} & modules
    assert not any(name.startswith("tfanet.calibration") for name in modules)
