"""One small bundle for all tests of engines and precision; exporting takes most of their time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tfanet.config import TextConfig, TFANetConfig, preset
from tfanet.export import export_bundle
from tfanet.model import TFANet
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
def small_bundle(small_config: TFANetConfig, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = TFANet(small_config).eval()
    return export_bundle(model, tmp_path_factory.mktemp("small") / "bundle")
