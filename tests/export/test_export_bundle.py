"""Export: what a bundle holds, its equality with PyTorch, and that it appears whole or not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tfanet.errors import GateError, InputError
from tfanet.export import export_bundle
from tfanet.export.graphs import export_image
from tfanet.export.parity.check import bundle_backends, check_bundle, check_graphs
from tfanet.model.checkpoint import save_checkpoint
from tfanet.model.tfanet.config import PRESETS
from tfanet.model.tfanet.network import TFANet
from tfanet.plugins import ort_library_path
from tfanet.plugins.graph.attach import count_scan_nodes
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.backends.session import open_session

ROOT = Path(__file__).resolve().parents[2]


def test_the_manifest_says_what_is_there(model, bundle):
    manifest = bundle.manifest
    assert {p.name for p in bundle.path.iterdir()} == {
        "manifest.json", "image.onnx", "text.onnx", "tokenizer.json",
    }  # fmt: skip
    assert manifest.model["config"] == json.loads(json.dumps(model.config.to_dict()))
    assert manifest.model["source"] == "checkpoint"
    assert manifest.inputs["text.onnx"] == [
        {"name": "token_ids", "dtype": "int64", "shape": ["batch", 8]}
    ]
    shapes = {value["name"]: value["shape"] for value in manifest.inputs["image.onnx"]}
    assert shapes == {
        "image": ["batch", 3, 64, 64],
        "word_features": ["batch", 16, 8],
        "sentence_feature": ["batch", 16],
        "word_mask": ["batch", 8],
    }
    assert manifest.outputs["image.onnx"] == [
        {"name": "mask_logit", "dtype": "float32", "shape": ["batch", 1, 64, 64], "role": "mask"}
    ]
    assert manifest.scan["calls"] == 4 + 8 and manifest.scan["fused"] == 8
    parity = manifest.parity
    assert parity["max_rel_error"] <= 1e-4 and parity["pixels_changed"] == 0
    assert {case["batch"] for case in parity["cases"]} == {1, 2}
    assert {case["backend"] for case in parity["cases"]} == {
        "onnxruntime", "onnxruntime, function body",
    }  # fmt: skip


def test_graphs_are_valid_small_and_tell_nothing_of_this_machine(bundle):
    for name in ("image.onnx", "text.onnx"):
        content = bundle.file(name).read_bytes()
        graph = onnx.load_from_string(content)
        onnx.checker.check_model(graph, full_check=True)
        onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
        assert graph.ir_version == 10
        assert all(not node.metadata_props for node in graph.graph.node)
        for path in (str(ROOT), str(Path.home()), "site-packages"):
            assert path.encode() not in content
    image = onnx.load(bundle.file("image.onnx"))
    assert count_scan_nodes(image) == 12
    names = [node.name for node in image.graph.node]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("fusion.1.block.text_proj/conv1d") for name in names) == 1
    convs = [node.name for node in image.graph.node if node.op_type == "Conv"]
    assert all(name.startswith(("backbone.", "fusion.", "decoder")) for name in convs)
    assert len(image.graph.node) < 1500
    assert [f.name for f in image.functions] == ["SelectiveScan", "SS2DScan", "SS2D"]


def functions_and_opset(made: Bundle) -> tuple[int, int]:
    """How many the image graph has, and which."""
    graph = onnx.load(made.file("image.onnx"))
    return len(graph.functions), next(o.version for o in graph.opset_import if o.domain == "")


def test_the_parallel_body_and_the_oldest_opset(model, tmp_path):
    made = export_bundle(model, tmp_path / "bundle", function="parallel", opset=18)
    assert made.manifest.scan["function"] == "parallel"
    assert made.manifest.parity["skipped"] == {}
    assert functions_and_opset(made) == (3, 18)


def test_a_fixed_batch_another_size_and_the_newest_opset(model, bundle, tmp_path):
    """Put in the place of a bundle, with leave."""
    target = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    options = {"image_size": (32, 96), "dynamic_batch": False, "opset": 23}
    with pytest.raises(InputError, match="holds a bundle"):
        export_bundle(model, target, **options)
    assert Bundle.open(target).digest == bundle.digest
    made = export_bundle(model, target, **options, overwrite=True)
    assert made.path == target and [p.name for p in tmp_path.iterdir()] == ["b"]
    assert made.manifest.preprocessing.size == (32, 96)
    assert made.manifest.scan["function"] == "sequential"
    assert made.manifest.parity["skipped"] == {}
    assert functions_and_opset(made) == (3, 23)
    assert made.manifest.inputs["image.onnx"][0]["shape"] == [1, 3, 32, 96]
    assert {case["batch"] for case in made.manifest.parity["cases"]} == {1}
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    predictions = Predictor(made.path)(picture, ["red", "the big star"])
    assert [p.mask.shape for p in predictions] == [(50, 40)] * 2


def test_without_fusing_the_parts_compute_the_same(model, bundle, tmp_path):
    parts = export_image(model, (64, 64), fuse=False)
    onnx.checker.check_model(parts, full_check=True)
    kinds = [node.op_type for node in parts.graph.node]
    assert kinds.count("SelectiveScan") == 12 and "SS2D" not in kinds
    assert [f.name for f in parts.functions] == ["SelectiveScan"]
    path = tmp_path / "parts.onnx"
    path.write_bytes(parts.SerializeToString())
    sessions = [open_session(p, ort_library_path()) for p in (bundle.file("image.onnx"), path)]
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.random([2, *value.shape[1:]], np.float32)
        for value in sessions[0].get_inputs()
    }
    fused, unfused = (session.run(None, feeds)[0] for session in sessions)
    assert np.abs(fused - unfused).max() / np.abs(unfused).max() < 1e-5


def test_any_batch_equals_pytorch(model, bundle):
    session = open_session(bundle.file("image.onnx"), None)
    torch.manual_seed(1)
    for batch in (1, 2, 5):
        image, words = torch.randn(batch, 3, 64, 64), torch.randn(batch, 16, 8)
        sentence, mask = torch.randn(batch, 16), (torch.rand(batch, 8) > 0.4).float()
        mask[:, 0] = 1
        feeds = {
            "image": image,
            "word_features": words,
            "sentence_feature": sentence,
            "word_mask": mask,
        }
        got = session.run(None, {name: value.numpy() for name, value in feeds.items()})[0]
        with torch.no_grad():
            expected = model.segment(image, words, sentence, mask).numpy()
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_predictor_equals_the_pytorch_pipeline(model, bundle):
    from tfanet.runtime import TextTokenizer, image_to_tensor, load_image, logits_to_mask

    picture = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    text = "the small red circle"
    prediction = Predictor(bundle.path)(picture, text)
    image = torch.from_numpy(image_to_tensor(load_image(picture), (64, 64)))[None]
    ids, mask = TextTokenizer(bundle.file("tokenizer.json"), 8)(text)
    with torch.no_grad():
        z = model(image, torch.from_numpy(ids), torch.from_numpy(mask)).numpy()[0, 0]
    np.testing.assert_allclose(prediction.logits, z, atol=1e-4 * np.abs(z).max())
    expected, resized = logits_to_mask(z, (90, 120))
    sure = np.abs(resized) > 1e-4 * np.abs(z).max()
    assert np.array_equal(prediction.mask[sure], expected[sure])


def test_parity_fails_for_other_weights_and_nothing_is_written(
    model, bundle, tmp_path, monkeypatch
):
    other = TFANet(model.config).eval()
    with pytest.raises(GateError, match=r"parity failed.*largest relative error"):
        check_graphs(other, bundle_backends(bundle), (64, 64))
    save_checkpoint(tmp_path / "other.safetensors", other)
    with pytest.raises(GateError):
        check_bundle(bundle.path, checkpoint=tmp_path / "other.safetensors")
    # In place of tracing, the graphs of the bundle: the comparison remains.
    graphs = {name: onnx.load(bundle.file(f"{name}.onnx")) for name in ("text", "image")}
    for name, graph in graphs.items():
        monkeypatch.setattr(
            f"tfanet.export.bundle.export_{name}", lambda *_, graph=graph, **__: graph
        )
    with pytest.raises(GateError):
        export_bundle(other, tmp_path / "never")
    monkeypatch.setattr("tfanet.export.parity.check.MAX_REL_ERROR", 0.0)
    with pytest.raises(GateError):
        export_bundle(model, tmp_path / "never")
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def test_parity_of_a_bundle_again(bundle, checkpoint):
    report = check_bundle(bundle.path, checkpoint=checkpoint)
    assert report["max_rel_error"] <= 1e-4
    with pytest.raises(InputError, match=r"exported from a checkpoint.*--checkpoint"):
        check_bundle(bundle.path)
    with pytest.raises(InputError, match="takes 20 tokens, the bundle 8"):
        check_bundle(bundle.path, checkpoint="tfanet-tiny")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"function": "magic"}, "magic.*sequential, parallel, none"),
        ({"opset": 17}, "17.*18 to 23"),
        ({"image_size": (64, 60)}, "multiples of 32"),
    ],
)
def test_bad_options(model, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        export_bundle(model, tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_only_a_bundle_is_replaced(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name, words in (("file", "is a file"), ("folder", "holds no bundle")):
        with pytest.raises(InputError, match=words):
            export_bundle(model, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_a_killed_export_leaves_no_half_bundle(checkpoint, bundle, tmp_path):
    """Killed at moments spread over the writing, the final name holds the old bundle, or none."""
    target = tmp_path / "bundle"
    # The slow part, tracing, is replaced by the files of a finished export: the writing remains.
    # Each export is a fork of one process, which need not import PyTorch again.
    code = f"""
