"""Graphs prepared and layers placed: outputs unchanged, arithmetic counted, rules kept."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper

from tfanet.calibration.graph.fold import fold_weights
from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import FLOAT, QUANTISED, STORED, find_layers, quantised_share
from tfanet.calibration.graph.linear import to_linear
from tfanet.calibration.graph.prepared import PreparedBundle, read_graph
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import FILES, MANIFEST, file_facts

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
    original = read_graph(small, name)
    feeds = feeds_of(small)[name]
    expected = small_models.run(original, **feeds)
    folded = fold_weights(original)
    for a, b in zip(expected, small_models.run(folded, **feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    linear = to_linear(folded)
    onnx.checker.check_model(linear, full_check=True)
    for a, b in zip(expected, small_models.run(linear, **feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_no_pointwise_convolution_and_no_gemm_is_left(prepared):
    graph = GraphIndex(prepared.models["image.onnx"])
    kinds = {node.op_type for node in graph.model.graph.node}
    assert "Gemm" not in kinds and "Conv" in kinds
    for node in graph.model.graph.node:
        if node.op_type == "Conv":
            grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
            assert grouped or set(graph.shapes[node.input[1]][2:]) != {1}


def test_multiply_accumulates_are_those_that_pytorch_counts(prepared, config):
    from tfanet.model.cost import describe

    facts = describe(config)
    scans = sum(
        call["calls"] * call["groups"] * call["channels"] * call["length"] * (9 * call["state"] + 1)
        for call in facts["scans"]
    )
    assert sum(layer.macs for layer in prepared.all_layers()) == (facts["flops"] - scans) // 2


def test_every_layer_has_its_own_name_and_floating_ones_a_reason(prepared):
    layers = prepared.all_layers()
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(bool(layer.why) == (layer.placement != QUANTISED) for layer in layers)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["fusion.0.align.image_proj"].placement == QUANTISED
    assert by_name["text.clip.embeddings.token_embedding"].placement == STORED
    last = [layer for layer in layers if layer.why == "the last projection"]
    assert [layer.name for layer in last] == [prepared.layers["image.onnx"][-1].name]


def test_what_feeds_the_scan_and_products_of_activations_stay_in_floating_point(prepared):
    graph = GraphIndex(prepared.models["image.onnx"])
    placement = {layer.node: layer.placement for layer in prepared.layers["image.onnx"]}
    scans = [node for node in graph.model.graph.node if node.op_type == "SS2DScan"]
    assert scans
    for scan in scans:
        assert placement[scan.name] != QUANTISED  # the product that gives delta
        u = graph.producer[scan.input[0]]
        seen = [u.op_type]
        while u.op_type != "Conv":  # up through the SiLU
            inner = [name for name in u.input if name in graph.producer]
            u = graph.producer[inner[0]]
            seen.append(u.op_type)
        assert "Mul" in seen or "Sigmoid" in seen
        assert placement[u.name] != QUANTISED
        rows = graph.producer[graph.producer[scan.input[1]].input[0]]  # behind a Transpose
        assert (rows.op_type, placement[rows.name]) == ("MatMul", QUANTISED)
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and not set(node.input) & set(graph.constants):
            assert placement[node.name] == FLOAT


def test_share_is_the_sum_of_what_is_chosen(prepared):
    layers = prepared.all_layers()
    inside = [layer for layer in layers if layer.placement == QUANTISED]
    total = sum(layer.macs for layer in layers)
    assert quantised_share(layers) == sum(layer.macs for layer in inside) / total > 0.7
    assert quantised_share(layers, {inside[3].name}) == inside[3].macs / total
    assert quantised_share([]) == 0


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


def test_a_graph_that_cannot_be_parsed_is_refused_by_its_name(small, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(small.path, path)
    with open(path / "text.onnx", "ab") as file:
        file.write(b"\x42\x01\x0a")  # an opset_import that ends within a field
    files = {name: file_facts(path / name) for name in FILES}
    (path / MANIFEST).write_text(replace(small.manifest, files=files).to_json())
    with pytest.raises(InputError, match=r"text\.onnx cannot be read as an ONNX model"):
        PreparedBundle.open(path)


def test_fingerprints_tell_structure_and_weights_apart(prepared, retrained):
    other = PreparedBundle.open(retrained)
    assert other.fingerprint() == prepared.fingerprint()
    assert other.weights_fingerprint() != prepared.weights_fingerprint()
    layers = find_layers(GraphIndex(other.models["image.onnx"]))
    assert [layer.name for layer in layers] == [la.name for la in prepared.layers["image.onnx"]]


def test_a_bundle_without_function_bodies_is_compared_with_the_library_alone(small):
    assert small.manifest.scan["function"] == "none"
    assert set(small.manifest.parity["skipped"]) == {"onnxruntime, function body"}
    assert not onnx.load(small.file("image.onnx")).functions
