"""libtfanet_ort.so: the operator in the newest and in the lowest supported ONNX Runtime."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_scans
import pytest
from onnx import TensorProto, helper
from other_runtimes import run_in_lowest
from ss2d_models import options_with

from tfanet.plugins.graph.attach import attach

import onnxruntime

OPTIONAL = ((), ("D",), ("D", "delta_bias"), ("D", "delta_bias", "z"), ("delta_bias",), ("z",))


def test_links_and_exports_the_least(library: Path) -> None:
    linked = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    names = {Path(line.split()[0]).name for line in linked.splitlines()}
    allowed = (
        r"(linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt|libstdc\+\+|libgcc_s)\.so\.\d+"
    )
    assert all(re.fullmatch(allowed, n) for n in names), names
    command = ["nm", "-D", "--defined-only", library]
    exported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in exported.splitlines()] == ["RegisterCustomOps"]


def test_stays_loaded_when_the_last_session_goes(library: Path) -> None:
    """ONNX Runtime closes it then, whatever threads and operators still refer to it."""
    code = """
import gc, sys
import onnx
from onnx import helper
import onnxruntime

value = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", 1, [1])], [value("y", 1, [1])]
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
places = set()
for _ in range(3):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(sys.argv[1])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    del session, options
    gc.collect()
    with open("/proc/self/maps") as maps:
        places.add(next((line.split("-")[0] for line in maps if sys.argv[1] in line), None))
assert len(places) == 1 and None not in places, places
"""
    command = [sys.executable, "-c", code, library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["sequential", "parallel", "none"])
def test_the_node_is_kept_and_computed(library: Path, tmp_path: Path, kind: str) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(length=500), onnx_scans.Scan(length=500))
    options = options_with(library)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = attach(case.model, kind)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (result,) = session.run(None, case.feeds)
    assert onnx_scans.error(result, case.expected) < 1e-6
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert [n.op_type for n in nodes] == ["SelectiveScan"] * 2


def test_registered_twice_is_registered_once(library: Path, tmp_path: Path) -> None:
    """By two parts of a program, or by a copy of the library: the domain stands there once."""
    case = onnx_scans.chain(onnx_scans.Scan())
    copied = tmp_path / library.name
    shutil.copy(library, copied)
    options = options_with(library)
    for path in (library, copied, library):
        options.register_custom_ops_library(str(path))
    for _ in range(2):
        model = attach(case.model, "none").SerializeToString()
        (result,) = onnxruntime.InferenceSession(model, options).run(None, case.feeds)
        assert onnx_scans.error(result, case.expected) < 1e-6


@pytest.mark.parametrize("optional", OPTIONAL)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("states", [1, 5])
def test_optional_inputs(
    library: Path, optional: tuple[str, ...], softplus: bool, states: int
) -> None:
    scan = onnx_scans.Scan(
        dim=15, groups=3, length=77, optional=optional, softplus=softplus, states=states
    )
    case = onnx_scans.chain(scan, seed=states)
    assert onnx_scans.error(onnx_scans.run(case.model, case.feeds, library), case.expected) < 1e-6


def test_same_result_as_the_functions(library: Path) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(), onnx_scans.Scan(optional=("z",)))
    model = attach(case.model, "sequential")
    ours, inlined = (onnx_scans.run(model, case.feeds, lib) for lib in (library, None))
    assert onnx_scans.error(ours, inlined) < 1e-6


def test_double_and_half(library: Path) -> None:
    scan = onnx_scans.Scan(length=130, states=2, optional=("D", "delta_bias", "z"))
    double = onnx_scans.chain(scan, dtype=np.float64)
    result = onnx_scans.run(double.model, double.feeds, library)
    assert onnx_scans.error(result, double.expected) < 1e-13
    half = onnx_scans.chain(scan, dtype=np.float16)
    result = onnx_scans.run(half.model, half.feeds, library)
    assert result.dtype == np.float16
    near = np.abs(result - half.expected) <= 2.0**-11 * np.abs(half.expected) + 1e-6
    assert near.all()


@pytest.mark.parametrize("elem", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("wide_weights", [False, True])
def test_short_sequences(library: Path, elem: int, wide_weights: bool) -> None:
    """float32 in and out of the model, 16 bits at the node, with 32 or 16-bit weights."""
    case = onnx_scans.chain(onnx_scans.Scan(length=64, states=2))
    model, node = case.model, case.model.graph.node[0]
    casts = []
    for i, name in enumerate(node.input):
        if not (wide_weights and name[:-1] in ("A", "D", "delta_bias")):
            casts.append(helper.make_node("Cast", [name], [f"{name}_short"], to=elem))
            node.input[i] = f"{name}_short"
    node.output[0] = "y_short"
    end = helper.make_node("Cast", ["y_short"], ["y0"], to=TensorProto.FLOAT)
    nodes = [*casts, node, end]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    result = onnx_scans.run(model, case.feeds, library)
    bits = 11 if elem == TensorProto.FLOAT16 else 8
    assert onnx_scans.error(result, case.expected) < 16 * 2.0**-bits


def hostile() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model that declares no shape at all, so that only the operator can see a mistake."""
    case = onnx_scans.chain(onnx_scans.Scan(dim=6, states=2, optional=("D", "delta_bias", "z")))
    for value in (*case.model.graph.input, *case.model.graph.output):
        value.type.tensor_type.ClearField("shape")
    return case.model, case.feeds


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 6), "input u has rank 2, expected 3"),
        ("delta0", (2, 6, 39), "L is 39 in input delta, but 40"),
        ("delta0", (1, 6, 40), "batch is 1 in input delta, but 2"),
        ("A0", (6,), "input A has rank 1, expected 2"),
        ("A0", (5, 2), "dim is 5 in input A, but 6"),
        ("B0", (2, 2, 3, 40), "N is 3 in input B, but 2"),
        ("B0", (2, 2, 2, 40, 1), "input B has rank 5, expected 4"),
        ("C0", (2, 1, 2, 40), "G is 1 in input C, but 2"),
        ("D0", (1,), "dim is 1 in input D, but 6"),
        ("delta_bias0", (6, 1), "input delta_bias has rank 2, expected 1"),
        ("z0", (2, 6, 0), "L is 0 in input z, but 40"),
    ],
)
def test_bad_shapes_are_errors(
    library: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    model, feeds = hostile()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options_with(library))
    expected = session.run(None, feeds)[0]
    with pytest.raises(Exception, match=f"SelectiveScan: {message}"):
        session.run(None, {**feeds, name: np.ones(shape, np.float32)})
    assert (session.run(None, feeds)[0] == expected).all()


