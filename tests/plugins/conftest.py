"""What the tests of the operators share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfanet.plugins import ort_library_path


@pytest.fixture(scope="session")
def library() -> Path:
    """libtfanet_ort.so."""
    return ort_library_path()
