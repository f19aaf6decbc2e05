"""Fuzz targets for ten seconds each, under AddressSanitizer and UndefinedBehaviorSanitizer.

Where there is no libFuzzer, the driver in runtime/cpp/fuzz makes the inputs.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tfanet

FUZZ = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "fuzz"
ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
SECONDS = 10


@pytest.mark.parametrize("name", ["bundle", "tokenizer", "image"])
def test_no_input_crashes(name: str, sanitized: Callable[[str], Path], tmp_path: Path) -> None:
    last, found = tmp_path / "last_input", tmp_path / "found"
    found.mkdir()
    last.touch()
    target = sanitized("address,undefined") / "fuzz" / f"fuzz_{name}"
    result = subprocess.run(
        [target, f"-max_total_time={SECONDS}", found, FUZZ / "corpus" / name],
        cwd=tmp_path,  # libFuzzer leaves an input that crashes there
        env=os.environ | {"TFANET_TOKENIZER": str(ASSET), "FUZZ_LAST_INPUT": str(last)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{result.stdout}\ninput: {last.read_bytes()[:500]!r}"
    runs = re.search(r"(\d+) runs ", result.stdout)
    assert runs and int(runs[1]) > len(list((FUZZ / "corpus" / name).iterdir()))
