"""A pass over data: what is seen of each value; and which pictures are chosen."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper

from tfanet.calibration import calibrate
from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.session import OUTSIDE
from tfanet.calibration.measure.calibrator import measure_ranges
from tfanet.calibration.measure.sampler import choose
from tfanet.calibration.measure.watch import SAMPLE, Seen, WatchedGraph, stride_of
from tfanet.calibration.rewrite.qdq import ranged_values
from tfanet.data import ReferDataset
from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS


def test_what_is_seen_of_a_value_is_what_numpy_finds_in_it(prepared):
    model = prepared.models["text.onnx"]
    names = ranged_values(GraphIndex(model), prepared.layers["text.onnx"])
    axes = {name: n % 3 - 1 for n, name in enumerate(names)}
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    rng = np.random.default_rng(0)
    watched = WatchedGraph(model, axes, names[:2], {})
    for _ in range(3):
        feed = {"token_ids": rng.integers(0, 49406, (1, 20))}
        seen: dict[str, Seen] = {}
        outputs = watched.run(feed, seen.__setitem__)
        words, sentence, *values = small_models.run(single, **feed)
        assert list(seen) == names and len(names) == 4
        for name, x in zip(names, values, strict=True):
            rows = np.moveaxis(x, axes[name], 0).reshape(x.shape[axes[name]], -1)
            assert seen[name].largest == pytest.approx(np.abs(x).max(), rel=1e-5)
            np.testing.assert_allclose(seen[name].means, rows.mean(1), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(seen[name].sample, x.ravel(), rtol=1e-4, atol=1e-5)
            if name in names[:2]:
                np.testing.assert_allclose(seen[name].channels, np.abs(rows).max(1), rtol=1e-5)
            else:
                assert seen[name].channels is None
        np.testing.assert_allclose(outputs["word_features"], words, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(outputs["sentence_feature"], sentence, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 14400, 128), (1, 96, 120, 120), (1, 3, 700, 500), (1, 5)])
def test_a_sample_is_of_all_channels_alike(shape):
    size = int(np.prod(shape))
    stride = stride_of(size)
    assert np.gcd(stride, size) == 1 and -(-size // stride) <= SAMPLE
    assert stride == 1 or -(-size // (stride - 1)) > SAMPLE or np.gcd(stride - 1, size) > 1
    node = helper.make_node("Identity", ["x"], ["y"])
    model = small_models.make_model([node], {"x": list(shape)}, {"y": list(shape)}, {})
    seen: dict[str, Seen] = {}
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    x.ravel()[-2] = -40  # between two elements of the sample, where there are such
    WatchedGraph(model, {"x": 1}, [], {}).run({"x": x}, seen.__setitem__)
    np.testing.assert_array_equal(seen["x"].sample, x.ravel()[::stride])
    assert seen["x"].largest == 40 and seen["x"].stride == stride
    for axis in range(1, len(shape)):
        if stride > 1:
            place = np.unravel_index(np.arange(0, size, stride), shape)[axis]
            counts = np.bincount(place, minlength=shape[axis])
            assert counts.max() <= counts.min() + 0.1 * counts.mean() + 2


def test_an_open_shape_is_named():
    node = helper.make_node("Identity", ["x"], ["y"])
    model = small_models.make_model([node], {"x": ["batch", 3]}, {"y": ["batch", 3]}, {})
    del model.graph.input[0].type.tensor_type.shape.dim[1]
    model.graph.input[0].type.tensor_type.shape.dim.add()
    with pytest.raises(InputError, match="shape of 'x' is not fixed"):
        WatchedGraph(model, {"x": 1}, [], {})


def test_weights_travel_beside_the_graph_and_the_model_stays():
    w = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = small_models.make_model(
        nodes, {"x": [2, 300]}, {"y": [2, 400]}, {"w": w, "small": w[:1]}
    )
    before = model.SerializeToString(deterministic=True)
    assert w.nbytes > OUTSIDE  # large enough to be moved out
    x = np.ones((2, 300), np.float32)
    np.testing.assert_allclose(small_models.run(model, x=x)[0], x @ w, rtol=1e-4, atol=1e-4)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_names_its_layer(prepared, shapes, bad):
    broken = {name: onnx.ModelProto() for name in GRAPHS}
    for name, model in prepared.models.items():
        broken[name].CopyFrom(model)
    layer = next(la for la in prepared.layers["image.onnx"] if la.name == "backbone.patch_embed.5")
    for tensor in broken["image.onnx"].graph.initializer:
        if tensor.name == "model.backbone.patch_embed.0.bias":
            value = np.full(tensor.dims, bad, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    with pytest.raises(InputError) as caught:
        measure_ranges(
            prepared.with_models(broken), choose(shapes, "shapes", count=2), smooth=False
        )
    message = str(caught.value)
    assert "\n" not in message and "NaN or infinite" in message
    assert "backbone.patch_embed.0" in message or layer.name in message


def test_the_choice_is_seeded_and_each_picture_comes_once(shapes):
    first = choose(shapes, "shapes", count=32)
    again = choose(shapes, "shapes", count=32)
    other = choose(shapes, "shapes", count=32, seed=1)
    assert first.facts() == again.facts() != other.facts()
    pictures = [item.ref.image_path for item in first.items]
    assert len(set(pictures)) == 32
    assert json.loads(json.dumps(first.facts()))["count"] == 32


def test_each_stratum_has_its_share(shapes):
    """Of all sentences, each stratum gets its share of the places, rounded up or down."""
    total = len(ReferDataset(shapes, "shapes", "train"))
    everything = Counter(item.stratum for item in choose(shapes, "shapes", count=total).items)
    count = total // 3  # more than there are pictures: drawn from the sentences
    chosen = Counter(item.stratum for item in choose(shapes, "shapes", count=count).items)
    assert sum(everything.values()) == total and len(everything) > 5
    for stratum, size in everything.items():
        exact = size * count / total
        assert np.floor(exact) <= chosen[stratum] <= np.ceil(exact) + 1e-9


def test_recorded_ids_give_the_same_set(shapes):
    first = choose(shapes, "shapes", count=32, seed=5)
    ids = first.facts()["sent_ids"]
    again = choose(shapes, "shapes", sent_ids=ids)
    assert [item.sentence for item in again.items] == [item.sentence for item in first.items]
    with pytest.raises(InputError, match=r"lacks 1 of 33 .* 999999999"):
        choose(shapes, "shapes", sent_ids=[*ids, 999999999])
    with pytest.raises(InputError, match="list of sentence ids is empty"):
        choose(shapes, "shapes", sent_ids=[])


@pytest.mark.parametrize(("count", "pictures"), [(128, 12), (5, 5)])
def test_a_small_set_warns_with_its_number(shapes, small, count, pictures):
    with pytest.warns(UserWarning, match=f"has {pictures} pictures, {count} were asked for"):
        calibrate(small, shapes, "shapes", "val", count=count, smooth=False, observer="minmax")


def test_bad_counts_and_splits_are_one_line(shapes, small, tmp_path):
    for call in (
        lambda: choose(shapes, "shapes", count=0),
        lambda: choose(shapes, "shapes", "test"),
        lambda: choose(shapes, "shapes", "testA"),
        lambda: choose(tmp_path, "shapes"),
        lambda: calibrate(small, shapes, "shapes", observer="median"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_missing_picture_is_named(small, shapes, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    chosen = choose(copy, "shapes", count=32)
    gone = chosen.items[3].ref.image_path
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        calibrate(small, copy, "shapes", count=32, smooth=False)