import os, signal, sys, time
from pathlib import Path
from tfanet.export import bundle as b
from tfanet.model.checkpoint import load_model
done, target = Path({str(bundle.path)!r}), {str(target)!r}
def write(work, *rest):
    for path in sorted(done.iterdir()):
        with open(work / path.name, "wb") as file:
            for start in range(0, path.stat().st_size, 65536):
                file.write(path.read_bytes()[start : start + 65536]); file.flush()
b._write = write
model = load_model({str(checkpoint)!r})
for attempt in map(int, sys.stdin):
    read, wrote = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(wrote, b"r")
        while True:
            b.export_bundle(model, target, overwrite=True)
            os.write(wrote, b"w")
    os.close(wrote)
    for _ in range(attempt + 1):
        assert os.read(read, 1), "the export ended"
    time.sleep(0.02 + 0.037 * attempt)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(read)
    print("killed", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for attempt in range(6):
            print(attempt, file=process.stdin, flush=True)
            assert process.stdout.readline() == "killed\n"
            assert target.exists() or attempt == 0
            if target.exists():
                Bundle.open(target)  # complete, with every checksum


@pytest.mark.full
def test_base_has_29_scan_nodes_and_fewer_than_3000_nodes():
    config = PRESETS["tfanet-base"]
    graph = export_image(TFANet(config).eval(), config.image_size)
    assert count_scan_nodes(graph) == 29
    assert len(graph.graph.node) < 3000
