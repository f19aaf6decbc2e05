"""INT8 graphs in C: the rule of runtime/backends/integer.py, file by file, and whole bundles."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import saturation
from c_library import make_image
from onnx import helper, numpy_helper

from tfanet.runtime import Predictor
from tfanet.runtime.backends import integer


@pytest.fixture(scope="module")
def program(compile_parts: Callable[..., Path]) -> Path:
    parts = ("integer", "onnx_file", "python_text", "unicode")
    return compile_parts("print_integer.cpp", parts=parts)


def random_files(folder: Path, count: int) -> list[Path]:
    """Good and bad graphs, whole and broken."""
    rng = np.random.default_rng(7)
    files = []
    for index in range(count):
        inner, channels = rng.integers(1, 5, 2)
        limit = int(rng.choice([64, 65, 100, 128]))
        q = rng.integers(-limit, limit, (inner, channels)).astype(np.int8)
        axis = rng.choice([-2, -1, 0, 1])
        model = saturation.product(q, axis=axis, raw=bool(rng.random() < 0.9))
        if rng.random() < 0.2:
            model.graph.node[2].op_type = str(rng.choice(["Gemm", "Conv", "Add"]))
        if rng.random() < 0.1:
            model.graph.node[1].attribute[0].i = int(rng.choice([2, 9, -3, -(2**40)]))
        if rng.random() < 0.1:
            model.graph.initializer[0].dims[0] += int(rng.choice([-1, 1, 2**40]))
        data = bytearray(model.SerializeToString())
        kind = rng.random()
        if kind < 0.2:
            del data[int(rng.integers(len(data))) :]
        elif kind < 0.4:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        files.append(folder / f"{index}.onnx")
        files[-1].write_bytes(data)
    return files


def test_the_rule_is_that_of_python(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = random_files(tmp_path, 400)
    for name, exact in integer.INSTRUCTIONS.items():
        monkeypatch.setenv(integer.VARIABLE, name)
        done = subprocess.run([program, *files], capture_output=True, text=True, check=True)
        expected = [integer.needs_floats(path.read_bytes()) for path in files]
        assert done.stdout == "".join("01"[bad] for bad in expected)
        assert any(expected) != exact and not all(expected)
    monkeypatch.delenv(integer.VARIABLE)
    done = subprocess.run([program, *files], capture_output=True, text=True, check=True)
    assert ("1" in done.stdout) != integer.is_exact()


def test_unknown_instructions_are_one_line(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(saturation.product(np.array([[127], [127]], np.int8)).SerializeToString())
    environment = {**os.environ, integer.VARIABLE: "mmx"}
    done = subprocess.run([program, file], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("TFANET_INTEGER is 'mmx': choose one of avx512-vnni, avx-vnni,")


def in_integers(bundle: Path, weight: list[int], seal: Callable[[Path], None]) -> None:
    """Rewrites a bundle so that its convolution is an integer layer with this weight."""
    model = onnx.load(bundle / "image.onnx")
    graph = model.graph
    q = np.array(weight, np.int8).reshape(1, 3, 1, 1)
    constants = {"q": q, "qs": np.array([2 / 127], np.float32), "s": np.float32(2 / 255)}
    constants["z"] = np.uint8(128)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    conv = next(node for node in graph.node if node.op_type == "Conv")
    conv.input[:] = ["image.dq", "weight.dq"]
    added = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["image.q"]),
        helper.make_node("DequantizeLinear", ["image.q", "s", "z"], ["image.dq"]),
        helper.make_node("DequantizeLinear", ["q", "qs"], ["weight.dq"], axis=0),
    ]
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, bundle / "image.onnx")
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": "int8"}))
    seal(bundle)


@pytest.mark.parametrize(
    ("weight", "safe"), [([127, 127, -127], False), ([64, 64, -127], True), ([-90, -39, 5], False)]
)
def test_both_runtimes_choose_alike_and_give_the_same_bits(
    open_runtime: Callable,
    bundle: Path,
    seal: Callable,
    monkeypatch: pytest.MonkeyPatch,
    weight: list[int],
    safe: bool,
) -> None:
    in_integers(bundle, weight, seal)
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pixels[5:15, 5:25] = 255  # where pairs of products are largest
    results = []
    for name in ("avx2", "avx512-vnni", None):
        if name:
            monkeypatch.setenv(integer.VARIABLE, name)
        else:
            monkeypatch.delenv(integer.VARIABLE)
        python = Predictor(bundle, threads=1)
        runtime = open_runtime(bundle)
        form = "integers" if safe or integer.is_exact() else "floating point"
        assert python.info()["int8"] == form
        assert runtime.info().int8.decode() == form
        if name == "avx512-vnni":
            continue  # assumed only: the processor may be another one
        expected = python(pixels, "red")
        got = runtime.predict(make_image(pixels, "RGB"), "red")
        np.testing.assert_array_equal(got.logits, expected.logits)
        np.testing.assert_array_equal(got.mask > 0, expected.mask)
        results.append(expected.logits)
    # The safe form, and whatever this machine runs: equal within half a step of the result.
    assert np.abs(results[0] - results[1]).max() < 1e-4


def test_an_fp32_bundle_says_nothing(open_runtime: Callable, shared_bundle: Path) -> None:
    assert open_runtime(shared_bundle).info().int8 is None
