"""The guard's search against trying every number of layers; sensitivities against single layers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import small_models

from tfanet.calibration.accept.accuracy import logits
from tfanet.calibration.accept.guard import search
from tfanet.calibration.accept.sensitivity import SWITCHES, measure_sensitivity, switched
from tfanet.calibration.graph.layers import FLOAT, QUANTISED, Layer, quantised_share
from tfanet.calibration.measure.sampler import choose
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.calibration.rewrite.qdq import quantize
from tfanet.errors import GateError, InputError

BASELINE = {"mIoU": 70.0, "P@0.9": 40.0}
BOUND = {"mIoU": 0.5}


def make_layers(count: int, seed: int = 0) -> tuple[list[Layer], dict[str, float]]:
    rng = np.random.default_rng(seed)
    layers = [
        Layer(f"l{i}", f"l{i}", "MatMul", ("x",), "w", 1, "", int(rng.integers(1, 50)), QUANTISED)
        for i in range(count)
    ]
    layers.append(Layer("end", "end", "MatMul", ("x",), "w", 1, "", 10, FLOAT, "last"))
    return layers, {f"l{i}": float(rng.exponential()) for i in range(count)}


@pytest.mark.parametrize("seed", range(12))
def test_the_least_number_of_layers_is_found_with_few_evaluations(seed):
    count = 5 + 13 * seed
    layers, sensitivity = make_layers(count, seed)
    ranked = sorted(sensitivity, key=lambda name: -sensitivity[name])
    rng = np.random.default_rng(100 + seed)
    drops = np.sort(rng.exponential(size=count + 1))[::-1]  # by layers given back
    drops[-1] = 0
    asked: list[int] = []

    def evaluate(given_back):
        asked.append(len(given_back))
        assert given_back == set(ranked[: len(given_back)])
        return {"mIoU": 70.0 - drops[len(given_back)], "P@0.9": 40.0}

    bound = float(rng.uniform(0, drops[0] * 1.1))
    result = search(layers, sensitivity, BASELINE, evaluate, bounds={"mIoU": bound}, min_share=0)
    least = next(k for k in range(count + 1) if drops[k] <= bound)
    assert len(result.keep_float) == least
    assert list(result.keep_float) == ranked[:least]
    assert result.drop == pytest.approx({"mIoU": drops[least]}) and drops[least] <= bound
    assert result.share == quantised_share(layers, set(ranked[least:]))
    assert len(asked) == len(set(asked)) == result.evaluations == len(result.tried)
    assert result.evaluations <= 2 * math.log2(count) + 2


def test_one_evaluation_where_int8_is_good_enough():
    layers, sensitivity = make_layers(40)
    result = search(layers, sensitivity, BASELINE, lambda _: {"mIoU": 69.9}, bounds=BOUND)
    assert result.evaluations == 1 and result.keep_float == ()


def test_a_bound_that_cannot_be_met_says_what_can():
    layers, sensitivity = make_layers(30)

    def evaluate(given_back):
        return {"mIoU": 70.0 - 9.0 + 0.1 * len(given_back)}

    with pytest.raises(GateError) as caught:
        search(layers, sensitivity, BASELINE, evaluate, bounds=BOUND, min_share=0.6)
    message = str(caught.value)
    ranked = sorted(sensitivity, key=lambda name: -sensitivity[name])
    most = max(k for k in range(31) if quantised_share(layers, set(ranked[k:])) >= 0.6)
    assert f"{9 - 0.1 * most:.2f} points of mIoU with {most} layers" in message
    assert "--max-drop" in message and "\n" not in message
    with pytest.raises(GateError, match="less than the 100% asked for"):
        search(layers, sensitivity, BASELINE, evaluate, bounds=BOUND, min_share=1.0)


@pytest.mark.parametrize("seed", range(8))
def test_several_bounds_hold_at_once(seed):
    """The result is the least number of layers at which every metric is within its bound."""
    count = 40
    layers, sensitivity = make_layers(count, seed)
    rng = np.random.default_rng(200 + seed)
    drops = {m: np.sort(rng.exponential(size=count + 1))[::-1] - 0.1 for m in BASELINE}
    bounds = {metric: float(rng.uniform(0.2, 1.5)) for metric in BASELINE}

    def evaluate(given_back):
        return {m: BASELINE[m] - drops[m][len(given_back)] for m in BASELINE}

    result = search(layers, sensitivity, BASELINE, evaluate, bounds=bounds, min_share=0)
    alone = [
        search(layers, sensitivity, BASELINE, evaluate, bounds={m: bound}, min_share=0)
        for m, bound in bounds.items()
    ]
    assert len(result.keep_float) == max(len(one.keep_float) for one in alone)
    assert set(result.drop) == set(bounds)
    assert all(result.drop[metric] <= bounds[metric] for metric in bounds)
    assert result.evaluations <= 2 * math.log2(count) + 2


def test_the_bound_that_fails_is_the_one_to_loosen():
    layers, sensitivity = make_layers(10)
    bounds = {"mIoU": 0.5, "P@0.9": 1.0}
    with pytest.raises(GateError) as caught:
        search(
            layers, sensitivity, BASELINE, lambda _: {"mIoU": 69.9, "P@0.9": 37.0}, bounds=bounds
        )
    message = str(caught.value)
    assert "0.5 points of mIoU and 1 points of P@0.9" in message
    assert re.search(r"allow --max-drop P@0.9=3.0[01], lower --min-share", message)
    assert "--max-drop mIoU" not in message


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": {"mAP": 0.5}},
        {"bounds": {"mIoU": 0.5, "gIoU": 0.5}},
        {"bounds": {"mIoU": 0.5, "P@0.9": -1}},
        {"bounds": {"mIoU": 101}},
        {"bounds": {}},
        {"bounds": BOUND, "min_share": 2},
    ],
)
def test_bounds_that_make_no_sense_are_one_line(options):
    layers, sensitivity = make_layers(3)
    with pytest.raises(InputError) as caught:
        search(layers, sensitivity, BASELINE, lambda _: BASELINE, **options)
    assert "\n" not in str(caught.value)


def test_a_switch_turns_one_layer_and_nothing_else(prepared, calibration):
    moved, _ = move_channels(prepared, calibration)
    model, amax = moved.models["text.onnx"], calibration.graphs["text.onnx"].amax
    layers = [layer for layer in moved.layers["text.onnx"] if layer.placement == QUANTISED]
    ids = np.random.default_rng(2).integers(0, 49406, (1, 20))
    both = switched(model, quantize(model, layers, amax), layers)
    off = np.zeros(len(layers), bool)
    exact = small_models.run(model, token_ids=ids)[0]
    got = small_models.run(both, token_ids=ids, **{SWITCHES: off})[0]
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
    for index in (0, len(layers) - 1):
        on = off.copy()
        on[index] = True
        got = small_models.run(both, token_ids=ids, **{SWITCHES: on})[0]
        expected = small_models.run(quantize(model, [layers[index]], amax), token_ids=ids)[0]
        change = np.abs(expected - exact).max()
        assert change > 1e-4
        assert np.abs(got - expected).max() < 0.05 * change


def test_sensitivity_is_the_change_that_one_layer_makes(prepared, calibration, shapes, small):
    moved, _ = move_channels(prepared, calibration)
    chosen = choose(shapes, "shapes", count=32)

    def inputs():
        return chosen.tensors(small)

    seen: list[int] = []
    found = measure_sensitivity(
        moved,
        calibration,
        inputs,
        count=1,
        progress=lambda _, done, total: seen.append(total - done),
    )
    inside = [layer for layer in moved.all_layers() if layer.placement == QUANTISED]
    assert set(found) == {layer.name for layer in inside} and seen[-1] == 0
    one = [next(iter(inputs()))]
    exact = next(logits(moved.models, lambda: one)).astype(np.float64)
    image = [layer for layer in inside if layer in moved.layers["image.onnx"]]
    # An integer kernel rounds a sum at other places, so single layers agree to some percent.
    for layer in sorted(image, key=lambda la: -found[la.name])[:3]:
        others = [la.name for la in moved.all_layers() if la != layer]
        alone = next(logits(quantize_graphs(moved, calibration, others), lambda: one))
        expected = np.sqrt(((alone - exact) ** 2).sum() / (exact**2).sum())
        assert found[layer.name] == pytest.approx(expected, rel=0.3)
    assert min(found.values()) >= 0 and max(found.values()) < 0.5
