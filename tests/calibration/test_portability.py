"""INT8 graphs mean the same on every processor: by the kernels' arithmetic, and as they are run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import saturation
from onnx import numpy_helper

from tfanet.calibration import quantize_bundle, recheck
from tfanet.calibration.accept.accuracy import logits
from tfanet.calibration.accept.certificate import GuardOptions
from tfanet.calibration.graph.session import open_model
from tfanet.calibration.grid import INT8
from tfanet.calibration.measure.sampler import choose
from tfanet.calibration.rewrite import qdq
from tfanet.calibration.rewrite.apply import move_channels, quantize_graphs
from tfanet.calibration.rewrite.qdq import quantize_weight
from tfanet.cli import main
from tfanet.doctor import diagnose
from tfanet.errors import GateError, InputError
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.backends import integer
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import MANIFEST, file_facts

EXACT, SATURATING = "avx512-vnni", "avx2"


def as_of_before(weight, axis, grid=INT8, *, pairs=False):
    """Weights as they were written until 0.1: 8 bits, whatever two products sum to."""
    return quantize_weight(weight, axis, grid)


@pytest.mark.parametrize("seed", range(20))
def test_no_pair_of_products_leaves_16_bits_in_whatever_order_they_are_added(seed):
    rng = np.random.default_rng(seed)
    inner, channels = int(rng.integers(1, 40)), int(rng.integers(1, 9))
    w = rng.standard_normal((inner, channels)) * 10.0 ** rng.uniform(-3, 3)
    if seed % 2:  # a few large weights, of which two may meet
        w *= rng.choice([1, 1, 1, 30], w.shape)
    q, scale = quantize_weight(w.astype(np.float32), 1, pairs=True)
    assert integer.pair_sums(q, 1).tolist() == [saturation.pair_sum(c) for c in q.astype(int).T]
    wide = 0
    for _ in range(20):
        order = rng.permutation(inner)
        a = rng.choice([0, 1, 254, 255], (16, inner)).astype(np.uint8)
        exact = a.astype(np.int64) @ q[order].astype(np.int64)
        np.testing.assert_array_equal(saturation.multiply(a, q[order]), exact)
        full, _ = quantize_weight(w.astype(np.float32)[order], 1)
        wide += (saturation.multiply(a, full) != a.astype(np.int64) @ full.astype(np.int64)).sum()
    if inner > 4:
        assert wide > 0  # what the emulation shows of 8 bits
    # Never coarser than 7 bits, and 8 where one weight stands out.
    ratio = scale / (np.abs(w).max(0) / 127)
    assert (ratio <= 2.001).all() and (ratio >= 0.999).all()


def test_one_large_weight_keeps_its_eight_bits():
    q, scale = quantize_weight(np.array([[100.0], [-90.0], [0.5]], np.float32), 1, pairs=True)
    assert scale == pytest.approx(100.5 / 127) and q.ravel().tolist() == [126, -114, 1]


@pytest.fixture(scope="module")
def moved(prepared, calibration):
    return move_channels(prepared, calibration)[0]


@pytest.fixture(scope="module")
def forms(moved, calibration):
    """The small model in the form for ONNX Runtime, as it is written now and as it was before."""
    now = quantize_graphs(moved, calibration, unsigned=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq, "quantize_weight", as_of_before)
        before = quantize_graphs(moved, calibration, unsigned=True)
    return {"now": now, "before": before, "signed": quantize_graphs(moved, calibration)}


def as_floats(model: onnx.ModelProto, folder: Path):
    """A session that makes no integer layers."""
    from tfanet.plugins import ort_library_path

    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return open_session(path, ort_library_path(), as_floats=True)


def test_the_emulated_kernels_spoil_the_graphs_of_before_and_not_those_of_now(
    forms, moved, shapes, small, tmp_path
):
    """The oracle for processors that are not at hand: x86 without VNNI, whole graphs."""
    chosen = choose(shapes, "shapes", "val", count=2)
    items = list(chosen.tensors(small))
    exact = np.concatenate(list(logits(moved.models, lambda: items)))
    change = {}
    for name in ("now", "before", "signed"):
        for kernels, written in (("exact", lambda m: m), ("saturating", saturation.saturating)):
            text, image = (as_floats(written(forms[name][g]), tmp_path) for g in GRAPHS)
            results = []
            for picture, ids, mask in items:
                words, sentence = text.run(None, {"token_ids": ids})
                feeds = {"image": picture, "word_features": words, "word_mask": mask}
                results.append(image.run(None, {**feeds, "sentence_feature": sentence})[0])
            error = np.linalg.norm(np.concatenate(results) - exact) / np.linalg.norm(exact)
            change[name, kernels] = error
    assert max(change[name, "exact"] for name in forms) < 0.1
    # Where a value falls between two steps, sums in another order decide.
    assert change["now", "saturating"] == pytest.approx(change["now", "exact"], rel=0.1)
    assert change["before", "saturating"] > 2 * change["before", "exact"]
    assert change["signed", "saturating"] > 2 * change["signed", "exact"]


def test_the_check_on_a_file_finds_the_weight_that_would_saturate(forms, moved, small):
    for graph in GRAPHS:
        assert integer.overflowing(forms["now"][graph].SerializeToString()) == ""
        assert integer.overflowing(moved.models[graph].SerializeToString()) == ""
        assert integer.overflowing(small.file(graph).read_bytes()) == ""
        for name in ("before", "signed"):
            model = forms[name][graph]
            found = integer.overflowing(model.SerializeToString())
            tensor = next(t for t in model.graph.initializer if t.name == found)
            reader = next(n for n in model.graph.node if found in n.input)
            axis = next(a.i for a in reader.attribute if a.name == "axis")
            rows = np.moveaxis(numpy_helper.to_array(tensor).astype(int), axis, 0)
            assert max(saturation.pair_sum(row) for row in rows) > 128


@pytest.mark.parametrize(
    ("q", "axis", "bad"),
    [
        ([[127, 0], [1, -128]], 1, False),
        ([[127, 0], [1, -128]], None, False),
        ([[127, 0], [2, 0]], 1, True),
        ([[-100, 0], [-29, 0]], 1, True),
        ([[-100, 0], [29, 0]], 1, False),
        ([[64, 64], [64, 64]], 1, False),
        ([[65, 64], [64, 64]], 1, True),
        # Two elements of one channel, not of two.
        ([[100, 100], [0, 0]], -1, False),
        ([[100, 0], [0, 100]], -1, False),
        ([[100, 100], [0, 0]], 0, True),
        ([[100, 0], [0, 100]], 5, True),
    ],
)
def test_pairs_of_one_channel_and_sign_are_bounded(q, axis, bad):
    data = np.array(q, np.int8)
    if axis == 5:  # a file that no checker has seen
        model = saturation.product(data)
        model.graph.node[1].attribute[0].i = 5
    else:
        model = saturation.product(data, axis=axis)
    assert integer.overflowing(model.SerializeToString()) == ("w" if bad else "")


def test_weights_that_are_stored_otherwise_are_not_taken_on_trust():
    model = saturation.product(np.array([[1], [2]], np.int8), raw=False)
    assert integer.overflowing(model.SerializeToString()) == "w"
    data = saturation.product(np.array([[100], [100]], np.int8)).SerializeToString()
    for end in range(len(data)):
        try:
            integer.overflowing(data[:end])
        except (ValueError, IndexError):
            continue


@pytest.mark.parametrize("seed", range(6))
def test_onnx_runtime_saturates_here_exactly_where_the_processor_is_said_to(seed, tmp_path):
    """ONNX Runtime's own integer kernel is the oracle of what is assumed of this machine."""
    rng = np.random.default_rng(seed)
    q = rng.integers(90, 128, (64, 16)).astype(np.int8) * rng.choice([-1, 1], (1, 16)).astype("i1")
    x = rng.integers(200, 256, (1, 64)).astype(np.uint8)
    path = tmp_path / "product.onnx"
    path.write_bytes(saturation.product(q).SerializeToString())
    exact = x.astype(np.int64) @ q.astype(np.int64)
    here = open_session(path, None, as_floats=False).run(None, {"x": x})[0]
    np.testing.assert_array_equal(here, exact if integer.is_exact() else saturation.multiply(x, q))
    for content in (None, path.read_bytes):
        safe = open_session(path, None, content=content).run(None, {"x": x})[0]
        np.testing.assert_array_equal(safe, exact)
    np.testing.assert_array_equal(open_model(saturation.product(q)).run(None, {"x": x})[0], exact)


