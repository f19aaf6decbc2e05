"""FP8: its numbers from their definition, its graphs against NumPy, its bundles and engines."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper

from tfanet.calibration import Calibration, GuardOptions, calibrate, quantize_bundle
from tfanet.calibration.graph.index import GraphIndex
from tfanet.calibration.graph.layers import QUANTISED, find_layers
from tfanet.calibration.graph.prepared import PreparedBundle, read_graph
from tfanet.calibration.grid import FP8, INT8, grid_of
from tfanet.calibration.measure.observers import Mse
from tfanet.calibration.rewrite.qdq import quantize, quantize_weight
from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.export.engines.build import EngineOptions
from tfanet.export.engines.store import add_engine
from tfanet.runtime import Bundle, Predictor

RNG = np.random.default_rng(8)


def numbers() -> list[tuple[float, int]]:
    """Every positive E4M3 number with its mantissa, from the format's definition."""
    found = [(0.0, 0)]
    for exponent in range(16):
        for mantissa in range(8):
            if (exponent, mantissa) in ((0, 0), (15, 7)):  # zero is there, the other one is NaN
                continue
            one = exponent > 0
            value = (one + mantissa / 8) * 2.0 ** ((exponent if one else 1) - 7)
            found.append((value, mantissa))
    return found


def nearest(x: float) -> float:
    """By trying all; a tie goes to the even mantissa, what is beyond the largest to the largest."""
    best = min(numbers(), key=lambda pair: (abs(pair[0] - abs(x)), pair[1] % 2))
    return math.copysign(best[0], x)


def test_the_nearest_number_is_that_of_the_definition():
    values = [value for value, _ in numbers()]
    assert max(values) == FP8.largest == 448 and len(values) == 127
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    tried = np.array([*values, *middles, *RNG.normal(0, 60, 500), *RNG.normal(0, 0.01, 500), 1e6])
    tried = np.concatenate([tried, -tried])
    expected = [nearest(x) for x in tried]
    np.testing.assert_array_equal(FP8.nearest(tried.astype(np.float64)), expected)
    assert INT8.nearest(np.array([-300.0, 0.5, 1.5, 127.4])).tolist() == [-127, 0, 2, 127]
    with pytest.raises(InputError, match="int8, fp8"):
        grid_of("int4")


