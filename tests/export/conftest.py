"""One small bundle for all tests of exports and engines; exporting takes most of their time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tfanet.export import export_bundle
from tfanet.export.engines.build import Profile
from tfanet.export.engines.store import add_engine
from tfanet.model.checkpoint import save_checkpoint
from tfanet.model.config import TextConfig, TFANetConfig, preset
from tfanet.model.tfanet import TFANet
from tfanet.runtime import Bundle


@pytest.fixture(scope="session")
def small_config() -> TFANetConfig:
    return replace(
        preset("tfanet-tiny"),
        dims=(8, 12, 16, 24),
        depths=(1, 1, 1, 1),
        text=TextConfig(width=16, layers=1, heads=2, intermediate=32),
        text_length=8,
        align_dim=8,
        decoder_dim=8,
        grid=2,
        image_size=(64, 64),
    )


@pytest.fixture(scope="session")
def model(small_config: TFANetConfig) -> TFANet:
    torch.manual_seed(0)
    return TFANet(small_config).eval()


@pytest.fixture(scope="session")
def checkpoint(model: TFANet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="session")
def with_engine(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with an FP16 engine, its decoder in FP32."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed", exc_type=Exception)
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(bundle.path, folder)
    return add_engine(
        folder,
        target="tensorrt-rtx",
        precision="fp16",
        profile=Profile(1, 1, 2),
        keep=["decoder.*"],
    )