@pytest.fixture(scope="module")
def bundles(small, calibration, shapes, tmp_path_factory):
    """INT8 bundles in three forms."""
    folder = tmp_path_factory.mktemp("forms")
    guard = GuardOptions(shapes, "shapes", count=4, bounds={"mIoU": 100}, probes=1)
    now, _ = quantize_bundle(small, folder / "now", calibration, guard, target="onnxruntime")
    signed, _ = quantize_bundle(small, folder / "signed", calibration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq, "quantize_weight", as_of_before)
        patch.setattr("tfanet.calibration.quantizer._check_pairs", lambda path: None)
        before, _ = quantize_bundle(small, folder / "before", calibration, target="onnxruntime")
    return {"now": now, "signed": signed, "before": before}


def test_a_bundle_runs_in_integers_where_those_are_right(bundles, small, shapes, monkeypatch):
    item = choose(shapes, "shapes", "val", count=1).items[0]
    exact = Predictor(small.path)
    assert exact.info()["int8"] is None
    expected = exact(item.ref.image_path, item.sentence).logits
    for name, bundle in bundles.items():
        for processor in (EXACT, SATURATING):
            monkeypatch.setenv(integer.VARIABLE, processor)
            form = Predictor(bundle.path).info()["int8"]
            right = processor == EXACT or name == "now"
            assert form == ("integers" if right else "floating point")
        monkeypatch.delenv(integer.VARIABLE)
        # As this machine is.
        got = Predictor(bundle.path)(item.ref.image_path, item.sentence).logits
        assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.1


