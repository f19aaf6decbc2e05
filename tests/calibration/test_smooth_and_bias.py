"""Migration is exact, its steps follow the formula; corrected biases restore the mean."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
from onnx import helper, numpy_helper

from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import find_layers
from tfanet.calibration.rewrite.bias_correction import correct_biases
from tfanet.calibration.rewrite.qdq import quantize_weight
from tfanet.calibration.rewrite.smooth import exponents, find_groups, migrate
from tfanet.errors import InputError

RNG = np.random.default_rng(23)


@pytest.fixture
def normed():
    """A LayerNorm with outliers in two channels, read by two linear layers."""
    gain = np.ones(8, np.float32)
    gain[2], gain[5] = 60, 0.02
    constants = {
        "gain": gain,
        "shift": RNG.standard_normal(8).astype(np.float32),
        "w1": RNG.standard_normal((8, 6)).astype(np.float32),
        "w2": RNG.standard_normal((8, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w1"], ["a"], "one"),
        helper.make_node("MatMul", ["n", "w2"], ["b"], "two"),
        helper.make_node("Sigmoid", ["a"], ["ya"], "s1"),
        helper.make_node("Sigmoid", ["b"], ["yb"], "s2"),
    ]
    outputs = {"ya": ["batch", 5, 6], "yb": ["batch", 5, 3]}
    return small_models.make_model(nodes, {"x": ["batch", 5, 8]}, outputs, constants), constants


def test_a_migrated_model_is_the_same_to_the_bit(normed):
    model, w = normed
    graph = GraphIndex(model)
    (group,) = find_groups(graph, find_layers(graph))
    x = RNG.standard_normal((64, 5, 8)).astype(np.float32)
    wide = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * w["gain"] + w["shift"]
    amax = np.abs(wide).max((0, 1))
    moved = exponents(graph, group, amax)
    rows = np.maximum(np.abs(w["w1"]).max(1), np.abs(w["w2"]).max(1))
    expected = np.log2(np.sqrt(amax / rows))
    assert np.abs(moved - (expected - np.median(expected))).max() <= 0.5
    assert moved[2] == moved.max() >= 2
    got = migrate(model, [group], {"n": moved.tolist()})
    for a, b in zip(small_models.run(model, x=x), small_models.run(got, x=x), strict=True):
        np.testing.assert_array_equal(a, b)
    # Both sides are more even than the activation was.
    spread = np.ptp(np.log2(amax / np.exp2(moved)))
    assert spread < 0.7 * np.ptp(np.log2(amax))


def test_a_whole_model_is_the_same_to_the_bit(prepared, calibration):
    from tfanet.calibration.rewrite.apply import move_channels

    moved, same = move_channels(prepared, calibration)
    assert same
    steps = calibration.graphs["image.onnx"].smooth
    assert len(steps) > 5 and any(any(e) for e in steps.values())
    feeds = {
        "image": RNG.standard_normal((1, 3, 64, 64)).astype(np.float32),
        "word_features": RNG.standard_normal((1, 16, 20)).astype(np.float32),
        "sentence_feature": RNG.standard_normal((1, 16)).astype(np.float32),
        "word_mask": np.ones((1, 20), np.float32),
    }
    a, b = (small_models.run(s.models["image.onnx"], **feeds)[0] for s in (prepared, moved))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max())


def test_a_norm_that_others_read_too_is_no_group(normed):
    model, _ = normed
    model.graph.node.append(helper.make_node("Softmax", ["n"], ["p"], "softmax"))
    graph = GraphIndex(model)
    assert find_groups(graph, find_layers(graph)) == []


def test_moves_of_another_model_are_refused(normed):
    model, _ = normed
    graph = GraphIndex(model)
    groups = find_groups(graph, find_layers(graph))
    with pytest.raises(InputError, match="'other'"):
        migrate(model, groups, {"other": [0] * 8})
    with pytest.raises(InputError, match="9 channels of 'n'"):
        migrate(model, groups, {"n": [0] * 9})


def mean_shift(model, corrected, layer, x, forward):
    """Mean by output channel of the rounded layer's result minus the exact one's."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    biases = {t.name: numpy_helper.to_array(t) for t in corrected.graph.initializer}
    q, scale = quantize_weight(tensors["w"], layer.axis)
    shape = [-1 if i == layer.axis else 1 for i in range(q.ndim)]
    rounded = q.astype(np.float64) * scale.reshape(shape)
    exact = forward(x, tensors["w"].astype(np.float64)) + tensors["b"]
    return (forward(x, rounded) + biases["b"] - exact).mean(0)


@pytest.mark.parametrize("op", ["MatMul", "Conv", "grouped Conv"])
def test_the_mean_of_each_output_channel_comes_back(op):
    x = RNG.standard_normal((400, 6)) * RNG.uniform(0.1, 3, 6) + RNG.uniform(-4, 4, 6)
    b = RNG.standard_normal(4).astype(np.float32)
    if op == "MatMul":
        w = RNG.standard_normal((6, 4)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], "layer"),
            helper.make_node("Add", ["p", "b"], ["y"], "bias"),
        ]
        shape, out = ["batch", 1, 6], ["batch", 1, 4]

        def forward(x, w):
            return x @ w
    else:
        groups = 2 if op.startswith("grouped") else 1
        w = RNG.standard_normal((4, 6 // groups, 3, 3)).astype(np.float32)
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer", group=groups)]
        shape, out = ["batch", 6, 3, 3], ["batch", 4, 1, 1]

        def forward(x, w):
            # The same pixel under all nine places of the kernel.
            parts = np.split(x, groups, axis=1)
            rows = np.split(w.sum((2, 3)), groups, axis=0)
            return np.concatenate([p @ r.T for p, r in zip(parts, rows, strict=True)], axis=1)

    nodes.append(helper.make_node("Sigmoid", ["y"], ["z"], "end"))
    model = small_models.make_model(nodes, {"x": shape}, {"z": out}, {"w": w, "b": b})
    (layer,) = find_layers(GraphIndex(model))
    before = mean_shift(model, model, layer, x, forward)
    corrected = correct_biases(model, [layer], {"x": x.mean(0)})
    after = mean_shift(model, corrected, layer, x, forward)
    assert np.abs(before).max() > 1e-3
    assert np.abs(after).max() < 1e-5
