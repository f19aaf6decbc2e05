"""`export_onnx` and `tfanet onnx`: families of models, open axes, and every mistake in one line."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tfanet.cli import main
from tfanet.errors import GateError, InputError
from tfanet.export import Profile, build_engine, export_onnx
from tfanet.export.user_model.inputs import draw, parse_inputs
from tfanet.plugins import ort_library_path, rewrite

import onnxruntime

ZOO = Path(__file__).resolve().parent.parent / "zoo"


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ZOO))
    yield
    for name in [n for n in sys.modules if n.startswith("zoo_")]:
        del sys.modules[name]


def missing(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


# A model of every family, its inputs, how many scans it has, and whether its own code runs here.
MICRO: list[Any] = [
    pytest.param("zoo_vmamba:micro", ["1x3x32x32"], 4, True, id="vmamba"),
    pytest.param("zoo_sequences:vim_micro", ["1x3x64x64"], 4, False, id="vim"),
    pytest.param(
        "zoo_sequences:text_conditioned",
        ["image:1x3x64x64", "token_ids:1x5:int64"],
        2,
        False,
        id="remamber",
    ),
    pytest.param("zoo_transformers:small", ["input_ids:1x16:int64"], 2, True, id="transformers"),
    pytest.param(
        "zoo_mambavision:micro",
        ["1x3x64x64"],
        2,
        False,
        id="mambavision",
        marks=missing("mambavision"),
    ),
]
FULL: list[Any] = [
    pytest.param("zoo_vmamba:tiny", ["1x3x224x224"], 14, id="vmamba-tiny"),
    pytest.param("zoo_vmamba:small", ["1x3x224x224"], 21, id="vmamba-small"),
    pytest.param("zoo_vmamba:base", ["1x3x224x224"], 21, id="vmamba-base"),
    pytest.param("zoo_sequences:vim_tiny", ["1x3x224x224"], 48, id="vim-tiny"),
    pytest.param(
        "zoo_mambavision:tiny", ["1x3x224x224"], 6, id="mambavision-tiny",
        marks=missing("mambavision"),
    ),
]  # fmt: skip


def build(path: Path) -> None:
    """TensorRT-RTX builds an engine of the file, for batches 1 to 4."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    engine = path.with_suffix(".engine")
    build_engine(onnx.load(path), engine, target="tensorrt-rtx", profile=Profile(1, 2, 4))
    assert engine.stat().st_size > 10_000


def check(report: dict[str, Any], path: Path, scans: int) -> None:
    assert report["parity"]["max_rel_error"] < 1e-4
    backends = {case["backend"] for case in report["parity"]["cases"]}
    assert backends == {"onnxruntime, our library", "onnxruntime, function body"}
    assert {case["name"] for case in report["parity"]["cases"]} >= {"batch 1", "batch 2"}
    assert len(report["nodes"]["scans"]) == scans
    assert report["size"] == path.stat().st_size
    assert all(value["shape"][0] == "batch" for value in report["inputs"])


def compare_bodies(path: Path, inputs: list[str]) -> None:
    """The file with the sequential body gives what it gives with the parallel one, in batch 3."""
    other = path.with_name("sequential.onnx")
    rewrite(path, other, "sequential")
    values = draw([spec.resized({"batch": 3}) for spec in parse_inputs(inputs)])
    results = []
    for file in (path, other):
        session = onnxruntime.InferenceSession(file)
        feeds = {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)}
        results.append(session.run(None, feeds)[0])
    assert np.abs(results[0] - results[1]).max() <= 1e-4 * np.abs(results[0]).max()


@pytest.mark.parametrize(("model", "inputs", "scans", "own"), MICRO)
def test_every_family_exports(
    tmp_path: Path, model: str, inputs: list[str], scans: int, own: bool
) -> None:
    if own:
        # Imported beside stand-ins, transformers would take them for its kernels.
        import transformers.models.mamba.modeling_mamba  # noqa: F401
    path = tmp_path / "parallel.onnx"
    report = export_onnx(model, path, input=inputs, function="parallel")
    check(report, path, scans)
    assert report["original"]["compared"] is own
    if own:
        assert report["original"]["max_rel_error"] < 1e-5
    compare_bodies(path, inputs)
    build(path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".engine", ".onnx"}


@pytest.mark.full
@pytest.mark.parametrize(("model", "inputs", "scans"), FULL)
def test_real_sizes_export(tmp_path: Path, model: str, inputs: list[str], scans: int) -> None:
    path = tmp_path / "parallel.onnx"
    check(export_onnx(model, path, input=inputs, function="parallel"), path, scans)
    compare_bodies(path, inputs)
    build(path)


