"""One small model and its bundle for all tests; what becomes of tests that lack something built.

PyTorch is imported by the tests that need it.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from built import needing_what_is_built

import tfanet  # noqa: F401  (switches telemetry off before any test imports onnxruntime)

if TYPE_CHECKING:
    from tfanet.model.tfanet.network import TFANet
    from tfanet.runtime import Bundle


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with needing_what_is_built():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with needing_what_is_built():
        yield


@pytest.fixture(scope="session")
def model() -> TFANet:
    import torch
    from small_config import SMALL

    from tfanet.model.tfanet.network import TFANet

    torch.manual_seed(0)
    return TFANet(SMALL).eval()


@pytest.fixture(scope="session")
def checkpoint(model: TFANet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tfanet.model.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported once, into an empty folder: exporting takes most of the time of such tests."""
    from tfanet.export import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    folder.mkdir()
    return export_bundle(checkpoint, folder)
