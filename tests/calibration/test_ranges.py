"""The calibration file: reproducible, checked when it is read, compared, bound to its model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tfanet.calibration import Calibration, calibrate, diff
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.graph.session import open_model
from tfanet.calibration.measure.calibrator import measure_ranges
from tfanet.calibration.measure.sampler import choose
from tfanet.calibration.ranges import GraphRanges
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.errors import InputError


def test_the_same_calibration_gives_the_same_bytes(calibration, small, shapes, tmp_path):
    again = calibrate(small, shapes, "shapes", count=32)
    calibration.save(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert Calibration.load(tmp_path / "a.json") == calibration
    assert calibration.data["sent_ids"] == choose(shapes, "shapes", count=32).facts()["sent_ids"]


def test_minmax_ranges_are_the_largest_magnitudes(prepared, small, shapes):
    """Recomputed from the values themselves, at three places of the graph."""
    chosen = choose(shapes, "shapes", count=32)
    measured = measure_ranges(prepared, chosen, observer="minmax", smooth=False)
    names = list(measured.graphs["image.onnx"].amax)
    picked = [names[1], names[len(names) // 2], names[-1]]
    model = onnx.ModelProto()
    model.CopyFrom(prepared.models["image.onnx"])
    kind = onnx.TensorProto.FLOAT
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n in picked)
    image, text = open_model(model), open_model(prepared.models["text.onnx"])
    largest = np.zeros(3)
    for picture, ids, mask in chosen.tensors(small):
        words, sentence = text.run(None, {"token_ids": ids})
        feed = {"image": picture, "word_features": words, "sentence_feature": sentence}
        values = image.run(picked, {**feed, "word_mask": mask})
        largest = np.maximum(largest, [np.abs(x).max() for x in values])
    got = [measured.graphs["image.onnx"].amax[name] for name in picked]
    np.testing.assert_allclose(got, largest, rtol=1e-5)


def test_moved_channels_are_measured_as_they_will_be(prepared, shapes):
    """Ranges and means of the migrated model, from values of the model as it is."""
    chosen = choose(shapes, "shapes", count=6)
    both = measure_ranges(prepared, chosen, observer="percentile")
    assert any(any(e) for e in both.graphs["image.onnx"].smooth.values())
    moved, _ = move_channels(prepared, both)
    again = measure_ranges(moved, chosen, observer="percentile", smooth=False)
    for name, ranges in both.graphs.items():
        assert ranges.amax == pytest.approx(again.graphs[name].amax, rel=1e-3)
        for value, mean in ranges.means.items():
            assert mean == pytest.approx(again.graphs[name].means[value], rel=1e-3, abs=1e-5)


def test_another_model_or_image_size_is_refused(calibration, prepared):
    facts = prepared.facts()
    assert calibration.check_model(facts) is True
    assert calibration.check_model({**facts, "weights": "0"}) is False
    with pytest.raises(InputError, match="another model"):
        calibration.check_model({**facts, "fingerprint": "0"})
    with pytest.raises(InputError, match=r"\[64, 64\].*\[128, 128\]"):
        calibration.check_model({**facts, "image_size": [128, 128]})


def test_a_range_that_the_model_needs_and_the_file_lacks_is_named(calibration, prepared):
    moved, _ = move_channels(prepared, calibration)
    ranges = calibration.graphs["image.onnx"]
    name = list(ranges.amax)[4]
    fewer = {key: value for key, value in ranges.amax.items() if key != name}
    graphs = {**calibration.graphs, "image.onnx": replace(ranges, amax=fewer)}
    with pytest.raises(InputError, match=f"'{name}'"):
        quantize_graphs(moved, replace(calibration, graphs=graphs))
    with pytest.raises(InputError, match="no layer 'head'"):
        quantize_graphs(moved, calibration, ["head"])


def test_weights_of_a_retrained_model_are_told_apart(calibration, retrained):
    moved, same = move_channels(PreparedBundle.open(retrained), calibration)
    assert not same
    assert set(quantize_graphs(moved, calibration)) == {"text.onnx", "image.onnx"}


def test_diff_lists_the_most_changed_first(calibration):
    ranges = calibration.graphs["image.onnx"]
    a, b, c = list(ranges.amax)[:3]
    changed = {**ranges.amax, a: ranges.amax[a] * 3, b: ranges.amax[b] / 2}
    del changed[c]
    other = replace(
        calibration,
        graphs={**calibration.graphs, "image.onnx": replace(ranges, amax=changed)},
    )
    rows = diff(calibration, other)
    assert [row["value"] for row in rows[:3]] == [c, a, b]
    assert rows[0]["after"] is None and rows[0]["ratio"] is None
    assert [row["ratio"] for row in rows[1:3]] == pytest.approx([3, 2])
    assert all(row["ratio"] == 1 for row in rows[3:])
    assert len(rows) == sum(len(g.amax) for g in calibration.graphs.values())


def broken(document: dict, **changes) -> str:
    return json.dumps({**document, **changes})


def test_files_that_are_no_calibration_are_one_line(calibration, tmp_path):
    calibration.save(tmp_path / "good.json")
    document = json.loads((tmp_path / "good.json").read_text())
    image = document["graphs"]["image.onnx"]
    name = next(iter(image["amax"]))
    bad_amax = {**document["graphs"], "image.onnx": {**image, "amax": {name: "wide"}}}
    bad_splits = [
        {**image, kind: {name: split}}
        for kind, split in (
            ("outliers", 3),
            ("outliers", [[], [1.0, 2.0]]),
            ("outliers", [[-1], [1.0, 2.0]]),
            ("outliers", [[1], [1.0, "2"]]),
            ("regions", [1.0]),
            ("regions", [float("nan"), 2]),
            ("regions", [1.0, 99]),
        )
    ]
    infinite = {**document["graphs"], "image.onnx": {**image, "amax": {name: float("inf")}}}
    texts = [
        "",
        "[]",
        "{",
        broken(document, schema_version=1),
        broken(document, precision="int4"),
        broken(document, model=[]),
        broken(document, model={"preset": "x"}),
        broken(document, data={}),
        broken(document, graphs={"image.onnx": {}}),
        broken(document, graphs=bad_amax),
        broken(document, graphs=infinite),
        *(broken(document, graphs={"image.onnx": bad}) for bad in bad_splits),
        json.dumps({key: value for key, value in document.items() if key != "observer"}),
    ]
    path = tmp_path / "bad.json"
    for text in texts:
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            Calibration.load(path)
        assert "bad.json" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"nowhere\.json"):
        Calibration.load(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="does not exist"):
        calibration.save(tmp_path / "no" / "such.json")


def test_a_range_of_zero_is_kept():
    empty = GraphRanges({"dead": 0.0}, {}, {})
    assert replace(empty, amax=dict(empty.amax)) == empty
