"""C and C++ programs that use, and misuse, the library; once more under the sanitizers."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SOURCES = ["api_test.c", "api_test.cpp"]


def run(program: Path, *arguments: object, **variables: str) -> str:
    result = subprocess.run(
        [program, *map(str, arguments)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("source", SOURCES)
def test_program(
    source: str, compile_program: Callable, shared_bundle: Path, ort_path: str
) -> None:
    program = compile_program(HERE / source)
    assert "all as the header says" in run(program, shared_bundle, TFANET_ONNXRUNTIME=ort_path)


def test_every_kind_of_cpu_computes_the_same(compile_parts: Callable) -> None:
    """What is written for x86 gives the bits of what other machines run."""
    outputs = [
        run(compile_parts("print_portable.cpp", *flags, parts=("resample", "sha256")))
        for flags in (["-ffp-contract=off"], ["-ffp-contract=off", "-DTFANET_PORTABLE"])
    ]
    assert outputs[0] == outputs[1]
    texts = [line.split()[1] for line in outputs[0].splitlines() if line.startswith("text")]
    assert texts == [hashlib.sha256(b"a" * size).hexdigest() for size in range(301)]


@pytest.mark.full
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("source", SOURCES)
def test_program_under_sanitizers(
    source: str,
    sanitizer: str,
    compile_program: Callable,
    sanitized_library: Callable,
    shared_bundle: Path,
    ort_path: str,
) -> None:
    library = sanitized_library(sanitizer)
    program = compile_program(HERE / source, "-g", f"-fsanitize={sanitizer}", built=library)
    extra = ["no-limit"] if source.endswith(".c") else []
    output = run(
        program,
        shared_bundle,
        *extra,
        TFANET_ONNXRUNTIME=ort_path,
        TSAN_OPTIONS=f"suppressions={HERE / 'tsan.supp'} report_mutex_bugs=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert "all as the header says" in output
