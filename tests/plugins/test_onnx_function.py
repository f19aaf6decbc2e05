"""The model-local function of tfanet::SelectiveScan in plain ONNX Runtime, and `attach`."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_scans
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tfanet.errors import InputError
from tfanet.plugins.graph.attach import attach, count_scan_nodes, rewrite

KINDS = ("sequential", "parallel")
OPTIONAL = ((), ("D",), ("D", "delta_bias"), ("D", "delta_bias", "z"), ("delta_bias",), ("z",))


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_function_passes_checks_and_runs(kind: str, opset: int) -> None:
    for optional, softplus, states in product(OPTIONAL, (False, True), (1, 3)):
        scan = onnx_scans.Scan(optional=optional, softplus=softplus, states=states)
        case = onnx_scans.chain(scan, opset=opset, seed=states)
        model = attach(case.model, kind)
        check(model)
        assert model.ir_version == 10
        assert [(f.domain, f.name) for f in model.functions] == [("tfanet", "SelectiveScan")]
        assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < 1e-6
        assert not case.model.functions


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 5),
    wide=st.integers(1, 5),
    states=st.integers(1, 16),
    length=st.one_of(st.integers(1, 70), st.integers(250, 600)),
    optional=st.sampled_from(OPTIONAL),
    softplus=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_shapes(kind: str, **sizes: Any) -> None:
    seed, groups, wide = sizes.pop("seed"), sizes.pop("groups"), sizes.pop("wide")
    scan = onnx_scans.Scan(dim=groups * wide, groups=groups, **sizes)
    case = onnx_scans.chain(scan, seed=seed)
    # Errors are relative to the largest value: of a few, all may be what a cancellation left.
    assume(case.expected.size >= 16)
    result = onnx_scans.run(attach(case.model, kind), case.feeds)
    assert onnx_scans.error(result, case.expected) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 255, 256, 257, 4099])
def test_lengths_around_the_chunk(kind: str, length: int) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(length=length))
    result = onnx_scans.run(attach(case.model, kind), case.feeds)
    assert onnx_scans.error(result, case.expected) < 1e-6


def test_sequential_body_takes_any_batch_and_length() -> None:
    scan = onnx_scans.Scan()
    model = attach(onnx_scans.chain(scan, dynamic=("batch", "length")).model, "sequential")
    check(model)
    for batch, length in ((1, 1), (3, 7), (2, 333)):
        case = onnx_scans.chain(onnx_scans.Scan(batch=batch, length=length))
        assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < 1e-6
    assert len(model.functions[0].node) < 90


def test_parallel_body_takes_any_batch_and_is_free_of_control_flow() -> None:
    model = attach(onnx_scans.chain(onnx_scans.Scan(length=300)).model, "parallel")
    for batch in (1, 3):
        case = onnx_scans.chain(onnx_scans.Scan(batch=batch, length=300))
        assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < 1e-6
    used = {n.op_type for n in model.functions[0].node}
    assert not used & {"Scan", "Loop", "If", "CumSum"}


def test_parallel_body_is_shared_by_nodes_of_unlike_shapes() -> None:
    long, short = (
        onnx_scans.chain(onnx_scans.Scan(length=n, groups=g, states=s), seed=n)
        for n, g, s in ((700, 4, 1), (9, 1, 3))
    )
    prefixed = onnx.compose.add_prefix(short.model, "s_", rename_functions=False)
    both = onnx.compose.merge_models(long.model, prefixed, io_map=[])
    model = attach(both, "parallel")
    check(model)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {**long.feeds, **{f"s_{n}": a for n, a in short.feeds.items()}}
    results = session.run(None, feeds)
    for result, case in zip(results, (long, short), strict=True):
        assert onnx_scans.error(result, case.expected) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_other_element_types(kind: str) -> None:
    for optional in (("D", "delta_bias"), ("D", "delta_bias", "z")):
        scan = onnx_scans.Scan(length=100, states=2, optional=optional)
        double = onnx_scans.chain(scan, dtype=np.float64)
        result = onnx_scans.run(attach(double.model, kind), double.feeds)
        assert result.dtype == np.float64
        assert onnx_scans.error(result, double.expected) < 1e-13
        half = onnx_scans.chain(scan, dtype=np.float16)
        result = onnx_scans.run(attach(half.model, kind), half.feeds)
        assert result.dtype == np.float16
        # float32 inside: nothing but the result is rounded to float16.
        near = np.abs(result - half.expected) <= 2.0**-11 * np.abs(half.expected) + 1e-6
        assert near.all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_body_follows_when_another_tool_makes_the_model_half(kind: str) -> None:
    """As float16 converters do, which change values and weights and leave functions alone."""
    case = onnx_scans.chain(onnx_scans.Scan(length=70, states=2, optional=("D", "delta_bias", "z")))
    model = attach(case.model, kind)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    check(model)
    result = onnx_scans.run(model, {n: a.astype(np.float16) for n, a in case.feeds.items()})
    assert result.dtype == np.float16
    assert onnx_scans.error(result, case.expected) < 2e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "features",
    [
        ((("D", "delta_bias", "z"), True), ((), False)),
        ((("z",), True), (("delta_bias",), True)),
        ((("delta_bias",), True), (("D", "delta_bias"), False)),
        ((("z",), False), (("z", "D"), False)),
        (((), True), (("D", "z"), True), (("delta_bias", "z"), False)),
    ],
)
def test_nodes_come_to_one_pattern(kind: str, dtype: Any, features: tuple[Any, ...]) -> None:
    scans = [onnx_scans.Scan(optional=o, softplus=s, states=2) for o, s in features]
    case = onnx_scans.chain(*scans, dtype=dtype)
    model = attach(case.model, kind)
    check(model)
    nodes = [n for n in model.graph.node if n.op_type == "SelectiveScan"]
    assert len({(len(n.input), n.attribute[0].i) for n in nodes}) == 1
    assert all(all(n.input) for n in nodes)
    assert count_scan_nodes(model) == count_scan_nodes(case.model) == len(scans)
    bound = 1e-6 if dtype == np.float32 else 1e-13
    assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < bound


def test_equal_nodes_stay_as_they_are() -> None:
    case = onnx_scans.chain(onnx_scans.Scan(), onnx_scans.Scan())
    assert len(attach(case.model, "sequential").graph.node) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_inlined_by_onnx(kind: str) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(), onnx_scans.Scan(states=2))
    model = onnx.inliner.inline_local_functions(attach(case.model, kind))
    assert not model.functions
    assert count_scan_nodes(model) == 0
    check(model)
    assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < 1e-6


def test_rewrite_goes_round(tmp_path: Path) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(), onnx_scans.Scan(optional=("z",)))
    start, end = tmp_path / "start.onnx", tmp_path / "end.onnx"
    onnx.save(attach(case.model, "sequential"), start)
    reference = start.read_bytes()
    for kind in ("parallel", "none", "parallel", "sequential"):
        rewrite(start, end, kind)
        model = onnx.load(end)
        assert len(model.functions) == (kind != "none")
        assert all(all(n.input) for n in model.graph.node)
        if kind != "none":
            assert onnx_scans.error(onnx_scans.run(model, case.feeds), case.expected) < 1e-6
        start = end
    assert end.read_bytes() == onnx.load_from_string(reference).SerializeToString(
        deterministic=True
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["end.onnx", "start.onnx"]


def test_scan_in_a_subgraph() -> None:
    case = onnx_scans.chain(onnx_scans.Scan(optional=("z",)))
    branch = helper.make_graph(
        list(case.model.graph.node), "branch", [], [helper.make_tensor_value_info("y0", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["u"], ["same"])],
        "other",
        [],
        [helper.make_tensor_value_info("same", 1, None)],
    )
    node = helper.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [node],
        "outer",
        [*case.model.graph.input, helper.make_tensor_value_info("choice", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    model = helper.make_model(graph, opset_imports=case.model.opset_import, ir_version=10)
    assert count_scan_nodes(model) == 1
    for kind in KINDS:
        feeds = {**case.feeds, "choice": np.array(True)}
        result = onnx_scans.run(attach(model, kind), feeds)
        assert onnx_scans.error(result, case.expected) < 1e-6


def test_model_without_scans_is_left_alone() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    model = helper.make_model(graph)
    assert attach(model, "parallel") == model


def test_mistakes_are_named(tmp_path: Path) -> None:
    case = onnx_scans.chain(onnx_scans.Scan(), dynamic=("batch", "length"))
    with pytest.raises(InputError, match="'fast' is unknown; choose one of sequential, parallel"):
        attach(case.model, "fast")
    with pytest.raises(InputError, match="'y0' has no fixed length L"):
        attach(case.model, "parallel")
    with pytest.raises(InputError, match="opset 17, the scan function needs 18"):
        attach(onnx_scans.chain(onnx_scans.Scan(), opset=17).model, "sequential")
    hidden = attach(case.model, "sequential")
    hidden.functions.append(
        helper.make_function(
            "other", "Wrapper", ["a"], ["b"], list(case.model.graph.node), case.model.opset_import
        )
    )
    with pytest.raises(InputError, match="'Wrapper' holds a SelectiveScan node; inline it"):
        attach(hidden, "sequential")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for path in (broken, tmp_path / "missing.onnx"):
        with pytest.raises(InputError, match=f"{path.name} can't be read"):
            rewrite(path, tmp_path / "out.onnx", "none")
    assert not (tmp_path / "out.onnx").exists()
