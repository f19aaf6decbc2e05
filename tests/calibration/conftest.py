"""A small TFANet with random weights, exported once, and a small dataset."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_config import SMALL

from tfanet.calibration import Calibration, calibrate
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.data import make_shapes
from tfanet.model.tfanet.config import TFANetConfig
from tfanet.runtime import Bundle
from tfanet.runtime.bundle.read import FILES, MANIFEST, file_facts

CONFIG = replace(SMALL, name="small", text_length=20, cfsm=False)


@pytest.fixture(scope="session")
def config() -> TFANetConfig:
    return CONFIG


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The FP32 bundle; not to be changed."""
    import torch

    from tfanet.export import export_bundle
    from tfanet.model.tfanet.network import TFANet

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
def prepared(small: Bundle) -> PreparedBundle:
    return PreparedBundle.open(small)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=40, val=12, testA=0, testB=0, seed=3)
    return root


@pytest.fixture(scope="session")
def calibration(small: Bundle, shapes: Path) -> Calibration:
    return calibrate(small, shapes, "shapes", count=32)
