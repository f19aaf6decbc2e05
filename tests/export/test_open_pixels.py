"""Parity's count of changed pixels: what float32 itself leaves open does not count, faults do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tfanet.cli.output import parity_table
from tfanet.errors import GateError
from tfanet.export.compare import Case, make_cases
from tfanet.export.parity import check
from tfanet.model.family import FAMILIES, find_family
from tfanet.runtime.backends.choose import Running
from tfanet.runtime.bundle.contract import Tokenization

SIZE = (64, 64)
Runner = Callable[[object, object, Case], dict[str, np.ndarray]]


def float64(model: torch.nn.Module, case: Case) -> np.ndarray:
    doubled = replace(
        case, image=case.image.astype(np.float64), word_mask=case.word_mask.astype(np.float64)
    )
    return check._run_torch(copy.deepcopy(model).double(), doubled)[0]["mask_logit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_open_is_what_lies_within_the_error_of_float32(family: str) -> None:
    found = find_family(family)
    torch.manual_seed(0)
    config = found.presets[f"{family}-tiny"]
    model = found.network(config).eval()
    case = make_cases(found.tokenization(config), config.image_size, False)[0]
    exact = float64(model, case)
    assert exact.dtype == np.float64
    given = check._run_torch(model, case)[0]["mask_logit"]
    assert 0 < np.abs(given - exact).max() < 1e-4 * np.abs(exact).max()
    # In the middle, so that many pixels are near; with an error put on one that is far from it.
    threshold = float(np.median(exact))
    for error, counts in ((5e-5, True), (2e-4, False)):
        noisy = exact.copy()
        noisy[np.unravel_index(exact.argmax(), exact.shape)] += error * np.abs(exact).max()
        open_ = check._left_open(model, case, {"mask_logit": noisy}, threshold)
        near = np.abs(exact - threshold) <= error * np.abs(exact).max()
        assert near.any() and np.array_equal(open_, near & counts)


def checked(monkeypatch, model, run: Runner) -> dict:
    monkeypatch.setattr(check, "run_outputs", run)
    running = Running("onnxruntime-cpu", None, None, "", (1, 8))  # type: ignore[arg-type]
    monkeypatch.setattr(type(running), "close", lambda _: None, raising=False)
    backends = {"other": check.Backend(False, lambda: running)}
    tokens: Tokenization = find_family("tfanet").tokenization(model.config)
    return check.check_graphs(model, backends, SIZE, tokens=tokens, dynamic_batch=False)


def turned(model, case: Case, count: int, nearest: bool) -> dict[str, np.ndarray]:
    """PyTorch's outputs, with the signs of a few logits turned."""
    outputs = check._run_torch(model, case)[0]
    z = outputs["mask_logit"] = outputs["mask_logit"].copy()
    order = np.argsort(np.abs(z), axis=None)
    chosen = order[:count] if nearest else order[count : 2 * count]
    z.flat[chosen] *= -1
    return outputs


def test_pixels_that_float32_leaves_open_pass_and_are_told(monkeypatch, model) -> None:
    def left_open(_model, case: Case, given, _threshold) -> np.ndarray:
        flat = np.zeros(given["mask_logit"].size, dtype=bool)
        flat[np.argsort(np.abs(given["mask_logit"]), axis=None)[:3]] = True
        return flat.reshape(given["mask_logit"].shape)

    monkeypatch.setattr(check, "MAX_REL_ERROR", np.inf)
    monkeypatch.setattr(check, "_left_open", left_open)
    report = checked(monkeypatch, model, lambda *a: turned(model, a[2], 3, nearest=True))
    assert all(case["pixels_changed"] == case["pixels_open"] == 3 for case in report["cases"])
    assert "3 (3 open in float32)" in parity_table(report)
    with pytest.raises(GateError, match=r"3 of 4096 pixels changed \(limit 1e-05 of all"):
        checked(monkeypatch, model, lambda *a: turned(model, a[2], 3, nearest=False))
    with pytest.raises(GateError, match="4 of 4096 pixels changed, 3 of them open in float32"):
        checked(monkeypatch, model, lambda *a: turned(model, a[2], 4, nearest=True))


def test_what_is_within_the_limit_costs_no_second_run(monkeypatch, model) -> None:
    monkeypatch.setattr(check, "_left_open", lambda *_: pytest.fail("float64 was run"))
    report = checked(monkeypatch, model, lambda *a: turned(model, a[2], 0, nearest=True))
    assert report["pixels_changed"] == 0
    assert all("pixels_open" not in case for case in report["cases"])
