"""Bundles that are incomplete, altered or of another kind: refused, in the words of Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hand_made import BOXED, PROBABILITIES, as_version_1, image_model, manifest_of, write_bundle
from mutations import every_change

from tfanet.errors import MissingDependencyError, TfanetError
from tfanet.runtime import BundleError, Predictor
from tfanet.runtime.bundle.manifest import Manifest
from tfanet.runtime.bundle.read import MAX_MANIFEST_BYTES

FILES = ["manifest.json", "image.onnx", "text.onnx", "tokenizer.json"]


def engine(**changes: Any) -> dict[str, Any]:
    """The record of an engine."""
    files = {"text.onnx": "text.engine", "image.onnx": "image.engine"}
    return {
        "name": "fast", "target": "tensorrt", "precision": "fp16", "library": "TensorRT",
        "version": "10", "profile": {}, "compute": [], "files": files,
    } | changes  # fmt: skip


def with_engine(data: dict[str, Any], name: str) -> None:
    """A manifest with an engine of two files, of which the text's has this name."""
    data["engines"] = [engine(files={"text.onnx": name, "image.onnx": "image.engine"})]
    facts = {"size": 1, "sha256": ""}
    data["files"] = {name: facts, "image.engine": facts} | data["files"]


Change = Callable[[dict[str, Any]], Any]
MANIFESTS: list[Change] = [
    lambda d: d.pop("schema_version"),
    lambda d: d.update(schema_version=3),
    lambda d: d.update(schema_version=0),
    lambda d: d.update(schema_version="a'b\"c\\d\n\x01 and much more text than twenty"),
    lambda d: d.update(schema_version=1.5, tool={"version": 0.1}),
    lambda d: d.update(schema_version=1e16, tool=None),
    lambda d: d.update(schema_version=1.25e-7, tool={"version": {"a": [1, None, True, "x"]}}),
    lambda d: d.update(schema_version=True),
    lambda d: d.update(schema_version=1.0),
    lambda d: d.update(schema_version=2.0),
    lambda d: d.update(schema_version=None),
    *(lambda d, name=name: d.pop(name) for name in ("tool", "model", "files", "engines", "scan")),
    lambda d: d.update(tool="tfanet"),
    lambda d: d.update(model=[1, 2.5, -0.0, 1e300, {"a": {}}, "längere Wörter, und noch mehr"]),
    lambda d: d.update(dynamic_batch=1),
    lambda d: d.update(precision=None),
    lambda d: d.update(extra=1, another=2),
    *(
        lambda d, size=size: d["preprocessing"].update(size=size)
        for size in (None, [], [32], [32, 48, 1], [0, 48], [-1, 48], [32, 16385], [32.0, 48],
                     [True, 48], ["32", 48], 10**18, {"a": 1}, [32, 2**31])
    ),
    *(
        lambda d, name=name, values=values: d["preprocessing"].update({name: values})
        for name in ("mean", "std")
        for values in (None, [0.5, 0.5], [0.5, 0.5, "a"], [True, 1, 1], 0.5)
    ),
    lambda d: d["preprocessing"].update(std=[1, 0, 1]),
    lambda d: d["preprocessing"].update(std=[1, 0.0, 1]),
    lambda d: d["preprocessing"].update(resize="nearest"),
    lambda d: d["preprocessing"].pop("color"),
    *(lambda d, n=n: d["text"].pop(n) for n in ("length", "pad_id", "sos_id", "eos_id")),
    lambda d: d["text"].update(length=8.0),
    lambda d: d["text"].update(length=2),
    lambda d: d["text"].update(length=78),
    lambda d: d["text"].update(length=-(2**40)),
    lambda d: d["text"].update(length=20),
    lambda d: d["text"].update(sos_id=1),
    lambda d: d["text"].update(eos_id=-5),
    lambda d: d["text"].update(pad_id=2**50),
    lambda d: d["files"].pop("image.onnx"),
    lambda d: d["files"].update({"../outside.onnx": {"size": 1, "sha256": ""}}),
    lambda d: d["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}}),
    lambda d: d["files"].update({"image.onnx": [1, 2]}),
    lambda d: d["files"]["text.onnx"].pop("size"),
    lambda d: d["files"]["text.onnx"].update(mode=1),
    lambda d: d["files"]["text.onnx"].update(size=1234567),
    lambda d: d["files"]["text.onnx"].update(size="12"),
    lambda d: d["files"]["text.onnx"].update(size=None),
    lambda d: d["files"]["text.onnx"].update(sha256=None),
    lambda d: d["files"]["text.onnx"].update(sha256="0" * 64),
    lambda d: d["preprocessing"].update(size=[48, 32]),
    lambda d: d.update(engines={}),
    lambda d: d.update(engines=[1]),
    *(
        lambda d, name=name, value=value: d.update(engines=[engine(**{name: value})])
        for name in engine()
        for value in (None, 1)
    ),
    lambda d: d.update(engines=[engine(precision="fp12 and more than twenty")]),
    lambda d: d.update(engines=[engine(files={})]),
    lambda d: d.update(engines=[engine(name="it's" * 20, files={"text.onnx": "a"})]),
    lambda d: d.update(engines=[engine(files={"text.onnx": "a", "image.onnx": 1})]),
    lambda d: d.update(engines=[engine(files={"text.onnx": "a", "image.onnx": "b", "c": "d"})]),
    lambda d: d.update(engines=[engine()]),
    lambda d: with_engine(d, "missing.engine"),
    lambda d: with_engine(d, "../outside.engine"),
    lambda d: with_engine(d, "/etc/passwd"),
    lambda d: with_engine(d, "a\\b"),
    lambda d: with_engine(d, ".."),
    lambda d: with_engine(d, ""),
    lambda d: with_engine(d, "image.onnx"),
]  # fmt: skip
VERSION_1: list[Change] = [
    lambda d: d.update(schema_version=2),
    lambda d: d.update(threshold=True),
    lambda d: d.update(threshold="0"),
    lambda d: d.update(postprocessing={"value": "logit", "threshold": 0}),
    lambda d: d["outputs"]["image.onnx"].append({"name": "more", "shape": ["batch", 1]}),
    lambda d: d["outputs"].update({"image.onnx": ["mask_logit"]}),
]
VERSION_2: list[Change] = [
    lambda d: d.update(schema_version=1),
    lambda d: d.update(threshold=0),
    *(
        lambda d, more=more: d["preprocessing"].update(more)
        for more in (
            {"padding": [0, 0, 0]}, {"more": 1}, {"resize": "letterbox-area"}, {"resize": [{}]},
            *({"resize": "letterbox-area", "padding": padding}
              for padding in ([0, 0], [0, 0, 256], [0, -1, 0], [0, 0, 1.0], [True, 0, 0], "grey"))
        )
    ),
    lambda d: d["preprocessing"].pop("padding"),
    *(
        lambda d, more=more: d["text"].update(more)
        for more in ({"tokenizer": "words"}, {"tokenizer": None}, {"truncation": "no end" * 10},
                     {"truncation": {"a": 1}}, {"more": 1}, {"pad_id": "0"}, {"length": 10**12})
    ),
    lambda d: d["text"].pop("tokenizer"),
    *(
        lambda d, more=more: d["postprocessing"].update(more)
        for more in ({"value": "softmax"}, {"value": 1}, {"threshold": True}, {"threshold": "0"},
                     {"more": 1}, *({"value": "probability", "threshold": t} for t in (0, 1, -2)))
    ),
    lambda d: d["postprocessing"].pop("value"),
    lambda d: d.update(inputs={}),
    *(
        lambda d, way=way, graph=graph, act=act: act(d[way][graph])
        for way, graph in (("inputs", "text.onnx"), ("inputs", "image.onnx"),
                           ("outputs", "text.onnx"), ("outputs", "image.onnx"))
        for act in (
            lambda values: values.clear(),
            lambda values: values.append(values[0]),
            lambda values: values.append({"name": "more", "shape": ["batch", 1], "role": "more"}),
            lambda values: values[0].update(name="other"),
            lambda values: values[0].update(name=""),
            lambda values: values[0].update(shape=["batch"]),
            lambda values: values[0]["shape"].append(0),
            lambda values: values[0]["shape"].append(2**31),
            lambda values: values[0]["shape"].append(8.0),
            lambda values: values.insert(0, "a text"),
        )
    ),
    *(
        lambda d, place=place, values=values: d["outputs"]["image.onnx"].__setitem__(
            slice(*place), values
        )
        for place, values in (
            ((0, 0), [{"name": "first", "shape": [1, 1], "role": "no_target"}]),
            ((1, 1), [{"name": "two", "shape": [1, 2], "role": "no_target"}]),
            ((1, 1), [{"name": "alone", "shape": [1, 2], "role": "relevance"}]),
            ((1, 1), [{"name": "a", "shape": [1, 2], "role": "relevance"},
                      {"name": "b", "shape": [1, 3, 2, 2], "role": "instances"}]),
            ((1, 1), [{"name": "a", "shape": [1, 2], "role": "relevance"},
                      {"name": "b", "shape": [1, 2, 2, 2], "role": "instances"},
                      {"name": "c", "shape": [1, 2, 9], "role": "alignment"}]),
            ((0, 1), [{"name": "mask_logit", "shape": [1, 2, 32, 48], "role": "mask"}]),
            ((0, 1), [{"name": "mask_logit", "shape": [1, 1, 32, 49], "role": "mask"}]),
            ((0, 1), [{"name": "mask_logit", "shape": [1, 1, 33, 48], "role": "mask"}]),
            ((1, 1), [{"name": "a", "shape": [1, 2], "role": "relevance"},
                      {"name": "b", "shape": [1, 2, 33, 2], "role": "instances"}]),
            ((1, 1), [{"name": "a", "shape": [1, 1025], "role": "relevance"},
                      {"name": "b", "shape": [1, 1025, 2, 2], "role": "instances"}]),
            ((0, 1), [{"name": "mask_logit", "shape": [1, 1, 16, 24], "role": "mask"}]),
        )
    ),
]  # fmt: skip


def assert_same_refusal(
    path: Path | str, open_runtime: Callable, status: str = "BAD_BUNDLE", **options: Any
) -> str:
    """Both runtimes refuse the bundle with the same sentence, which is returned."""
    with pytest.raises(TfanetError) as expected:
        Predictor(path, threads=1, **options)
    with pytest.raises(Exception, match=r"\w") as caught:
        open_runtime(path, **options)
    assert str(caught.value) == str(expected.value)
    kind = MissingDependencyError, "MISSING_DEPENDENCY"
    assert caught.value.status == (kind[1] if expected.errisinstance(kind[0]) else status)
    return str(expected.value)


def assert_refused_as(change: Change, bundle: Path, open_runtime: Callable, version: int) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    if version == 1:
        data = as_version_1(data)
    change(data)
    path.write_text(json.dumps(data))
    assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("number", range(len(MANIFESTS)))
def test_manifest(number: int, bundle: Path, open_runtime: Callable) -> None:
    assert_refused_as(MANIFESTS[number], bundle, open_runtime, 1 + number % 2)


@pytest.mark.parametrize("number", range(len(VERSION_1)))
def test_manifest_of_version_1(number: int, bundle: Path, open_runtime: Callable) -> None:
    assert_refused_as(VERSION_1[number], bundle, open_runtime, 1)


@pytest.mark.parametrize("number", range(len(VERSION_2)))
def test_manifest_of_version_2(number: int, bundle: Path, open_runtime: Callable) -> None:
    assert_refused_as(VERSION_2[number], bundle, open_runtime, 2)


# What the parser here does not take for JSON, or reads as another number.
UNLIKE = re.compile(r"NaN|Infinity|\\ud800|0{300}|\[{55}")


def sentence_of(manifest: dict[str, Any], path: Path) -> str:
    """What Python says against it; nothing where it is good."""
    try:
        Manifest.from_dict(manifest, path)
    except BundleError as error:
        return str(error)
    return ""


def test_every_change_of_a_manifest(tmp_path: Path, open_runtime: Callable) -> None:
    """One value replaced by an odd one or left out: Python's sentence, or a good manifest, whose
    files are then missed."""
    image = image_model(half=True, no_target=True, instances=3)
    facts = {"preprocessing": BOXED, "postprocessing": PROBABILITIES}
    bundle = write_bundle(tmp_path / "bundle", image, **facts)
    newest = json.loads((bundle / "manifest.json").read_text())
    with_engine(newest, "text.engine")
    oldest = as_version_1(json.loads(manifest_of(bundle).to_json()))
    alone = tmp_path / "alone"
    alone.mkdir()
    path, refused, good = alone / "manifest.json", 0, 0
    with open(path, "wb", buffering=0) as file:
        for changed in (*every_change(newest), *list(every_change(oldest))[::10]):
            text = json.dumps(changed)
            if UNLIKE.search(text):
                continue
            file.seek(0)
            file.write(text.encode())
            file.truncate()
            with pytest.raises(Exception, match=r"\w") as caught:
                open_runtime(alone)
            native, python = str(caught.value), sentence_of(changed, path)
            if python:
                assert native == python, text
                refused += 1
            else:
                assert native.startswith(str(alone)) and not native.startswith(str(path)), text
                good += 1
    assert refused > 3000
    assert good > 100


def test_numbers_that_json_reads_as_infinite(bundle: Path, open_runtime: Callable) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"threshold": 0.0', '"threshold": 1e999'))
    with pytest.raises(BundleError, match="above inf, expected logit or probability above a finit"):
        Predictor(bundle)
    with pytest.raises(Exception, match=r"manifest.json is not JSON \(.*1e999.*export again"):
        open_runtime(bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(name: str, bundle: Path, open_runtime: Callable) -> None:
    (bundle / name).unlink()
    assert name in assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("name", FILES[1:])
def test_truncated_file(name: str, bundle: Path, open_runtime: Callable) -> None:
    size = (bundle / name).stat().st_size
    for length in (0, 1, size // 2, size - 1):
        os.truncate(bundle / name, length)
        assert "truncated or altered" in assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_truncated_manifest(length: int, bundle: Path, open_runtime: Callable) -> None:
    path = bundle / "manifest.json"
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        Predictor(bundle)
    with pytest.raises(Exception, match=r"manifest.json is not JSON \(.*\): export again"):
        open_runtime(bundle)


@pytest.mark.parametrize("name", FILES[1:])
def test_one_bit_altered(name: str, bundle: Path, open_runtime: Callable) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert "does not match its SHA-256" in assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder", "pipe"])
def test_no_file_of_its_own(
    name: str, kind: str, bundle: Path, tmp_path: Path, open_runtime: Callable
) -> None:
    path, outside = bundle / name, tmp_path / "outside"
    path.rename(outside)
    if kind == "symlink":
        path.symlink_to(outside)
    elif kind == "hard link":
        path.hardlink_to(outside)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("text", ["[1]", "3", "2.5", '"x"', "null", "true"])
def test_manifest_of_another_type(text: str, bundle: Path, open_runtime: Callable) -> None:
    (bundle / "manifest.json").write_text(text)
    assert "expected a JSON object" in assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 1000, "{", "{}x", "NaN", "\ud800"])
def test_manifest_that_is_no_json(text: str, bundle: Path, open_runtime: Callable) -> None:
    (bundle / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Exception, match=r"manifest.json is not JSON \(") as caught:
        open_runtime(bundle)
    assert caught.value.status == "BAD_BUNDLE"


def test_manifest_too_large(bundle: Path, open_runtime: Callable) -> None:
    with open(bundle / "manifest.json", "a") as file:
        file.write(" " * MAX_MANIFEST_BYTES)
    assert "the limit is 1,048,576" in assert_same_refusal(bundle, open_runtime)


def test_paths(bundle: Path, shared_bundle: Path, tmp_path: Path, open_runtime: Callable) -> None:
    for path in (
        "",
        "/",
        ".",
        "no//such/./folder/",
        "/no/../such",
        bundle / "image.onnx",
        tmp_path,
    ):
        assert_same_refusal(path, open_runtime)
    link = tmp_path / "link"
    link.symlink_to(shared_bundle)
    info = open_runtime(f"{link}/.").info()
    assert Path(os.fsdecode(info.bundle)) == shared_bundle.resolve()


def test_graphs_with_tensors_elsewhere(
    bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    model = onnx.load(bundle / "text.onnx")
    onnx.save(model, bundle / "text.onnx", save_as_external_data=True, location="weights")
    seal(bundle)
    assert "keeps tensors in another file" in assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff" * 20,
        b"\x3a\x7f",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b",
    ],
)
def test_graphs_that_are_none(
    data: bytes, bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    (bundle / "image.onnx").write_bytes(data)
    seal(bundle)
    assert_same_refusal(bundle, open_runtime)


def test_every_prefix_of_a_graph_is_survived(
    bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    whole = (bundle / "image.onnx").read_bytes()
    for length in range(0, len(whole), 37):
        (bundle / "image.onnx").write_bytes(whole[:length])
        seal(bundle)
        with pytest.raises(Exception, match=r"image\.onnx") as caught:
            open_runtime(bundle)
        assert caught.value.status == "BAD_BUNDLE"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 31),
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2),
        lambda m: m.graph.input[2].type.tensor_type.shape.dim.add(dim_param="more"),
        lambda m: m.graph.input.add().CopyFrom(
            onnx.helper.make_tensor_value_info("more", 1, [1, "x", None])
        ),
    ],
)
def test_graphs_of_another_interface(
    change: Callable, bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    model = onnx.load(bundle / "image.onnx")
    change(model)
    onnx.save(model, bundle / "image.onnx")
    seal(bundle)
    assert_same_refusal(bundle, open_runtime)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.graph.input[0], "name", "picture"),
        lambda m: m.graph.input[1].type.tensor_type.shape.dim.pop(),
        lambda m: setattr(m.graph.node[0], "op_type", "Convolution"),
    ],
)
def test_graphs_that_onnxruntime_refuses(
    change: Callable, bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    model = onnx.load(bundle / "image.onnx")
    change(model)
    onnx.save(model, bundle / "image.onnx")
    seal(bundle)
    with pytest.raises(TfanetError, match=r"image\.onnx cannot be loaded: \[ONNXRuntimeError\]"):
        Predictor(bundle)
    with pytest.raises(Exception, match=r"image\.onnx cannot be loaded: \w+") as caught:
        open_runtime(bundle)
    assert caught.value.status == "BAD_BUNDLE"


def test_graphs_of_another_type(bundle: Path, seal: Callable, open_runtime: Callable) -> None:
    """Python leaves this to the first run; here the result would be read as what it is not."""
    model = onnx.load(bundle / "image.onnx")
    output = model.graph.output[0]
    model.graph.node[-1].output[0] = "as_float32"
    model.graph.node.append(onnx.helper.make_node("Cast", ["as_float32"], [output.name], to=10))
    output.type.tensor_type.elem_type = 10
    onnx.save(model, bundle / "image.onnx")
    seal(bundle)
    with pytest.raises(Exception, match="'mask_logit' holds float16, expected float32"):
        open_runtime(bundle)


def test_operator_library(
    scan_bundle: Path, tmp_path: Path, open_runtime: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_runtime(scan_bundle).info().op_library  # it lies beside
    with pytest.raises(MissingDependencyError) as expected:
        Predictor(scan_bundle, op_library=None)
    with pytest.raises(Exception, match="without a function body") as caught:
        open_runtime(scan_bundle, op_library="none")
    assert str(caught.value) == str(expected.value)
    monkeypatch.setenv("TFANET_OP_LIBRARY", "none")
    with pytest.raises(Exception, match="without a function body"):
        open_runtime(scan_bundle)
    missing = str(tmp_path / "missing.so")
    with pytest.raises(Exception, match=f"the operator library {missing} does not exist"):
        open_runtime(scan_bundle, op_library=missing)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(
        Exception, match=r"text.so does not load in onnxruntime .*\(.+\): build"
    ) as why:
        open_runtime(scan_bundle, op_library=str(tmp_path / "text.so"))
    assert why.value.status == "MISSING_DEPENDENCY"


def test_onnxruntime_that_is_missing(
    shared_bundle: Path, library: Path, open_runtime: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/nowhere/libonnxruntime.so", str(library)):
        with pytest.raises(Exception, match="ONNX Runtime cannot be loaded") as caught:
            open_runtime(shared_bundle, onnxruntime=path)
        assert caught.value.status == "MISSING_DEPENDENCY"
    monkeypatch.setenv("TFANET_ONNXRUNTIME", "/nowhere/else.so")
    with pytest.raises(Exception, match=r"/nowhere/else\.so"):
        open_runtime(shared_bundle, onnxruntime=None)


def test_engines_are_checked_and_left_alone(
    bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["engines"] = [engine()]
    for name in ("text.engine", "image.engine"):
        (bundle / name).write_bytes(os.urandom(3_000_000))
        data["files"][name] = {}
    (bundle / "manifest.json").write_text(json.dumps(data))
    seal(bundle)
    assert open_runtime(bundle).info().backend == b"onnxruntime-cpu"
    with open(bundle / "image.engine", "r+b") as file:
        file.seek(2_500_000)
        file.write(b"altered!")
    assert "image.engine does not match its SHA-256" in assert_same_refusal(bundle, open_runtime)
    os.truncate(bundle / "image.engine", 1_000_000)
    assert "image.engine has 1,000,000 bytes" in assert_same_refusal(bundle, open_runtime)


def test_sha256_of_all_lengths(bundle: Path, seal: Callable, open_runtime: Callable) -> None:
    """Whatever the place of the end in the last block: spaces behind it all are JSON."""
    text = (bundle / "tokenizer.json").read_bytes()
    text += b" " * (-len(text) % 64)
    for more in (0, 1, 54, 55, 56, 57, 63):
        text += b" " * (more - len(text) % 64)
        assert len(text) % 64 == more
        (bundle / "tokenizer.json").write_bytes(text)
        seal(bundle)
        facts = json.loads((bundle / "manifest.json").read_text())["files"]["tokenizer.json"]
        assert facts["sha256"] == hashlib.sha256(text).hexdigest()
        open_runtime(bundle).close()


def test_digest(bundle: Path, open_runtime: Callable) -> None:
    """It is Python's; any other is refused in its words, before the manifest is read."""
    path = bundle / "manifest.json"
    digest = Predictor(bundle, threads=1).info()["digest"]
    assert open_runtime(bundle).info().digest.decode() == digest
    assert open_runtime(bundle, digest=digest.upper()).info().digest.decode() == digest
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        assert digest in assert_same_refusal(bundle, open_runtime, digest=digest)


@pytest.mark.parametrize(
    "digest", ["", "abc", "g" * 64, "0" * 65, "0" * 64 + "\n", "'\x1b\\" * 40, "é" * 64]
)
def test_digests_that_are_none(digest: str, shared_bundle: Path, open_runtime: Callable) -> None:
    assert_same_refusal(shared_bundle, open_runtime, "INVALID_ARGUMENT", digest=digest)


def test_copied_bundle_opens(shared_bundle: Path, tmp_path: Path, open_runtime: Callable) -> None:
    copy = shutil.copytree(shared_bundle, tmp_path / "ein Bündel")
    assert os.fsdecode(open_runtime(copy).info().bundle) == str(copy)
