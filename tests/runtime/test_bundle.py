"""Opening a bundle: every way in which one can be wrong is one line that says so."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import FUZZ, every_change, mutated, outcome

from tfanet.cli.inspect import _manifest_text
from tfanet.errors import InputError, TfanetError
from tfanet.runtime import Bundle, BundleError, Predictor
from tfanet.runtime.backends.choose import Options, open_graphs
from tfanet.runtime.bundle.read import file_facts


def refused(path: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_good_bundle_opens(bundle):
    opened = Bundle.open(bundle)
    assert opened.path == bundle.resolve()
    assert opened.file("image.onnx").is_file()
    assert json.loads(opened.manifest.to_json()) == json.loads(
        (bundle / "manifest.json").read_text()
    )


def test_no_directory(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "not a bundle directory", "tfanet export")
    refused(tmp_path, "manifest.json", "not a bundle")


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_schema_version(edit, version):
    refused(edit(lambda m: m.update(schema_version=version)), "schema version", "export")


def test_a_boolean_is_no_version(edit):
    refused(edit(lambda m: m.update(schema_version=True)), "schema_version", "wrong type")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("postprocessing"), ("lacks", "postprocessing")),
        (lambda m: m.update(postprocessing="0"), ("postprocessing", "wrong type")),
        (lambda m: m.update(surprise=1), ("unknown", "surprise")),
        (lambda m: m["preprocessing"].update(size=[32]), ("size", "[H, W]")),
        (lambda m: m["preprocessing"].update(size=[32, -1]), ("size",)),
        (lambda m: m["preprocessing"].update(std=[1, 1, 0]), ("std",)),
        (lambda m: m["preprocessing"].update(resize="area"), ("pillow-bilinear",)),
        (lambda m: m["text"].pop("pad_id"), ("pad_id",)),
        (lambda m: m["files"].pop("text.onnx"), ("files", "text.onnx")),
        (lambda m: m["files"].update({"../evil.onnx": {"size": 1, "sha256": ""}}), ("evil",)),
        (lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}}), ("passwd",)),
        (lambda m: m["files"].update({"text.onnx": 3}), ("text.onnx",)),
    ],
)
def test_bad_fields_are_named(edit, change, words):
    refused(edit(change), "manifest.json", *words)


HUGE = int("9" * 400)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["postprocessing"].update(threshold=HUGE), ("above 999", "finite")),
        (lambda m: m["preprocessing"].update(mean=[HUGE, 0, 0]), ("mean and std",)),
        (lambda m: m["preprocessing"].update(size=[HUGE, 32]), ("size is [999", "[H, W]")),
        (lambda m: m["text"].update(length=True), ("lacks length",)),
        (lambda m: m["files"]["text.onnx"].update(size=HUGE), ("the manifest says 999",)),
        (lambda m: rename(m, "a\0b"), (r"'a\x00b' is no file name",)),
        (lambda m: rename(m, "\ud800"), (r"'\ud800' is no file name",)),
        (lambda m: rename(m, "n" * 5000), ("nnn", "cannot be opened (File name too long)")),
        (lambda m: rename(m, "\x1b[2J"), (r"\x1b[2J is missing",)),
        (lambda m: m.update({"\x1b[2J" * 99: 1}), (r"the unknown field '\x1b[2J",)),
    ],
)
def test_odd_values_are_one_plain_line(edit, change, words):
    path = edit(change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 6000
    for word in words:
        assert word in message


def rename(manifest: dict[str, Any], name: str) -> None:
    """An engine whose image file has this name."""
    record = engine()
    record["files"]["image.onnx"] = name
    manifest["engines"] = [record]
    for file in record["files"].values():
        manifest["files"][file] = {"size": 1, "sha256": ""}


def engine() -> dict[str, Any]:
    return {
        "name": "fp32", "target": "tensorrt", "precision": "fp32", "library": "tensorrt",
        "version": "1", "profile": {"min": 1, "opt": 1, "max": 1}, "compute": ["9.0"],
        "scan": "function body", "files": {"image.onnx": "i.engine", "text.onnx": "t.engine"},
    }  # fmt: skip


def test_every_value_odd_once(bundle):
    """Refused in one line, or opened; `info` and a predictor say the rest in one line too."""
    path = bundle / "manifest.json"
    good = json.loads(path.read_text())
    good["parity"] = {"max_rel_error": 1e-6, "pixels_changed": 0, "pixels": 9, "cases": []}
    good["scan"] = {"calls": 2, "function": "sequential"}
    opened = 0
    for document in every_change(good):
        path.write_text(json.dumps(document))
        found = outcome(lambda: Bundle.open(bundle, verify=False), BundleError)
        if found is not None:
            opened += 1
            assert isinstance(found.manifest.preset, str)
            text = _manifest_text(found.manifest.to_dict())
            assert text.replace("\n", "").isprintable()
    assert opened > 100


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_manifests_by_chance(with_engine, data):
    """One with an engine, too: refused, or a predictor runs or says in one line why not."""
    path = with_engine / "manifest.json"
    good = json.loads((with_engine / "good").read_text())
    path.write_text(json.dumps(data.draw(mutated(lambda: good))))
    predictor = outcome(lambda: Predictor(with_engine), TfanetError)
    if predictor is not None:
        json.dumps(predictor.info())
        found = outcome(lambda: predictor(np.zeros((9, 9, 3), np.uint8), "red"), TfanetError)
        assert found is None or found.mask.shape == (9, 9)


@pytest.fixture
def with_engine(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"engines": [engine()]}
    for name in ("i.engine", "t.engine"):
        (bundle / name).write_bytes(b"no engine")
        manifest["files"][name] = file_facts(bundle / name)
    (bundle / "good").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", "[" * 100_000, "[" * 70 + "]" * 70, "\x00"])
def test_a_manifest_that_is_not_json(bundle, text):
    (bundle / "manifest.json").write_text(text)
    refused(bundle, "manifest.json")


def test_a_huge_manifest_is_not_read(bundle):
    (bundle / "manifest.json").write_text(" " * (1 << 20) + "{}")
    refused(bundle, "limit")


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_files_missing_truncated_or_altered(bundle, name):
    path = bundle / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(bundle, name, "truncated")
    altered = bytearray(content)
    altered[len(content) // 2] ^= 1
    path.write_bytes(altered)
    refused(bundle, name, "SHA-256", "copy the bundle again")
    Bundle.open(bundle, verify=False)
    path.unlink()
    refused(bundle, name, "missing")


@pytest.mark.parametrize("kind", ["symbolic", "hard", "directory", "fifo"])
def test_files_that_are_not_the_bundle_s_own(bundle, tmp_path, kind):
    path, outside = bundle / "text.onnx", tmp_path / "outside.onnx"
    path.rename(outside)
    if kind == "symbolic":
        path.symlink_to(outside)
    elif kind == "hard":
        os.link(outside, path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    refused(bundle, "text.onnx", "link or no regular file")


def test_a_linked_manifest(bundle, tmp_path):
    (bundle / "manifest.json").rename(tmp_path / "m.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "m.json")
    refused(bundle, "manifest.json", "link")


def test_unknown_files_are_not_handed_out(bundle):
    with pytest.raises(BundleError, match="holds no secret"):
        Bundle.open(bundle).file("secret")


def test_the_digest_is_the_sha256_of_the_manifest(bundle):
    expected = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert Bundle.open(bundle).digest == expected
    assert Bundle.open(bundle, digest=expected.upper()).digest == expected
    assert Predictor(bundle, digest=expected).info()["digest"] == expected


def test_a_flipped_byte_of_the_manifest_is_noticed(bundle):
    """Every byte, where the manifest is one of ours still or not; most flips are, without it."""
    path = bundle / "manifest.json"
    content, digest = path.read_bytes(), Bundle.open(bundle).digest
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(BundleError, match=f"manifest.json has the digest .* {digest}"):
            Bundle.open(bundle, digest=digest)
    with pytest.raises(BundleError, match="digest"):
        Predictor(bundle, digest=digest)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 65, "0" * 64 + "\n"])
def test_a_digest_that_is_none(bundle, digest):
    with pytest.raises(InputError, match="give the 64 hexadecimal digits"):
        Bundle.open(bundle, digest=digest)


def test_what_was_compared_is_what_is_loaded(bundle, make_bundle, monkeypatch):
    """Each file is exchanged as soon as it has been compared, before it is loaded."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = Predictor(bundle)(picture, "red").logits
    other, read = make_bundle(scan=True) / "image.onnx", Bundle.read

    def swapped(self, name):
        content = read(self, name)
        (bundle / name).write_bytes(other.read_bytes())
        return content

    monkeypatch.setattr(Bundle, "read", swapped)
    assert np.array_equal(Predictor(bundle)(picture, "red").logits, expected)
    with pytest.raises(BundleError, match=r"image.onnx has [0-9,]+ bytes"):
        Predictor(bundle)


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_what_the_predictor_does_not_use_is_compared_too(bundle, monkeypatch, name):
    """As where an engine runs, and the graphs lie beside it."""
    running = open_graphs(Bundle.open(bundle), "onnxruntime-cpu", Options())
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    monkeypatch.setattr("tfanet.runtime.running.open_graphs", lambda *_: running)
    with pytest.raises(BundleError, match=f"{name} does not match its SHA-256"):
        Predictor(bundle)


def test_a_file_read_later_is_compared_again(bundle):
    opened = Bundle.open(bundle)
    content = opened.read("image.onnx")
    assert hashlib.sha256(content).hexdigest() == opened.manifest.files["image.onnx"]["sha256"]
    (bundle / "image.onnx").write_bytes(content[:-1] + b"x")
    with pytest.raises(BundleError, match=r"image.onnx does not match its SHA-256"):
        opened.read("image.onnx")


def test_a_bundle_that_changes_while_it_is_opened(bundle, monkeypatch):
    """The old manifest was read, the file that it lists is gone, a new manifest is there."""
    check, calls = Bundle._check_files, []
    text = (bundle / "manifest.json").read_text()

    def slow(self, *args):
        calls.append(self.digest)
        if len(calls) == 1:
            (bundle / "manifest.json").write_text(text + " ")
            raise BundleError("the engine of the old manifest is missing")
        check(self, *args)

    monkeypatch.setattr(Bundle, "_check_files", slow)
    assert Bundle.open(bundle).digest == calls[1] != calls[0]
