"""Engine files: what builders are given, what they write, and every way in which a build fails."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_scans
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfanet.errors import GateError, InputError, MissingDependencyError, StorageError
from tfanet.export.engines import build as engine_module
from tfanet.export.engines.build import EngineOptions, Profile, build_engine, engine_graph
from tfanet.export.engines.store import add_engine
from tfanet.plugins.graph.attach import attach, count_scan_nodes
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.bundle.read import BundleError

import onnxruntime

F = TensorProto.FLOAT


def has_rtx() -> bool:
    try:
        import tensorrt_rtx  # noqa: F401
    except Exception:
        return False
    return True


needs_rtx = pytest.mark.skipif(not has_rtx(), reason="tensorrt_rtx is not installed")


def small_model(op: str = "Relu", batch: int | str = "batch", domain: str = "") -> onnx.ModelProto:
    w = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"], name="first/MatMul"),
        helper.make_node(op, ["v"], ["y"], name="second/odd", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", F, [batch, 8])],
        [helper.make_tensor_value_info("y", F, [batch, 8])],
        [w],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 225, 900])
@pytest.mark.parametrize("states", [1, 3])
def test_the_graph_for_builders_computes_the_scan(length, states):
    scan = onnx_scans.Scan(length=length, states=states, optional=("D", "delta_bias"))
    chain = onnx_scans.chain(scan, scan, seed=length, dynamic=("batch",))
    expanded = engine_graph(chain.model)
    assert count_scan_nodes(expanded) == 0 and not expanded.functions
    assert {node.domain for node in expanded.graph.node} == {""}
    onnx.checker.check_model(expanded, full_check=True)
    assert onnx_scans.error(run(expanded, chain.feeds), chain.expected) < 2e-6
    general = onnx.inliner.inline_local_functions(attach(chain.model, "parallel"))
    assert len(expanded.graph.node) < 0.75 * len(general.graph.node)


def test_scans_of_different_lengths_and_states_get_bodies_of_their_own(bundle):
    model = onnx.load(bundle.file("image.onnx"))
    expanded = engine_graph(model)
    inputs = {
        v.name: [d.dim_value or 3 for d in v.type.tensor_type.shape.dim] for v in model.graph.input
    }
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(s).astype(np.float32) for name, s in inputs.items()}
    feeds["word_mask"] = np.ones_like(feeds["word_mask"])
    expected = run(model, feeds)
    assert np.abs(run(expanded, feeds) - expected).max() < 1e-5 * np.abs(expected).max()


@needs_rtx
def test_an_engine_is_built_and_its_facts_told(tmp_path):
    phases = []
    facts = build_engine(
        small_model(),
        tmp_path / "deep" / "small.engine",
        target="tensorrt-rtx",
        profile=Profile(1, 2, 4),
        options=EngineOptions(compute=("8.9", "12.0"), level=2, weight_streaming=True),
        progress=lambda *step: phases.append(step),
    )
    plan = (tmp_path / "deep" / "small.engine").read_bytes()
    assert facts["bytes"] == len(plan) > 1000
    assert facts["library"] == "tensorrt_rtx" and facts["version"].count(".") >= 2
    assert sum(facts["types"].values()) == facts["layers"] >= 2 and facts["peak_bytes"] > 1e7
    assert phases and all(0 <= step <= steps for _, step, steps in phases)
    assert [step for _, step, _ in phases] == sorted(step for _, step, _ in phases)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["small.engine"]


@needs_rtx
@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            small_model("Odd", domain="custom"),
            {},
            "cannot parse the model: node 'second/odd' (Odd)",
        ),
        (small_model(batch=8), {"profile": Profile(1, 2, 4)}, "fixed batch 8, outside the profile"),
        (small_model(), {"target": "onnx"}, "target is 'onnx': choose one of tensorrt, "),
        (
            small_model(),
            {"options": EngineOptions(compute=("9.0",))},
            "compute capability '9.0' is unknown: 7.5, 8.0",
        ),
        (
            small_model(),
            {"options": EngineOptions(timing_cache="x")},
            "tensorrt-rtx has no timing cache",
        ),
        (
            small_model(),
            {"options": EngineOptions(editable_cache=True)},
            "name its file (--timing-cache",
        ),
        (small_model(), {"options": EngineOptions(level=6)}, "level is 6: the builder has 0 to 5"),
        (
            small_model(),
            {"options": EngineOptions(hardware="ampere-plus")},
            "choose the compute capab",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, model, options, words):
    with pytest.raises(InputError) as raised:
        build_engine(model, tmp_path / "x.engine", **{"target": "tensorrt-rtx", **options})
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["0", "2,1,4", "1,4,2", "1,2", "a", "", "1,2,3,4", "-1", "1.5"])
def test_profiles_that_make_no_sense(text):
    with pytest.raises(InputError, match="profile is"):
        Profile.parse(text)


def test_profiles():
    assert Profile.parse("4") == Profile(4, 4, 4)
    assert Profile.parse("1,2,4") == Profile(1, 2, 4)


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(engine_module.MODULES, "tensorrt", "no_such_tensorrt")
    with pytest.raises(MissingDependencyError, match="pip install tensorrt"):
        build_engine(small_model(), tmp_path / "x.engine", target="tensorrt")


@pytest.fixture
def fake_library(tmp_path, monkeypatch):
    """Stands for an engine library that does one thing when it is used in the child process."""

    def make(code: str) -> None:
        (tmp_path / "library").mkdir()
        (tmp_path / "library" / "fake_trt.py").write_text(
            f"import os, sys, time\nif 'worker' in ' '.join(sys.argv): {code}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "library"))
        monkeypatch.setitem(engine_module.MODULES, "tensorrt", "fake_trt")

    yield make
    sys.modules.pop("fake_trt", None)


def test_a_crash_of_the_library_is_a_line(tmp_path, fake_library):
    fake_library("sys.stderr.write('terminate called\\n'); sys.stderr.flush(); os.abort()")
    with pytest.raises(GateError, match="crashed with SIGABRT while building: terminate called"):
        build_engine(small_model(), tmp_path / "x.engine", target="tensorrt")
    assert not (tmp_path / "x.engine").exists()


def test_a_library_that_hangs_is_stopped(tmp_path, fake_library):
    fake_library("time.sleep(60)")
    with pytest.raises(GateError, match=r"not built within 2 s: allow more \(--timeout\)"):
        build_engine(
            small_model(),
            tmp_path / "x.engine",
            target="tensorrt",
            options=EngineOptions(timeout=2),
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["library"]


@needs_rtx
def test_too_little_room_leaves_nothing_behind(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(StorageError, match="MB free, a build of this model may need"):
        build_engine(small_model(), tmp_path / "x.engine", target="tensorrt-rtx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07junk")
    with pytest.raises(InputError, match="is no valid ONNX model"):
        engine_module.load_graph(tmp_path / "bad.onnx")


@needs_rtx
def test_a_bundle_holds_its_engines(with_engine, bundle):
    (record,) = with_engine.manifest.engines
    assert record["name"] == "tensorrt-rtx-fp16" and record["precision"] == "fp16"
    assert record["files"] == {
        f"{kind}.onnx": f"{kind}.tensorrt-rtx-fp16.{sha256[:16]}.engine"
        for kind in ("image", "text")
        for sha256 in [with_engine.manifest.files[record["files"][f"{kind}.onnx"]]["sha256"]]
    }
    assert record["source"]["image.onnx"] == bundle.manifest.files["image.onnx"]["sha256"]
    for name in record["files"].values():
        assert with_engine.file(name).stat().st_size > 10_000
    kept = record["kept"]["image.onnx"]
    assert any(row["why"] == "asked for by 'decoder.*'" for row in kept)
    assert any(row["op"] == "SelectiveScan" and row["nodes"] == 12 for row in kept)
    assert 0 < record["typed_graph"]["max_rel_error"] < 0.01
    types = record["build"]["image.onnx"]["types"]
    assert types["half"] > 100 and types["float"] > 100
    # The graphs, and so every runtime that reads them, are as before.
    assert with_engine.file("image.onnx").read_bytes() == bundle.file("image.onnx").read_bytes()
    Predictor(with_engine.path)(np.zeros((20, 30, 3), np.uint8), "the star")


@needs_rtx
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "unlisted"])
def test_a_damaged_engine_is_found_before_it_is_loaded(with_engine, tmp_path, damage):
    folder = tmp_path / "bundle"
    shutil.copytree(with_engine.path, folder)
    name = with_engine.manifest.engines[0]["files"]["image.onnx"]
    plan = (folder / name).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    if damage == "truncated":
        (folder / name).write_bytes(plan[:-1])
    elif damage == "altered":
        (folder / name).write_bytes(plan[:-1] + bytes([plan[-1] ^ 1]))
    elif damage == "missing":
        (folder / name).unlink()
    else:
        del manifest["files"][name]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=name) as raised:
        Bundle.open(folder)
    assert "\n" not in str(raised.value)


@needs_rtx
def test_a_failed_build_leaves_the_bundle_as_it_was(bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for options, error in (
        ({"precision": "fp8"}, InputError),
        ({"precision": "fp16", "keep": ["nowhere.*"]}, InputError),
        ({"options": EngineOptions(timeout=0.01)}, GateError),
    ):
        with pytest.raises(error):
            add_engine(folder, target="tensorrt-rtx", **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@needs_rtx
@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_base_builds_within_a_minute_of_memory(tmp_path, precision):
    """480x480, random weights: engines of both graphs, under 6 GB."""
    from tfanet.export import export_bundle

    bundle = export_bundle("tfanet-base", tmp_path / "base")
    built = add_engine(bundle.path, target="tensorrt-rtx", precision=precision)
    facts = built.manifest.engines[0]["build"]
    assert all(facts[graph]["peak_bytes"] < 6e9 for graph in facts), Path(built.path)
