"""Passes over data: what is observed, in which turns; and which pictures are chosen."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tfanet.calibration import calibrate
from tfanet.calibration.calibrator import measure_ranges
from tfanet.calibration.collect import run_watched, turns
from tfanet.calibration.graph import Graph
from tfanet.calibration.qdq import activation_ranges
from tfanet.calibration.sampler import choose
from tfanet.calibration.source import GRAPHS
from tfanet.data import ReferDataset
from tfanet.errors import InputError


def test_watched_values_are_those_of_the_model(source, tools):
    model = source.models["text.onnx"]
    names = activation_ranges(Graph(model), source.layers["text.onnx"])
    rng = np.random.default_rng(0)
    feeds = [{"token_ids": rng.integers(0, 49406, (1, 20))} for _ in range(3)]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    outputs = list(run_watched(model, names, feeds, lambda n, x: seen[n].append(x)))
    assert all(len(values) == 3 for values in seen.values()) and len(seen) == 4
    name = names[2]
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    for feed, value, given in zip(feeds, seen[name], outputs, strict=True):
        words, sentence, expected = tools.run(single, **feed)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(given["word_features"], words, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(given["sentence_feature"], sentence, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_names_its_layer(source, shapes, bad):
    broken = {name: onnx.ModelProto() for name in GRAPHS}
    for name, model in source.models.items():
        broken[name].CopyFrom(model)
    layer = next(la for la in source.layers["image.onnx"] if la.name == "backbone.patch_embed.5")
    for tensor in broken["image.onnx"].graph.initializer:
        if tensor.name == "model.backbone.patch_embed.0.bias":
            value = np.full(tensor.dims, bad, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    with pytest.raises(InputError) as caught:
        measure_ranges(source.with_models(broken), choose(shapes, "shapes", count=2), smooth=False)
    message = str(caught.value)
    assert "\n" not in message and "NaN or infinite" in message
    assert "backbone.patch_embed.0" in message or layer.name in message


def test_values_are_grouped_by_memory_and_ranges_do_not_depend_on_it(source, small, shapes):
    graph = source.graphs()["image.onnx"]
    names = activation_ranges(graph, source.layers["image.onnx"])
    assert turns(graph, names, 1 << 40) == [names]
    assert turns(graph, names, 1) == [[name] for name in names]
    groups = turns(graph, names, 1 << 18)
    assert [name for group in groups for name in group] == names
    sizes = [sum(4 * np.prod(graph.shapes[name]) for name in group) for group in groups]
    assert 1 < len(groups) < len(names) and max(sizes) <= 1 << 18
    chosen = choose(shapes, "shapes", count=2)
    whole, parts = (
        measure_ranges(source, chosen, observer="percentile", memory=memory)
        for memory in (1 << 30, 1 << 18)
    )
    assert whole == parts


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
        lambda: calibrate(small, shapes, "shapes", memory=0),
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
