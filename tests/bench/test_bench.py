"""`tfanet bench`: every backend in a process of its own, in turn."""

from __future__ import annotations

import json

import pytest

from tfanet.bench.measure import BASELINE, bench
from tfanet.cli import main
from tfanet.errors import InputError, MissingDependencyError
from tfanet.progress import WHOLE

ORT, BODY = "onnxruntime-cpu", "onnxruntime-cpu, function body"


def test_backends_are_timed_side_by_side(bundle, checkpoint):
    steps = []
    report = bench(
        bundle.path,
        backends=[BASELINE, ORT, BODY, "onnxruntime-cuda"],
        batches=[2, 1],
        runs=4,
        warmup=1,
        threads=1,
        checkpoint=checkpoint,
        progress=lambda *step: steps.append(step),
    )
    results = report["candidates"]
    assert {BASELINE, ORT, BODY} <= set(results)
    assert set(results) ^ {BASELINE, ORT, BODY} ^ set(report["skipped"]) == {"onnxruntime-cuda"}
    for result in results.values():
        assert set(result["latency"]) == {"text", "image, batch 2", "image, batch 1"}
        for latency in result["latency"].values():
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        p50 = result["latency"]["image, batch 2"]["p50"]
        assert result["images_per_second"]["2"] == pytest.approx(2e3 / p50)
        base = results[BASELINE]["latency"]["image, batch 2"]["p50"]
        assert result["ratio"] == pytest.approx(base / p50)
        assert result["peak_bytes"] > 2e7 and result["open_seconds"] > 0
    onnx = sum(bundle.manifest.files[name]["size"] for name in ("text.onnx", "image.onnx"))
    assert results[ORT]["file_bytes"] == onnx
    # PyTorch is in the processes that need it only.
    assert results[ORT]["peak_bytes"] < results[BASELINE]["peak_bytes"]
    assert [step for _, step, _ in steps] == sorted(step for _, step, _ in steps)
    assert report["runs"] == 4 and steps[-1] == ("timing 4/4", WHOLE, WHOLE)


def test_the_verb_prints_a_table_and_why_backends_are_left_out(bundle, capsys):
    words = ["bench", "--bundle", str(bundle.path), "--runs", "1", "--warmup", "1"]
    assert main([*words, "--backends", BASELINE, ORT]) == 0
    text = capsys.readouterr().out
    assert "image, batch 1" in text and "p99" in text
    assert f"{BASELINE}: the bundle was made from a checkpoint: name it" in text
    assert main([*words, "--backends", ORT, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["candidates"].values()
    assert result["ratio"] is None and result["device"] == "cpu"


def test_bad_options_and_nothing_to_run(bundle):
    with pytest.raises(InputError, match="backend is 'openvino': choose from pytorch-eager, "):
        bench(bundle.path, backends=["openvino"])
    for name in ("runs", "warmup"):
        with pytest.raises(InputError, match=f"{name} is 0: give 1 or more"):
            bench(bundle.path, **{name: 0})
    with pytest.raises(InputError, match="batch is -1"):
        bench(bundle.path, batches=[-1])
    with pytest.raises(MissingDependencyError, match="nothing can run here: tensorrt: the bundle"):
        bench(bundle.path, backends=["tensorrt"])
