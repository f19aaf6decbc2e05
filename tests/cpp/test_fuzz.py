"""Fuzz targets side by side for ten seconds, under AddressSanitizer and UndefinedBehaviorSanitizer.

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

CORPUS = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "fuzz" / "corpus"
ASSETS = Path(tfanet.__file__).parent / "assets"
NAMES = ["bundle", "tokenizer", "image"]
SECONDS = 10


@pytest.fixture(scope="module")
def outcomes(
    sanitized: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str, bytes]]:
    """By target: how it ended, what it printed, and its last input where the driver made it."""
    targets, folder = sanitized("address,undefined") / "fuzz", tmp_path_factory.mktemp("fuzz")
    running = {}
    for name in NAMES:
        found, last = folder / name, folder / f"{name}_last"
        found.mkdir()
        last.touch()
        running[name] = subprocess.Popen(
            [targets / f"fuzz_{name}", f"-max_total_time={SECONDS}", found, CORPUS / name],
            cwd=folder,  # libFuzzer leaves an input that crashes there
            env=os.environ | {"TFANET_ASSETS": str(ASSETS), "FUZZ_LAST_INPUT": str(last)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    printed = {name: process.communicate()[0] for name, process in running.items()}
    return {
        name: (process.returncode, printed[name], (folder / f"{name}_last").read_bytes())
        for name, process in running.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_input_crashes(name: str, outcomes: dict[str, tuple[int, str, bytes]]) -> None:
    status, printed, last = outcomes[name]
    assert status == 0, f"{printed}\ninput: {last[:500]!r}"
    runs = re.search(r"(\d+) runs ", printed)
    assert runs and int(runs[1]) >= len(list((CORPUS / name).iterdir()))
