"""`export_onnx`: 16-bit models are held to what 16 bits allow; faults are named where they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tfanet.errors import GateError, InputError
from tfanet.export import export_onnx
from tfanet.export.user_model import onnx_file
from tfanet.export.user_model.bfloat16 import widened

import onnxruntime

ZOO = Path(__file__).resolve().parent.parent / "zoo"
STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ZOO))
    yield
    for name in [n for n in sys.modules if n.startswith("zoo_")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", STEPS)
def test_models_of_16_bits_are_held_to_the_exact_result(tmp_path: Path, kind: str) -> None:
    import zoo_mistakes

    torch.manual_seed(3)
    model = zoo_mistakes.Scan().to(getattr(torch, kind))
    path = tmp_path / "model.onnx"
    parity = export_onnx(model, path, input=f"x:1x3x4x5:{kind}")["parity"]
    assert parity["reference"] == "float64"
    assert len(parity["cases"]) == 4
    for case in parity["cases"]:
        assert case["limit"] >= STEPS[kind] and case["pytorch_error"] < 8 * STEPS[kind]
        assert ("in float32" in case["backend"]) == (kind == "bfloat16")
    elem = onnx.load(path).graph.input[0].type.tensor_type.elem_type
    assert elem == getattr(onnx.TensorProto, kind.upper())
    # What was written, beside the same weights in float64, on numbers that the export has not seen.
    x = torch.randn(4, 3, 4, 5).to(model.A.dtype)
    with torch.no_grad():
        exact = model.double()(x.double()).numpy()
    file = onnx.load(path)
    feed = x.numpy() if kind == "float16" else x.float().numpy()
    data = (file if kind == "float16" else widened(file)).SerializeToString()
    got = onnxruntime.InferenceSession(data).run(None, {"x": feed})[0].astype(np.float64)
    assert np.abs(got - exact).max() <= 8 * STEPS[kind] * np.abs(exact).max()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", STEPS)
def test_a_wrong_graph_of_16_bits_fails_the_gate(tmp_path: Path, kind: str) -> None:
    import zoo_mistakes

    model = zoo_mistakes.wrong_in_the_graph_of_16_bits().to(getattr(torch, kind))
    with pytest.raises(GateError, match=r"error 1\.\de-02 \(limit .* the graph does not compute"):
        export_onnx(model, tmp_path / "m.onnx", input=f"1x3x4x4:{kind}")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_rounds_inside_is_one_of_16_bits(tmp_path: Path) -> None:
    """ONNX Runtime may leave its casts out, and be nearer to the exact result than PyTorch is."""
    report = export_onnx("zoo_mistakes:rounds_inside", tmp_path / "m.onnx", input="1x3x4x4")
    assert report["parity"]["reference"] == "float64"
    assert report["parity"]["max_rel_error"] < STEPS["float16"]


def test_float32_models_keep_their_limit(tmp_path: Path) -> None:
    report = export_onnx("zoo_mistakes:scan", tmp_path / "m.onnx", input="1x3x4x4")
    assert report["parity"]["reference"] == "PyTorch"
    assert {case["limit"] for case in report["parity"]["cases"]} == {1e-4}


FAULTS = {
    "draws_gumbel_noise": r"different results for the same input, by .*: it draws random numbers "
    r"in evaluation mode \(aten\.exponential_ at .*zoo_mistakes\.py, line \d+\)",
    "drops_in_evaluation": r"it draws random numbers .*\(aten\..* at .*zoo_mistakes\.py, line",
    "counts_its_calls": r"different results .* it keeps a state between calls",
    "seeds_itself": r"the graph draws random numbers of its own \(RandomUniformLike\), because the "
    r"model does \(aten\.rand_like at .*zoo_mistakes\.py, line \d+\)",
    "no_operator": r"ONNX has no operator for aten\._linalg_svd\.default in module before "
    r"\(Before\), .*zoo_mistakes\.py, line \d+",
    "takes_sizes_as_numbers": r"fixes batch at 3 and w at 4 in the graph.*--no-dynamic-batch and 4 "
    r"in place of w=4",
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_named_and_the_graph_not_blamed(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=FAULTS[name]) as caught:
        export_onnx(f"zoo_mistakes:{name}", tmp_path / "m.onnx", input="1x3x4xw=4")
    assert "does not compute" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_are_fixed_by_the_user_may_be_numbers(tmp_path: Path) -> None:
    export_onnx(
        "zoo_mistakes:takes_sizes_as_numbers",
        tmp_path / "m.onnx",
        input="2x3x4x4",
        dynamic_batch=False,
    )


def test_no_scan_is_found_before_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: Any) -> None:
        raise AssertionError("the export began")

    monkeypatch.setattr(onnx_file, "export_graph", export)
    with pytest.raises(InputError, match="holds no selective scan"):
        export_onnx("zoo_mistakes:no_scan", tmp_path / "m.onnx", input="1x3x4x4")


def test_the_level_of_the_weights_is_reported(tmp_path: Path) -> None:
    import zoo_mistakes

    state = zoo_mistakes.scan().state_dict()
    torch.save({"params": state, "params_ema": state}, tmp_path / "w.pth")
    report = export_onnx(
        "zoo_mistakes:scan", tmp_path / "m", input="1x3x4x4", checkpoint=tmp_path / "w.pth"
    )
    assert report["weights"] == "params_ema"