def test_onnx_runtime_rounds_as_the_grid_does():
    """So that what is evaluated here is what a GPU with FP8 computes, up to the order of sums."""
    x = np.concatenate([RNG.normal(0, 3, 4000), RNG.normal(0, 1e-3, 4000), [50, -50]])
    x = x.astype(np.float32)[None]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "c/conv"),
        helper.make_node("Mul", ["y", "y"], ["z"], "square"),
    ]
    shape = ["batch", 1, 1, x.size]
    w = np.array([[[[1.0]]]], np.float32)
    model = small_models.make_model(nodes, {"x": shape}, {"y": shape, "z": shape}, {"w": w})
    got = quantize(model, find_layers(GraphIndex(model)), {"x": 20.0}, grid=FP8)
    actual = small_models.run(got, x=x[None, None])[0].ravel()
    step = FP8.step(20.0)
    np.testing.assert_allclose(actual, FP8.nearest(x[0] / step) * step, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_a_layer_computes_what_numpy_does_with_rounded_values(op):
    w = (RNG.standard_normal((6, 5)) * RNG.uniform(0.01, 3, 5)).astype(np.float32)
    if op == "Conv":
        constant, shape, out = w.T[:, :, None, None].copy(), [1, 6, 7, 1], [1, 5, 7, 1]
    else:
        constant, shape, out = w, [1, 7, 6], [1, 7, 5]
    nodes = [
        helper.make_node(op, ["x", "w"], ["y"], "layer"),
        helper.make_node("Mul", ["y", "y"], ["z"], "square"),
    ]
    model = small_models.make_model(nodes, {"x": shape}, {"z": out}, {"w": constant})
    got = quantize(model, find_layers(GraphIndex(model)), {"x": 4.0, "y": 30.0}, grid=FP8)
    onnx.checker.check_model(got, full_check=True)
    kinds = {t.name: t.data_type for t in got.graph.initializer}
    zeros = {kinds[n.input[2]] for n in got.graph.node if n.op_type == "QuantizeLinear"}
    assert {kinds["w.q"]} == zeros == {onnx.TensorProto.FLOAT8E4M3FN}
    x = RNG.standard_normal((7, 6)).astype(np.float32)

    def fake(values: np.ndarray, amax: float) -> np.ndarray:
        return FP8.nearest(values / FP8.step(amax)) * FP8.step(amax)

    y = fake(x, 4.0) @ np.stack([fake(c, float(np.abs(c).max())) for c in w.T], 1)
    actual = small_models.run(got, x=x.T.reshape(shape) if op == "Conv" else x.reshape(shape))[0]
    actual = actual.reshape(5, 7).T if op == "Conv" else actual[0]
    expected = y**2  # a convolution's result, which INT8 rounds too, is not rounded
    far = np.abs(actual - expected) > 1e-4 * np.abs(expected).max()
    assert far.mean() < 0.03  # a value at the middle of two numbers may fall either way
    assert np.abs((x @ w) ** 2 - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_relu_in_front_of_fp8_still_cuts():
    """ONNX Runtime drops it as redundant where the zero point is 0, which is so for uint8 alone."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "layer"),
        helper.make_node("Mul", ["y", "y"], ["z"], "square"),
    ]
    w = np.eye(6, dtype=np.float32)
    model = small_models.make_model(nodes, {"x": [7, 6]}, {"y": [7, 6], "z": [7, 6]}, {"w": w})
    layers = [la for la in find_layers(GraphIndex(model)) if la.op == "MatMul"]
    got = quantize(model, [replace(la, placement=QUANTISED) for la in layers], {"r": 4.0}, grid=FP8)
    x = RNG.standard_normal((7, 6)).astype(np.float32)
    y = small_models.run(got, x=x)[0]
    step = FP8.step(4.0)
    np.testing.assert_allclose(y, FP8.nearest(np.maximum(x, 0) / step) * step, atol=1e-6)
    assert (x < 0).any() and not (y < 0).any()


def test_weights_keep_three_bits_of_mantissa():
    w = RNG.standard_t(3, (40, 64)).astype(np.float32)
    q, scale = quantize_weight(w, 0, FP8)
    rows = q.astype(np.float32) * scale[:, None]
    normal = np.abs(w) > scale[:, None] * 2**-6
    assert np.abs(rows / w - 1)[normal].max() <= 1 / 16 + 1e-6
    assert np.abs(rows - w)[~normal].max() <= (scale * 2**-10).max() * 1.001


def test_the_best_range_is_the_grids_own():
    """FP8 loses little to a wide range, so an outlier is kept that INT8 would rather clip."""
    x = RNG.standard_normal(300_000).astype(np.float32)
    x[0] = 40
    found = {}
    for grid in (INT8, FP8):
        observer = Mse(grid)
        observer.update(40.0, x)
        found[grid.name] = observer.amax()
        tried = 40 * np.arange(4, 129, 4) / 128

        def error(amax: float, grid=grid) -> float:
            step = amax / grid.largest
            return float(((grid.nearest(x / step) * step - x) ** 2).mean())

        assert error(found[grid.name]) <= 1.02 * min(map(error, tried))
    assert found["int8"] < 20 < found["fp8"]


@pytest.fixture(scope="module")
def ranges(small, shapes) -> Calibration:
    return calibrate(small, shapes, "shapes", count=32, precision="fp8")


@pytest.fixture(scope="module")
def fp8(small, ranges, shapes, tmp_path_factory) -> tuple[Bundle, dict]:
    guard = GuardOptions(shapes, "shapes", count=4, bounds={"mIoU": 100}, probes=1)
    return quantize_bundle(small, tmp_path_factory.mktemp("fp8") / "b", ranges, guard)


def test_an_fp8_bundle_is_certified_and_runs_in_onnx_runtime(fp8, small, shapes):
    bundle, report = fp8
    certificate = bundle.manifest.parity["certificate"]
    assert bundle.manifest.precision == certificate["precision"] == "fp8"
    assert certificate["accuracy"]["quantised"].keys() == certificate["accuracy"]["fp32"].keys()
    assert {row["precision"] for row in report["layers"]} == {"fp8", "weights", "float"}
    picture = RNG.integers(0, 255, (70, 60, 3), np.uint8)
    exact, rounded = (
        Predictor(path, backend="onnxruntime-cpu")(picture, "the star").logits
        for path in (small.path, bundle.path)
    )
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.3
    sizes = [
        sum(b.file(n).stat().st_size for n in ("image.onnx", "text.onnx")) for b in (bundle, small)
    ]
    assert certificate["size_ratio"] == pytest.approx(sizes[0] / sizes[1], rel=0.01)
    graph = read_graph(bundle, "text.onnx").graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    tables = {n.input[0] for n in graph.node if n.op_type == "Gather"}
    stored = {n.input[0] for n in graph.node if n.output[0] in tables}
    # A table that is only stored stays in INT8, whose even steps lose less.
    assert {kinds[n] for n in stored if n in kinds} == {onnx.TensorProto.INT8}
    assert list(kinds.values()).count(onnx.TensorProto.FLOAT8E4M3FN) > 4


def test_what_fp8_cannot_do_is_one_line(capsys, fp8, small, shapes, ranges, calibration, tmp_path):
    old = read_graph(small, "image.onnx")
    next(o for o in old.opset_import if o.domain == "").version = 18
    calls = {
        "19 and IR version 9, the graph has 18": lambda: quantize(old, [], {}, grid=FP8),
        "entropy": lambda: calibrate(small, shapes, "shapes", precision="fp8", observer="entropy"),
        "precision is 'fp4'": lambda: calibrate(small, shapes, "shapes", precision="fp4"),
        "fp8 has one form for all runtimes": lambda: quantize_bundle(
            small, tmp_path / "o", ranges, target="onnxruntime"
        ),
        "8.6 has no FP8": lambda: add_engine(
            fp8[0].path,
            target="tensorrt-rtx",
            precision="fp8",
            options=EngineOptions(compute=["8.6", "8.9"]),
        ),
        "already": lambda: PreparedBundle.open(fp8[0].path),
    }
    for words, call in calls.items():
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)
    path = tmp_path / "int8.json"
    calibration.save(path)
    argv = ("export", "--bundle", small.path, "--precision", "fp8", "--calibration", path)
    assert main([str(arg) for arg in (*argv, "--output", tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert "holds ranges for int8, asked for is fp8" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["int8.json"]


def test_an_fp8_engine_builds(fp8, tmp_path, capsys, ranges, small):
    pytest.importorskip("tensorrt_rtx")
    file, target = tmp_path / "ranges.json", tmp_path / "b"
    ranges.save(file)
    argv = ("export", "--bundle", small.path, "--precision", "fp8", "--calibration", file, "--json")
    options = ("--output", target, "--target", "tensorrt-rtx", "--compute", "8.9")
    assert main([str(arg) for arg in (*argv, *options)]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    (record,) = manifest["engines"]
    assert record["name"] == "tensorrt-rtx-fp8" and record["precision"] == "fp8"
    assert record["build"]["image.onnx"]["types"]["fp8"] > 50
    assert manifest["files"]["image.onnx"] == fp8[0].manifest.files["image.onnx"]
