"""A small TFANet with random weights, exported once, a small dataset, and models made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfanet.calibration import Calibration, calibrate
from tfanet.calibration.measure.collect import open_model
from tfanet.calibration.measure.source import Source
from tfanet.data import make_shapes
from tfanet.model.config import TextConfig, TFANetConfig, preset
from tfanet.runtime import Bundle
from tfanet.runtime.bundle.read import FILES, MANIFEST, file_facts

CONFIG = replace(
    preset("tfanet-tiny"),
    name="small",
    dims=(8, 12, 16, 24),
    depths=(1, 1, 1, 1),
    text=TextConfig(width=16, layers=1, heads=2, intermediate=32),
    text_length=20,
    align_dim=8,
    decoder_dim=8,
    grid=2,
    cfsm=False,
    image_size=(64, 64),
)


@pytest.fixture(scope="session")
def config() -> TFANetConfig:
    return CONFIG


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The FP32 bundle; not to be changed."""
    import torch

    from tfanet.export import export_bundle
    from tfanet.model.tfanet import TFANet

    torch.manual_seed(0)
    model = TFANet(CONFIG).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):  # as after training: no two are the same
            torch.nn.init.uniform_(module.weight, 0.2, 3.0)
            torch.nn.init.normal_(module.bias)
    path = tmp_path_factory.mktemp("small") / "bundle"
    return export_bundle(model, path, function="none")


@pytest.fixture(scope="session")
def retrained(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same shape, every weight half as large again."""
    path = tmp_path_factory.mktemp("retrained") / "bundle"
    shutil.copytree(small.path, path)
    for name in ("image.onnx", "text.onnx"):
        model = onnx.load(path / name)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim > 1 and array.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(array * np.float32(1.5), tensor.name))
        onnx.save(model, path / name)
    files = {name: file_facts(path / name) for name in FILES}
    manifest = replace(small.manifest, files=files)
    (path / MANIFEST).write_text(manifest.to_json())
    return Bundle.open(path)


@pytest.fixture(scope="session")
def source(small: Bundle) -> Source:
    return Source.open(small)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=40, val=12, testA=0, testB=0, seed=3)
    return root


@pytest.fixture(scope="session")
def calibration(small: Bundle, shapes: Path) -> Calibration:
    return calibrate(small, shapes, "shapes", count=32)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    """A float32 model of opset 20 that passes the checker; the input "ids" is int64."""

    def value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name == "ids" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    return open_model(model).run(None, feeds)


@pytest.fixture
def tools() -> Any:
    """`make_model` and `run`, for tests that build a model by hand."""

    class Tools:
        make_model = staticmethod(make_model)
        run = staticmethod(run)

    return Tools
