"""Fuzz targets for half a minute each, under AddressSanitizer and UndefinedBehaviorSanitizer.

Where there is no libFuzzer, the driver in runtime/cpp/fuzz makes the inputs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tfanet

FUZZ = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "fuzz"
ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
SECONDS = 30


@pytest.fixture(scope="module")
def targets(build_native: Callable[..., Path]) -> Path:
    return build_native("fuzz", "-DTFANET_FUZZ=ON") / "runtime" / "cpp" / "fuzz"


@pytest.mark.full
@pytest.mark.parametrize("name", ["bundle", "tokenizer", "image"])
def test_no_input_crashes(name: str, targets: Path, tmp_path: Path) -> None:
    last = tmp_path / "last_input"
    result = subprocess.run(
        [targets / f"fuzz_{name}", f"-max_total_time={SECONDS}", FUZZ / "corpus" / name],
        env=os.environ | {"TFANET_TOKENIZER": str(ASSET), "FUZZ_LAST_INPUT": str(last)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{result.stdout}\ninput: {last.read_bytes()[:500]!r}"