def test_a_graph_that_could_saturate_is_not_written_for_onnx_runtime(
    small, calibration, tmp_path, monkeypatch
):
    monkeypatch.setattr(qdq, "quantize_weight", as_of_before)
    with pytest.raises(GateError, match=r"can overflow 16 bits.*nothing was written"):
        quantize_bundle(small, tmp_path / "b", calibration, target="onnxruntime")
    assert list(tmp_path.iterdir()) == []


def test_the_certificate_names_the_processor_and_parity_says_where_it_differs(
    bundles, shapes, capsys, monkeypatch, tmp_path
):
    bundle = bundles["now"]
    assert bundle.manifest.parity["certificate"]["integer_instructions"] == integer.instructions()
    row = recheck(bundle, GuardOptions(shapes))[0]
    assert row["certified_with"] == row["measured_with"] == integer.instructions()
    argv = ["parity", "--bundle", str(bundle.path), "--data", str(shapes)]
    assert main(argv) == 0 and "instructions" not in capsys.readouterr().out
    other = EXACT if integer.instructions() != EXACT else SATURATING
    monkeypatch.setenv(integer.VARIABLE, other)
    assert main(argv) == 0
    said = f"certified with {bundle.manifest.parity['certificate']['integer_instructions']} inst"
    assert said in (out := capsys.readouterr().out) and f"measured with {other}" in out
    # A certificate of before does not say.
    parity = dict(bundle.manifest.parity)
    parity["certificate"] = dict(parity["certificate"])
    del parity["certificate"]["integer_instructions"]
    old = replace(bundle, manifest=replace(bundle.manifest, parity=parity))
    assert recheck(old, GuardOptions(shapes))[0]["certified_with"] is None


CPUINFO = "processor\t: 0\nvendor_id\t: x\nflags\t\t: fpu {}\nbugs\t\t: avx512_vnni\n"


@pytest.mark.parametrize(
    ("machine", "flags", "name", "exact"),
    [
        ("x86_64", "avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", "avx512-vnni", True),
        ("x86_64", "avx2 fma avx_vnni", "avx-vnni", True),
        ("x86_64", "avx2 fma avx512f avx512bw avx512dq avx512vl", "avx512", False),
        ("x86_64", "avx2 fma avx512_vnni", "avx2", False),  # AVX-512 that is switched off
        ("x86_64", "avx2 fma sse2", "avx2", False),
        ("x86_64", "sse2", "sse", False),
        ("x86_64", "", "unknown", False),
        ("aarch64", "asimd asimddp i8mm", "i8mm", True),
        ("aarch64", "asimd asimddp", "dotprod", True),
        ("aarch64", "asimd", "neon", True),
    ],
)
def test_instructions_are_read_from_the_processor(
    machine, flags, name, exact, monkeypatch, tmp_path
):
    text = CPUINFO.format(flags)
    if machine == "aarch64":
        text = text.replace("flags\t", "Features")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(integer, "CPUINFO", cpuinfo)
    monkeypatch.delenv(integer.VARIABLE, raising=False)
    integer._of_processor.cache_clear()
    try:
        assert integer.instructions() == name and integer.is_exact() == exact
        report = diagnose()
        assert report["machine"]["integer_instructions"] == name
        assert report["int8"].startswith(f"{name}: ")
        assert ("saturate" in report["int8"]) != exact
    finally:
        integer._of_processor.cache_clear()


def test_an_unknown_name_of_instructions_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv(integer.VARIABLE, "mmx")
    with pytest.raises(InputError, match="TFANET_INTEGER is 'mmx': choose one of avx512-vnni"):
        integer.instructions()
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bundle_altered_into_the_form_of_before_is_found_at_load(bundles, tmp_path, monkeypatch):
    """The check reads the graph, not what the manifest says of it."""
    path = tmp_path / "b"
    path.mkdir()
    for name in ("text.onnx", "image.onnx", "tokenizer.json"):
        source = bundles["before" if name == "image.onnx" else "now"]
        (path / name).write_bytes(source.file(name).read_bytes())
    now = bundles["now"].manifest
    files = {name: file_facts(path / name) for name in now.files}
    (path / MANIFEST).write_text(replace(now, files=files).to_json())
    monkeypatch.setenv(integer.VARIABLE, SATURATING)
    assert Predictor(Bundle.open(path).path).info()["int8"] == "floating point"
