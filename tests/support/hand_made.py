"""Bundles small enough to make by hand, without the exporter."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tfanet
from tfanet.runtime.bundle.contract import (
    LETTERBOX,
    Postprocessing,
    Preprocessing,
    Tokenization,
)
from tfanet.runtime.bundle.read import FILES, SCHEMA_VERSION, Manifest, file_facts

TOKENIZER = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
WORD_PIECES = TOKENIZER.with_name("bert_tokenizer.json")
LENGTH, WIDTH, SIZE = 8, 4, (32, 48)


Values = Sequence[tuple[str, int, list[Any]]]


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    constants: Mapping[str, np.ndarray],
    domain: str | None = None,
) -> onnx.ModelProto:
    def value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(
        nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs], initializers
    )
    opsets = [helper.make_opsetid("", 20)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def text_model(length: int = LENGTH) -> onnx.ModelProto:
    """Each token becomes a row of a small table; the sentence is the mean of its tokens."""
    table = np.random.default_rng(0).standard_normal((49408, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["word_features"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["sentence_feature"], keepdims=0),
    ]
    return _model(
        nodes,
        [("token_ids", TensorProto.INT64, ["batch", length])],
        [
            ("word_features", TensorProto.FLOAT, ["batch", WIDTH, length]),
            ("sentence_feature", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        {"table": table, "axis": np.array([1], np.int64)},
    )


def image_model(
    scan: bool = False,
    length: int = LENGTH,
    *,
    takes: Sequence[str] = ("word_features", "sentence_feature", "word_mask"),
    half: bool = False,
    no_target: bool = False,
    instances: int = 0,
    alignment: bool = True,
) -> onnx.ModelProto:
    """Red minus blue plus what the sentence says; with `scan`, through a bare SelectiveScan node.

    Args:
        takes: what it takes of the sentence, word_features among it. half: masks at half the size.
        no_target: give that too. instances: how many to give, the last two of them alike but for
            their alignment, which is given too if `alignment`.
    """
    height, width = SIZE
    batch: Any = 1 if scan else "batch"
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {
        "weight": np.array([2.0, 0.0, -2.0], np.float32).reshape(1, 3, 1, 1),
        "one": np.array([1], np.int64),
        "last_two": np.array([1, 2], np.int64),
    }
    outputs: list[tuple[str, int, list[Any]]] = []

    def node(op: str, inputs: str, output: str, **more: Any) -> None:
        nodes.append(helper.make_node(op, inputs.split(), [output], **more))

    def give(name: str, *shape: Any) -> None:
        outputs.append((name, TensorProto.FLOAT, [batch, *shape]))

    words = "word_features"
    if "word_mask" in takes:
        node("Unsqueeze", "word_mask one", "mask")
        node("Mul", "word_features mask", "masked")
        words = "masked"
    node("ReduceMean", f"{words} last_two", "word", keepdims=1)
    both = "word"
    if "sentence_feature" in takes:
        node("ReduceMean", "sentence_feature one", "whole", keepdims=1)
        node("Unsqueeze", "whole one", "whole3")
        node("Add", "word whole3", "both")
        both = "both"
    node("Unsqueeze", f"{both} one", "both4")
    picture, size = "image", SIZE
    if half:
        picture, size = "smaller", (height // 2, width // 2)
        node("AveragePool", "image", picture, kernel_shape=[2, 2], strides=[2, 2])
    node("Conv", f"{picture} weight", "plane")
    node("Add", "plane both4", "sum" if scan else "mask_logit")
    give("mask_logit", 1, *size)
    if scan:
        constants |= {
            "flat": np.array([0, 1, height * width], np.int64),
            "full": np.array([0, 1, height, width], np.int64),
            "decay": -np.ones((1, 1), np.float32),
            "gain": np.ones((1, 1, 1, height * width), np.float32),
        }
        node("Reshape", "sum flat", "u")
        node("SelectiveScan", "u u decay gain gain", "y", domain="tfanet", delta_softplus=1)
        node("Reshape", "y full", "mask_logit")
    if no_target:
        constants["picture_axes"] = np.array([1, 2, 3], np.int64)
        constants["pair"] = np.array([-1, 1], np.int64)
        node("ReduceMean", "image picture_axes", "light", keepdims=1)
        constants["strongly"] = np.array(20, np.float32)
        node("Mul", "light strongly", "lightness")
        node("Add", "lightness both4", "doubt")
        node("Reshape", "doubt pair", "no_target_logit")
        give("no_target_logit", 1)
    if instances:
        filters = np.random.default_rng(1).standard_normal((instances, 3, 1, 1)).astype(np.float32)
        filters[-1] = filters[-2]
        constants |= {"filters": filters, "plane_axes": np.array([2, 3], np.int64)}
        node("Conv", f"{picture} filters", "planes")
        node("Add", "planes both4", "instance_logits")
        node("ReduceMean", "planes plane_axes", "mean", keepdims=0)
        node("Sigmoid", "mean", "relevance")
        give("instance_logits", instances, *size)
        give("relevance", instances)
        if alignment:
            constants["tempers"] = np.arange(1, instances + 1, dtype=np.float32)[:, None]
            node("ReduceMean", f"{words} one", "each", keepdims=1)
            node("Mul", "each tempers", "each_for_all")
            node("Softmax", "each_for_all", "alignment", axis=2)
            give("alignment", instances, length)
    shapes = {
        "image": [3, height, width],
        "word_features": [WIDTH, length],
        "sentence_feature": [WIDTH],
        "word_mask": [length],
    }
    return _model(
        nodes,
        [(name, TensorProto.FLOAT, [batch, *shapes[name]]) for name in ("image", *takes)],
        outputs,
        constants,
        "tfanet" if scan else None,
    )


ROLES = {
    "mask_logit": "mask",
    "no_target_logit": "no_target",
    "relevance": "relevance",
    "instance_logits": "instances",
    "alignment": "alignment",
}
STRETCHED = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BOXED = replace(STRETCHED, resize=LETTERBOX, padding=(124, 116, 104))
LOGITS, PROBABILITIES = Postprocessing("logit", 0.0), Postprocessing("probability", 0.35)


def _values(values: Any) -> list[dict[str, Any]]:
    """Names and shapes of a graph's inputs or outputs, as a manifest lists them."""
    return [
        {
            "name": value.name,
            "shape": [
                "batch" if not at else axis.dim_value
                for at, axis in enumerate(value.type.tensor_type.shape.dim)
            ],
        }
        for value in values
    ]


