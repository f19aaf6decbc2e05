"""Preparation of graphs and placement: outputs unchanged, arithmetic counted, rules kept."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper

from tfanet.calibration.graph.layout import to_linear
from tfanet.calibration.graph.placement import find_layers, int8_share
from tfanet.calibration.graph.reading import Graph, fold_weights, load
from tfanet.calibration.measure.source import Source
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS

RNG = np.random.default_rng(11)


def feeds_of(bundle) -> dict[str, dict[str, np.ndarray]]:
    length, width = 20, 16
    return {
        "text.onnx": {"token_ids": RNG.integers(0, 49406, (2, length))},
        "image.onnx": {
            "image": RNG.standard_normal((2, 3, 64, 64)).astype(np.float32),
            "word_features": RNG.standard_normal((2, width, length)).astype(np.float32),
            "sentence_feature": RNG.standard_normal((2, width)).astype(np.float32),
            "word_mask": np.ones((2, length), np.float32),
        },
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_prepared_graphs_compute_the_same(small, name):
    original = load(small.file(name))
    feeds = feeds_of(small)[name]
    expected = small_models.run(original, **feeds)
    folded = fold_weights(original)
    for a, b in zip(expected, small_models.run(folded, **feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    linear = to_linear(folded)
    onnx.checker.check_model(linear, full_check=True)
    for a, b in zip(expected, small_models.run(linear, **feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_no_pointwise_convolution_and_no_gemm_is_left(source):
    graph = Graph(source.models["image.onnx"])
    kinds = {node.op_type for node in graph.model.graph.node}
    assert "Gemm" not in kinds and "Conv" in kinds
    for node in graph.model.graph.node:
        if node.op_type == "Conv":
            grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
            assert grouped or set(graph.shapes[node.input[1]][2:]) != {1}


def test_multiply_accumulates_are_those_that_pytorch_counts(source, config):
    from tfanet.model.cost import describe

    facts = describe(config)
    scans = sum(
        call["calls"] * call["groups"] * call["channels"] * call["length"] * (9 * call["state"] + 1)
        for call in facts["scans"]
    )
    assert sum(layer.macs for layer in source.all_layers()) == (facts["flops"] - scans) // 2


def test_every_layer_has_its_own_name_and_floating_ones_a_reason(source):
    layers = source.all_layers()
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(bool(layer.why) == (layer.precision != "int8") for layer in layers)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["fusion.0.align.image_proj"].precision == "int8"
    assert by_name["text.clip.embeddings.token_embedding"].precision == "weights"
    last = [layer for layer in layers if layer.why == "the last projection"]
    assert [layer.name for layer in last] == [source.layers["image.onnx"][-1].name]


def test_what_feeds_the_scan_and_products_of_activations_stay_in_floating_point(source):
    graph = Graph(source.models["image.onnx"])
    precision = {layer.node: layer.precision for layer in source.layers["image.onnx"]}
    scans = [node for node in graph.model.graph.node if node.op_type == "SS2DScan"]
    assert scans
    for scan in scans:
        assert precision[scan.name] != "int8"  # the product that gives delta
        u = graph.producer[scan.input[0]]
        seen = [u.op_type]
        while u.op_type != "Conv":  # up through the SiLU
            inner = [name for name in u.input if name in graph.producer]
            u = graph.producer[inner[0]]
            seen.append(u.op_type)
        assert "Mul" in seen or "Sigmoid" in seen
        assert precision[u.name] != "int8"
        rows = graph.producer[graph.producer[scan.input[1]].input[0]]  # behind a Transpose
        assert (rows.op_type, precision[rows.name]) == ("MatMul", "int8")
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and not set(node.input) & set(graph.constants):
            assert precision[node.name] == "float"


def test_share_is_the_sum_of_what_is_chosen(source):
    layers = source.all_layers()
    inside = [layer for layer in layers if layer.precision == "int8"]
    total = sum(layer.macs for layer in layers)
    assert int8_share(layers) == sum(layer.macs for layer in inside) / total > 0.7
    assert int8_share(layers, {inside[3].name}) == inside[3].macs / total
    assert int8_share([]) == 0


def test_a_weight_with_two_readers_is_transposed_for_each():
    w = RNG.standard_normal((5, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["x"], "one"),
        helper.make_node("Conv", ["b", "w"], ["y"], "two"),
        helper.make_node("Add", ["x", "y"], ["sum"], "add"),
    ]
    shape = ["batch", 4, 3, 2]
    model = small_models.make_model(
        nodes, {"a": shape, "b": shape}, {"sum": ["batch", 5, 3, 2]}, {"w": w}
    )
    got = to_linear(model)
    a, b = (RNG.standard_normal((2, 4, 3, 2)).astype(np.float32) for _ in range(2))
    expected = np.einsum("oc,bchw->bohw", w[:, :, 0, 0], a + b)
    np.testing.assert_allclose(small_models.run(got, a=a, b=b)[0], expected, rtol=1e-5, atol=1e-6)
    assert [node.op_type for node in got.graph.node].count("MatMul") == 2


@pytest.mark.parametrize("attributes", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"group": 2}])
def test_other_convolutions_stay(attributes):
    w = RNG.standard_normal((4, 4 // attributes.get("group", 1), 1, 1)).astype(np.float32)
    node = helper.make_node("Conv", ["a", "w"], ["x"], "one", **attributes)
    model = small_models.make_model([node], {"a": [1, 4, 4, 4]}, {"x": [None] * 4}, {"w": w})
    assert [n.op_type for n in to_linear(model).graph.node] == ["Conv"]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_gemm_becomes_a_product_where_it_is_plain(alpha):
    w, b = (RNG.standard_normal(s).astype(np.float32) for s in ((6, 4), (6,)))
    node = helper.make_node("Gemm", ["a", "w", "b"], ["x"], "g", transB=1, alpha=alpha)
    model = small_models.make_model(
        [node], {"a": ["batch", 4]}, {"x": ["batch", 6]}, {"w": w, "b": b}
    )
    got = to_linear(model)
    assert ("MatMul" in {n.op_type for n in got.graph.node}) == (alpha == 1.0)
    a = RNG.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(
        small_models.run(got, a=a)[0], alpha * a @ w.T + b, rtol=1e-5, atol=1e-6
    )


def test_files_that_are_no_models_are_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no model")
    for name in ("x.onnx", "missing.onnx"):
        with pytest.raises(InputError, match=name):
            load(tmp_path / name)


def test_fingerprints_tell_structure_and_weights_apart(source, retrained):
    other = Source.open(retrained)
    assert other.fingerprint() == source.fingerprint()
    assert other.weights_fingerprint() != source.weights_fingerprint()
    layers = find_layers(Graph(other.models["image.onnx"]))
    assert [layer.name for layer in layers] == [la.name for la in source.layers["image.onnx"]]


def test_a_bundle_without_function_bodies_is_compared_with_the_library_alone(small):
    assert small.manifest.scan["function"] == "none"
    assert set(small.manifest.parity["skipped"]) == {"onnxruntime, function body"}
    assert not onnx.load(small.file("image.onnx")).functions
