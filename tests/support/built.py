"""What `make native` and `make ort-lowest` build, and what becomes of a test that lacks it.

It is skipped, with the command to run; but `make test` builds everything, so it sets
TFANET_REQUIRE_NATIVE, with which such a test fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tfanet.errors import MissingDependencyError

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "build" / "native"
LOWEST = ROOT / "build" / "ort-lowest"
RUNTIME_LIBRARY = ROOT / "runtime" / "lib" / "libtfanet_runtime.so"


def not_built(reason: str) -> NoReturn:
    """Ends a test that lacks something built."""
    if os.environ.get("TFANET_REQUIRE_NATIVE"):
        pytest.fail(f"{reason} (TFANET_REQUIRE_NATIVE is set)", pytrace=False)
    pytest.skip(reason)


@contextmanager
def needing_what_is_built() -> Iterator[None]:
    """Turns the errors of tfanet that ask for `make native` into the end of the test."""
    reason = ""
    try:
        yield
    except MissingDependencyError as error:
        reason = str(error)
        if "make native" not in reason:
            raise
    if reason:
        not_built(reason)


def need_native() -> Path:
    """The folder of the C++ build."""
    if not (NATIVE / "CMakeCache.txt").is_file():
        not_built("build/native is not there: run `make native`")
    return NATIVE


def need_runtime_library() -> Path:
    """libtfanet_runtime.so of the checkout."""
    if not RUNTIME_LIBRARY.is_file():
        name = RUNTIME_LIBRARY.relative_to(ROOT)
        not_built(f"{name} is not built: run `make native` and see its message")
    return RUNTIME_LIBRARY


def need_lowest_onnxruntime() -> Path:
    """The folder, for PYTHONPATH, of the lowest ONNX Runtime that is supported."""
    if not (LOWEST / "onnxruntime").is_dir():
        not_built("the lowest supported ONNX Runtime is not installed: run `make ort-lowest`")
    return LOWEST