def test_open_axes_are_checked_at_sizes_that_the_export_has_not_seen(tmp_path: Path) -> None:
    """The model whose users saw wrong colours with open height and width: image restoration."""
    import zoo_mambair

    path = tmp_path / "model.onnx"
    model, inputs = zoo_mambair.restorer(), "image:1x3xheight=12xwidth=16"
    report = export_onnx(model, path, input=inputs)
    names = {case["name"] for case in report["parity"]["cases"]}
    assert names == {"batch 1", "batch 2", "batch 1, height 16, width 32"}
    assert report["inputs"][0]["shape"] == ["batch", 3, "height", "width"]
    assert report["original"]["max_rel_error"] < 1e-5
    session = onnxruntime.InferenceSession(path)
    for size in ((1, 3, 7, 5), (2, 3, 1, 9), (3, 3, 20, 20)):
        image = torch.randn(size)
        with torch.no_grad():
            expected = model(image).numpy()
        got = session.run(None, {"image": image.numpy()})[0]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(InputError, match=r"no fixed length L.*fixed image size"):
        export_onnx(model, tmp_path / "other.onnx", input=inputs, function="parallel")
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_onnx("zoo_mistakes:scan", tmp_path / name, input="1x3x4x4", dynamic_batch=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_module_is_exported_with_a_checkpoint(tmp_path: Path) -> None:
    import zoo_mistakes

    weights = tmp_path / "weights.pth"
    torch.manual_seed(5)
    trained = zoo_mistakes.scan()
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, weights)
    path = tmp_path / "model.onnx"
    export_onnx("zoo_mistakes:scan", path, input="image:2x3x4x5", checkpoint=weights)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ort_library_path()))
    session = onnxruntime.InferenceSession(path, options)
    image = torch.randn(4, 3, 4, 5)
    with torch.no_grad():
        expected = trained(image).numpy()
    got = session.run(None, {"image": image.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(InputError, match=r"weights.pth lacks bias.*another model"):
        export_onnx("zoo_mistakes:no_scan", tmp_path / "x", input="1x3x4x4", checkpoint=weights)


def test_function_none_needs_the_library_and_says_so(tmp_path: Path) -> None:
    report = export_onnx("zoo_mistakes:scan", tmp_path / "m", input="1x3x4x4", function="none")
    assert {case["backend"] for case in report["parity"]["cases"]} == {"onnxruntime, our library"}
    assert "function body" in str(report["parity"]["skipped"])
    assert not any("polygraphy" in runtime for runtime in report["loading"])


@pytest.mark.parametrize(
    ("model", "input", "options", "words"),
    [
        ("zoo_mistakes", "1x3x4x4", {}, "expected package.module:factory"),
        ("zoo_nothing:scan", "1x3x4x4", {}, "no module 'zoo_nothing'.*PYTHONPATH"),
        ("zoo_mistakes:nothing", "1x3x4x4", {}, "zoo_mistakes has no 'nothing'"),
        ("zoo_mistakes:NUMBER", "1x3x4x4", {}, "is a int, expected a model or a function"),
        ("zoo_mistakes:not_a_model", "1x3x4x4", {}, "gives a str, expected a torch.nn.Module"),
        ("zoo_mistakes:fails", "1x3x4x4", {}, r"fails\(\) failed: ValueError: no weights here"),
        ("zoo_mistakes:no_scan", "1x3x4x4", {}, "holds no selective scan.*selective_scan in it"),
        (
            "zoo_mistakes:no_scan",
            "1x4x4",
            {},
            r"input 1x4x4 float32: RuntimeError: .*check --input",
        ),
        ("zoo_mistakes:scan", "1x4x4x4", {}, "selective_scan: A has shape .* dim = 4 as in u"),
        (
            "zoo_mistakes:decides_by_value",
            "1x3x4x4",
            {},
            r"depends on values of the inputs \(.*zoo_mistakes.py, line \d+\)",
        ),
        (
            "zoo_mistakes:fixes_the_batch",
            "3x3x4x4",
            {},
            "fails on the input|fixes axis 0 of the input 'input'.*--no-dynamic-batch",
        ),
        ("zoo_mistakes:scan", "1x3x4x4", {"function": "fast"}, "function is 'fast'.*parallel"),
        ("zoo_mistakes:scan", "1x3x4x4", {"opset": 12}, "opset is 12: choose 18 to 23"),
        ("zoo_mistakes:scan", "1x3x4x4", {"checkpoint": "/no.pth"}, "/no.pth does not exist"),
        ("zoo_mistakes:scan", [], {}, "no input is given"),
        ("zoo_mistakes:scan", "1x3x", {}, "'1x3x' is not of the form"),
        ("zoo_mistakes:scan", "0x3x4", {}, "'0x3x4' is not of the form"),
        ("zoo_mistakes:scan", "x:1x3:complex64", {}, "dtype 'complex64', expected one of float32"),
        ("zoo_mistakes:scan", ["a:1x3", "a:1x3"], {}, "'a' is given twice"),
        ("zoo_mistakes:scan", ["1xn=3", "1xn=4"], {}, "n is 4 in input 'input_1' but 3"),
        ("zoo_mistakes:scan", "n=1x3", {}, "first axis 'n'.*--no-dynamic-batch"),
    ],
)
def test_mistakes_name_what_is_wrong_and_what_to_do(
    tmp_path: Path, model: str, input: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        export_onnx(model, tmp_path / "model.onnx", input=input, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_code_fixes_is_named(tmp_path: Path) -> None:
    import zoo_mistakes

    path = tmp_path / "model.onnx"
    model = zoo_mistakes.Scan(before=lambda x: x if x.shape[0] < 3 else x.reshape(3, 3, 4, 4))
    with pytest.raises(InputError, match=r"fixes axis 0 of the input 'image'.*--no-dynamic-batch"):
        export_onnx(model, path, input="image:1x3x4x4")
    export_onnx(model, path, input="image:1x3x4x4", dynamic_batch=False)


def test_a_graph_that_computes_something_else_fails_the_gate(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"largest relative error .* nothing was written"):
        export_onnx("zoo_mistakes:wrong_in_the_graph", tmp_path / "m.onnx", input="1x3x4x4")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_point_that_means_something_else_fails_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo_kernels
    import zoo_vmamba

    def backwards(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, oflex=True,
              backend=None):  # fmt: skip
        return zoo_kernels.selective_scan_torch(u, delta, A, B, C, D, delta_bias).flip(-1)

    backwards.__name__ = "selective_scan_fn"
    monkeypatch.setattr(zoo_vmamba, "selective_scan_fn", backwards)
    with pytest.raises(GateError, match="does not mean what its name says"):
        export_onnx(zoo_vmamba.SS2D(8, 1.0), tmp_path / "m.onnx", input="1x8x4x4")


def test_whole_numbers_are_small_and_masks_let_pass() -> None:
    specs = parse_inputs(["1x3:float16", "ids:1x99:int32", "mask:1x4:bool"])
    half, ids, mask = draw(specs)
    assert half.dtype == torch.half and mask.all()
    assert ids.dtype == torch.int32 and ids.min() >= 0 and ids.max() < 16
    assert str(specs[1]) == "ids 1x99 int32"


def test_the_command_prints_what_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [
        "onnx",
        "--model",
        "zoo_mistakes:scan",
        "--input",
        "image:1x3x4x4",
        "--output",
        "m.onnx",
    ]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "of which 1 tfanet::SelectiveScan" in text and "onnxruntime, function body" in text
    lines = text.split("ONNX Runtime, Python")[1].split("\n\n")[0].splitlines()[1:]
    namespace: dict[str, Any] = {"onnxruntime": onnxruntime}
    exec("\n".join(line.strip() for line in lines), namespace)
    assert namespace["session"].get_inputs()[0].name == "image"

    command = text.split("trtexec with our plugin")[1].splitlines()[1].strip()
    assert command.startswith('python -c "') and command.endswith('"')
    exec(command[len('python -c "') : -1])
    rewritten = onnx.load(tmp_path / "m_plugin.onnx")
    assert not rewritten.functions
    assert [n.op_type for n in rewritten.graph.node if n.domain == "tfanet"] == ["SelectiveScan"]
    (tmp_path / "m_plugin.onnx").unlink()

    assert main(argv) == 1
    assert "m.onnx exists: name another file, or give --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(tmp_path / "m.onnx")
    wrong = ["--model", "zoo_mistakes:wrong_in_the_graph", "--overwrite"]
    assert main([*argv, *wrong]) == 2
    assert capsys.readouterr().err.count("\n") <= 5
    assert main([*argv[:-1], "nowhere/m.onnx"]) == 1
    assert "its directory does not exist" in capsys.readouterr().err