def test_groups_that_do_not_divide_dim(library: Path) -> None:
    model, feeds = hostile()
    for groups in (0, 4, 7):
        grouped = np.ones((2, groups, 2, 40), np.float32)
        with pytest.raises(Exception, match="SelectiveScan: "):
            onnx_scans.run(model, {**feeds, "B0": grouped, "C0": grouped}, library)


def test_missing_required_input(library: Path) -> None:
    model, feeds = hostile()
    model.graph.node[0].input[3] = ""
    with pytest.raises(Exception, match="SelectiveScan"):
        onnx_scans.run(model, feeds, library)


def test_empty_batch_and_length(library: Path) -> None:
    model, feeds = hostile()
    for axis in (0, -1):
        empty = {n: np.take(a, [], axis) if a.ndim > 2 else a for n, a in feeds.items()}
        assert onnx_scans.run(model, empty, library).shape == empty["u"].shape


def test_concurrent_runs_agree(library: Path) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(dim=64, length=700))
    session = onnxruntime.InferenceSession(case.model.SerializeToString(), options_with(library))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: session.run(None, case.feeds)[0], range(12)))
    assert onnx_scans.error(results[0], case.expected) < 1e-6
    assert all((r == results[0]).all() for r in results)


@pytest.mark.parametrize("opset", [18, 20])
def test_lowest_supported_runtime(library: Path, tmp_path: Path, opset: int) -> None:
    scan = onnx_scans.Scan(length=200, states=2, optional=("D", "delta_bias", "z"))
    case = onnx_scans.chain(scan, onnx_scans.Scan(length=200), opset=opset)
    models = {kind: attach(case.model, kind) for kind in ("sequential", "parallel", "none")}
    results = run_in_lowest(models, case.feeds, library, tmp_path)
    assert len(results) == 9
    for result in results:
        assert onnx_scans.error(result, case.expected) < 1e-6
