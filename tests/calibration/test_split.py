"""Splits are exact before rounding, choose what a search by hand chooses, and round less."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper
from saturation import fake, fake_weight

from tfanet.calibration import Calibration, calibrate, quantize_bundle
from tfanet.calibration.accept.accuracy import logits
from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import find_layers
from tfanet.calibration.grid import INT8
from tfanet.calibration.measure.sampler import choose
from tfanet.calibration.measure.splits import Regions, is_crowded, outlier_channels
from tfanet.calibration.ranges import GraphRanges
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.calibration.rewrite.qdq import quantize
from tfanet.calibration.rewrite.split import split_inputs, split_layers
from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS

RNG = np.random.default_rng(31)


@pytest.fixture
def text():
    """Two linear layers that read one value with three wide channels, then GELU and a third."""
    constants = {
        "gain": np.where(np.isin(np.arange(16), [3, 8, 14]), 40, 1).astype(np.float32),
        "w1": (0.3 * RNG.standard_normal((16, 12))).astype(np.float32),
        "w2": (0.02 * RNG.standard_normal((16, 5))).astype(np.float32),
        "w3": (0.02 * RNG.standard_normal((12, 4))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["wide"], "mul"),
        helper.make_node("MatMul", ["wide", "w1"], ["a"], "one"),
        helper.make_node("MatMul", ["wide", "w2"], ["b"], "two"),
        helper.make_node("Gelu", ["a"], ["g"], "gelu"),
        helper.make_node("MatMul", ["g", "w3"], ["c"], "three"),
        helper.make_node("Sigmoid", ["b"], ["y"], "s1"),
        helper.make_node("Tanh", ["c"], ["z"], "s2"),
    ]
    outputs = {"y": ["batch", 7, 5], "z": ["batch", 7, 4], "wide": ["batch", 7, 16]}
    model = small_models.make_model(nodes, {"x": ["batch", 7, 16]}, outputs, constants)
    return model, find_layers(GraphIndex(model)), constants


RANGES = GraphRanges(
    amax={"wide": 120.0, "g": 80.0},
    smooth={},
    means={},
    outliers={"wide": [[3, 8, 11, 14], [4.0, 120.0]]},
    regions={"g": [5.0, 4]},
)


def test_a_split_model_is_the_same_in_floating_point(text):
    model, layers, _ = text
    got, split, amax = split_layers(model, layers, RANGES)
    onnx.checker.check_model(got, full_check=True)
    x = RNG.standard_normal((2, 7, 16)).astype(np.float32)
    for a, b in zip(small_models.run(model, x=x), small_models.run(got, x=x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    assert len(split) == 6 and len({layer.node for layer in split}) == 6
    counts = [node.op_type for node in got.graph.node]
    assert counts.count("MatMul") == 6
    assert counts.count("Gather") == 2  # shared by both readers
    assert (counts.count("Clip"), counts.count("Sub")) == (1, 1)
    assert amax == {
        **RANGES.amax,
        "wide.inner": 4.0,
        "wide.outer": 120.0,
        "g.inner": 5.0,
        "g.outer": 80.0,
    }
    assert small_models.run(model, x=x)[0].shape == (2, 7, 5)  # the original is untouched


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_quantised_split_computes_what_numpy_does(text, unsigned):
    model, layers, w = text
    got, split, amax = split_layers(model, layers, RANGES)
    quantised = quantize(got, split, amax, unsigned=unsigned)
    x = RNG.standard_normal((1, 7, 16)).astype(np.float32)
    wide = (x * w["gain"])[0].astype(np.float64)
    outer = [3, 8, 11, 14]
    inner = [c for c in range(16) if c not in outer]
    b = fake(wide[:, inner], 4.0) @ fake_weight(w["w2"][inner], 1, pairs=unsigned)
    b = b + fake(wide[:, outer], 120.0) @ fake_weight(w["w2"][outer], 1, pairs=unsigned)
    y, z, _ = small_models.run(quantised, x=x)
    np.testing.assert_allclose(y[0], 1 / (1 + np.exp(-b)), atol=2e-3)
    a = fake(wide[:, inner], 4.0) @ fake_weight(w["w1"][inner], 1, pairs=unsigned)
    a = a + fake(wide[:, outer], 120.0) @ fake_weight(w["w1"][outer], 1, pairs=unsigned)
    g = small_models.run(
        small_models.make_model(
            [helper.make_node("Gelu", ["a"], ["g"])], {"a": [7, 12]}, {"g": [7, 12]}, {}
        ),
        a=a.astype(np.float32),
    )[0]
    crowd = np.clip(g, -5, 5)
    rounded = fake(crowd, 5.0) + fake(g - crowd, 80.0)
    np.testing.assert_allclose(
        z[0], np.tanh(rounded @ fake_weight(w["w3"], 1, pairs=unsigned)), atol=0.02
    )
    plain = quantize(model, layers, RANGES.amax, unsigned=unsigned)
    exact = small_models.run(model, x=x)
    before = np.abs(small_models.run(plain, x=x)[0] - exact[0]).mean()
    assert np.abs(y - exact[0]).mean() < 0.7 * before


@pytest.mark.parametrize("seed", range(6))
def test_the_outliers_are_the_cut_with_the_least_noise(seed):
    rng = np.random.default_rng(seed)
    amax = rng.uniform(0.5, 1.5, 48).astype(np.float32)
    wide = rng.choice(48, 3 + seed, replace=False)
    amax[wide] *= rng.uniform(20, 60)
    found = outlier_channels(amax)
    assert set(wide) <= set(found) and len(found) % 4 == 0
    order = np.argsort(-amax)

    def noise(k: int) -> float:
        groups = (amax[order[:k]], amax[order[k:]])
        return sum(float(len(g) * g.max() ** 2) for g in groups if len(g))

    assert noise(len(found)) == pytest.approx(min(noise(k) for k in range(0, 25, 4)), rel=1e-5)
    assert outlier_channels(rng.uniform(0.9, 1.1, 48).astype(np.float32)) == []
    assert outlier_channels(np.zeros(48, np.float32)) == outlier_channels(amax[:3]) == []


def test_two_regions_are_the_best_of_all_ratios():
    x = np.abs(RNG.standard_normal(200_000) ** 3).astype(np.float32)
    regions = Regions()
    for part in np.split(x, 4):
        regions.update(float(part.max()), part)
    largest = float(x.max())

    def error(t: float, k: int) -> float:
        inner = np.clip(x, -t, t)
        return float(((fake(inner, t) + fake(x - inner, t * 2**k) - x) ** 2).mean())

    t, k = regions.split(INT8, largest)
    tried = {k: error(largest / (1 + 2**k), k) for k in range(8)}
    assert t == pytest.approx(largest / (1 + 2**k), rel=1e-6)
    assert tried[k] <= 1.02 * min(tried.values())
    assert tried[k] < 0.5 * float(((fake(x, largest) - x) ** 2).mean())
    even = Regions()
    even.update(1.0, np.linspace(0.99, 1, 1000, dtype=np.float32))
    empty = Regions()
    assert empty.split(INT8, 0.0) is None
    assert even.split(INT8, 1.0) is None or even.split(INT8, 1.0)[1] < 8


def test_what_crowds_near_zero_is_found_behind_moves():
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], "gelu"),
        helper.make_node("Transpose", ["g"], ["t"], "t", perm=[0, 2, 1]),
        helper.make_node("Sigmoid", ["x"], ["s"], "s"),
        helper.make_node("Mul", ["x", "s"], ["m"], "m"),
        helper.make_node("Relu", ["x"], ["r"], "r"),
    ]
    shape = ["batch", 3, 4]
    outputs = {"t": ["batch", 4, 3], "m": shape, "r": shape}
    graph = GraphIndex(small_models.make_model(nodes, {"x": shape}, outputs, {}))
    assert [is_crowded(graph, name) for name in "gtmrx"] == [True, True, True, False, False]


@pytest.fixture(scope="module")
def both(small, shapes) -> Calibration:
    return calibrate(small, shapes, "shapes", count=32, outliers=True, dual_region=True)


def test_a_whole_model_with_both_schemes(prepared, both, small, shapes, calibration):
    moved, _ = move_channels(prepared, both)
    chosen = choose(shapes, "shapes", "val", count=2)
    exact = np.concatenate(list(logits(moved.models, lambda: chosen.tensors(small))))
    found = {name: len(both.graphs[name].regions) for name in GRAPHS}
    assert sum(found.values()) > 0
    for name in GRAPHS:
        candidates = set(split_inputs(moved.layers[name]))
        assert both.graphs[name].regions.keys() | both.graphs[name].outliers.keys() <= candidates
    assert both.graphs["image.onnx"].outliers == {}
    models = quantize_graphs(moved, both)
    for model in models.values():
        onnx.checker.check_model(model, full_check=True)
    got = np.concatenate(list(logits(models, lambda: chosen.tensors(small))))
    assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.1
    # Ranges without the schemes are what they were.
    for name in GRAPHS:
        assert both.graphs[name].amax == calibration.graphs[name].amax
    assert json.loads(json.dumps(both.graphs["image.onnx"].regions))


def test_the_schemes_from_the_command_line(capsys, small, shapes, tmp_path, both):
    ranges = tmp_path / "ranges.json"
    argv = ("calibrate", "--bundle", small.path, "--data", shapes, "--dataset", "shapes")
    options = ("--count", 32, "--outliers", "--dual-region", "--output", ranges)
    assert main([str(arg) for arg in (*argv, *options)]) == 0
    assert Calibration.load(ranges) == both
    bundle, report = quantize_bundle(small, tmp_path / "b", ranges, target="onnxruntime")
    plain = {"outliers": 0, "regions": 0}
    assert report["certificate"]["calibration"]["splits"] != plain
    other = tmp_path / "fp8.json"
    fp8 = ("calibrate", "--precision", "fp8", *argv[1:], "--dual-region", "--output", other)
    assert main([str(arg) for arg in fp8]) == 1
    assert "steps are even" in capsys.readouterr().err
    with pytest.raises(InputError, match="steps are even"):
        calibrate(small, shapes, "shapes", precision="fp8", outliers=True)
    assert bundle.manifest.precision == "int8"
