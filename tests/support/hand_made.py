"""Bundles small enough to make by hand, without the exporter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tfanet
from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing, Tokenization
from tfanet.runtime.bundle.read import FILES, SCHEMA_VERSION, Manifest, file_facts

TOKENIZER = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
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


def image_model(scan: bool = False, length: int = LENGTH) -> onnx.ModelProto:
    """Red minus blue plus the masked mean word; with `scan`, through a bare SelectiveScan node."""
    height, width = SIZE
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["plane"]),
        helper.make_node("Unsqueeze", ["word_mask", "one"], ["mask"]),
        helper.make_node("Mul", ["word_features", "mask"], ["masked"]),
        helper.make_node("ReduceMean", ["masked", "last_two"], ["word"], keepdims=1),
        helper.make_node("ReduceMean", ["sentence_feature", "one"], ["whole"], keepdims=1),
        helper.make_node("Add", ["word", "whole3"], ["both"]),
        helper.make_node("Unsqueeze", ["whole", "one"], ["whole3"]),
        helper.make_node("Unsqueeze", ["both", "one"], ["both4"]),
        helper.make_node("Add", ["plane", "both4"], ["sum" if scan else "mask_logit"]),
    ]
    nodes[5], nodes[6] = nodes[6], nodes[5]
    constants: dict[str, np.ndarray] = {
        "weight": np.array([2.0, 0.0, -2.0], np.float32).reshape(1, 3, 1, 1),
        "one": np.array([1], np.int64),
        "last_two": np.array([1, 2], np.int64),
    }
    if scan:
        constants |= {
            "flat": np.array([0, 1, height * width], np.int64),
            "full": np.array([0, 1, height, width], np.int64),
            "decay": -np.ones((1, 1), np.float32),
            "gain": np.ones((1, 1, 1, height * width), np.float32),
        }
        nodes += [
            helper.make_node("Reshape", ["sum", "flat"], ["u"]),
            helper.make_node(
                "SelectiveScan", ["u", "u", "decay", "gain", "gain"], ["y"],
                domain="tfanet", delta_softplus=1,
            ),
            helper.make_node("Reshape", ["y", "full"], ["mask_logit"]),
        ]  # fmt: skip
    batch: Any = 1 if scan else "batch"
    return _model(
        nodes,
        [
            ("image", TensorProto.FLOAT, [batch, 3, height, width]),
            ("word_features", TensorProto.FLOAT, [batch, WIDTH, length]),
            ("sentence_feature", TensorProto.FLOAT, [batch, WIDTH]),
            ("word_mask", TensorProto.FLOAT, [batch, length]),
        ],
        [("mask_logit", TensorProto.FLOAT, [batch, 1, height, width])],
        constants,
        "tfanet" if scan else None,
    )


def manifest_of(path: Path, dynamic_batch: bool = True, length: int = LENGTH) -> Manifest:
    features = [
        {"name": "word_features", "shape": ["batch", WIDTH, length]},
        {"name": "sentence_feature", "shape": ["batch", WIDTH]},
    ]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool={"name": "tfanet", "version": "test"},
        model={"family": "tfanet", "preset": "by-hand", "source": "checkpoint", "config": {}},
        inputs={
            "text.onnx": [{"name": "token_ids", "shape": ["batch", length]}],
            "image.onnx": [
                {"name": "image", "shape": ["batch", 3, *SIZE]},
                *features,
                {"name": "word_mask", "shape": ["batch", length]},
            ],
        },
        outputs={
            "text.onnx": features,
            "image.onnx": [{"name": "mask_logit", "shape": ["batch", 1, *SIZE], "role": "mask"}],
        },
        preprocessing=Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        text=Tokenization(length, pad_id=49407, sos_id=49406, eos_id=49407),
        postprocessing=Postprocessing("logit", 0.0),
        scan={},
        precision="fp32",
        dynamic_batch=dynamic_batch,
        versions={},
        files={name: file_facts(path / name) for name in FILES},
        engines=[],
        parity={},
    )  # fmt: skip


def write_bundle(
    path: Path, image: onnx.ModelProto, dynamic_batch: bool = True, length: int = LENGTH
) -> Path:
    path.mkdir()
    onnx.save(text_model(length), path / "text.onnx")
    onnx.save(image, path / "image.onnx")
    shutil.copyfile(TOKENIZER, path / "tokenizer.json")
    (path / "manifest.json").write_text(manifest_of(path, dynamic_batch, length).to_json())
    return path