def manifest_of(
    path: Path,
    text_graph: onnx.ModelProto | None = None,
    image_graph: onnx.ModelProto | None = None,
    **changes: Any,
) -> Manifest:
    """The manifest of a folder with the files of these graphs; `changes` are of its fields."""
    text = text_model() if text_graph is None else text_graph
    image = image_model() if image_graph is None else image_graph
    length = text.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    roles = [{"role": ROLES[value.name]} for value in image.graph.output]
    facts = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "tfanet", "version": "test"},
        "model": {"family": "tfanet", "preset": "by-hand", "source": "checkpoint", "config": {}},
        "inputs": {
            "text.onnx": _values(text.graph.input),
            "image.onnx": _values(image.graph.input),
        },
        "outputs": {
            "text.onnx": _values(text.graph.output),
            "image.onnx": [
                value | role for value, role in zip(_values(image.graph.output), roles, strict=True)
            ],
        },
        "preprocessing": STRETCHED,
        "text": Tokenization(length, pad_id=49407, sos_id=49406, eos_id=49407),
        "postprocessing": LOGITS,
        "scan": {},
        "precision": "fp32",
        "dynamic_batch": True,
        "versions": {},
        "files": {name: file_facts(path / name) for name in FILES},
        "engines": [],
        "parity": {},
    }
    return Manifest(**{**facts, **changes})


def write_bundle(
    path: Path,
    image: onnx.ModelProto,
    dynamic_batch: bool = True,
    length: int = LENGTH,
    tokenizer: Path = TOKENIZER,
    **changes: Any,
) -> Path:
    """A bundle in a new folder; `changes` are of its manifest's fields."""
    path.mkdir()
    text = text_model(length)
    onnx.save(text, path / "text.onnx")
    onnx.save(image, path / "image.onnx")
    shutil.copyfile(tokenizer, path / "tokenizer.json")
    manifest = manifest_of(path, text, image, dynamic_batch=dynamic_batch, **changes)
    (path / "manifest.json").write_text(manifest.to_json())
    return path


def as_version_1(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the writer of version 1 would have written of a manifest that says no more."""
    old = copy.deepcopy(dict(manifest))
    old |= {"schema_version": 1, "threshold": old.pop("postprocessing")["threshold"]}
    for output in old["outputs"]["image.onnx"]:
        del output["role"]
    del old["model"]["family"], old["preprocessing"]["padding"]
    del old["text"]["tokenizer"], old["text"]["truncation"]
    return old
