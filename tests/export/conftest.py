"""One small bundle for all tests of exports and engines; exporting takes most of their time."""

from __future__ import annotations

import shutil

import pytest

from tfanet.export.engines.build import Profile
from tfanet.export.engines.store import add_engine
from tfanet.runtime import Bundle


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
