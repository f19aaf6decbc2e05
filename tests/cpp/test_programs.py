"""C and C++ programs that use, and misuse, the library; once more under the sanitizers."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from c_library import ort_library

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SOURCES = ["api_test.c", "api_test.cpp"]


def run(*command: object, **variables: str) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(
        list(map(str, command)),
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_programs_under_ctest(sdk: Path, shared_bundle: Path, tmp_path: Path) -> None:
    settings = [f"-DCMAKE_PREFIX_PATH={sdk}", f"-DBUNDLE={shared_bundle}"]
    for command in (
        ["cmake", "-S", HERE, "-B", tmp_path, *settings],
        ["cmake", "--build", tmp_path],
        ["ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error"],
    ):
        output = run(*command, TFANET_ONNXRUNTIME=str(ort_library()))
    assert f"100% tests passed, 0 tests failed out of {len(SOURCES)}" in output


def test_library(sdk: Path) -> None:
    """It exports what the header declares, brings its own C++ runtime, and is small."""
    header = (sdk / "include" / "tfanet.h").read_text()
    library = next(sdk.rglob("libtfanet_runtime.so"))
    symbols = run("nm", "-D", "--defined-only", library).split()
    exported = {name.removesuffix("@@TFANET_1") for name in symbols if name.startswith("tfanet_")}
    assert exported == set(re.findall(r"^TFANET_API .*?(tfanet_\w+)\(", header, flags=re.M))
    needed = re.findall(r"NEEDED +(\S+)", run("objdump", "-p", library))
    assert all(name.startswith(("libc.", "libm.", "ld-linux")) for name in needed)
    assert library.stat().st_size < 2_100_000
    assert header.count("\n") <= 300


def test_memory_that_runs_out_at_every_place(
    compile_program: Callable, shared_bundle: Path
) -> None:
    """Each function tells of it at some place, and the program goes on."""
    program = compile_program(HERE / "memory_test.c")
    lines = run(program, shared_bundle, TFANET_ONNXRUNTIME=str(ort_library())).splitlines()
    assert lines.pop() == "all as the header says"
    told = dict(line.rsplit(" ", 1) for line in lines)
    assert {name for name, count in told.items() if count == "0"} <= {"tfanet_get_info"}


@pytest.mark.parametrize("component", ["sdk", "Unspecified"])
def test_installing_again_leaves_alone_what_is_mapped(
    component: str, library: Path, tmp_path: Path
) -> None:
    """A running program keeps the library that it has loaded: the new one is another file."""
    build = library.parents[2] / "build" / "native"
    install = ["cmake", "--install", build, "--component", component, "--prefix", tmp_path]
    run(*install)
    found = [path for path in tmp_path.rglob("*.so*") if not path.is_symlink()]
    assert any(path.name.startswith("libtfanet_runtime.so") for path in found)
    before = {path: (path.open("rb"), path.read_bytes()) for path in found}
    for path in found:
        os.utime(path, (0, 0))  # as if what was built had changed since
    run(*install)
    for path, (file, content) in before.items():
        with file:
            assert file.read() == content
            assert not os.path.samestat(os.fstat(file.fileno()), path.stat())


def test_every_kind_of_cpu_computes_the_same(compile_parts: Callable) -> None:
    """What is written for x86 gives the bits of what other machines run."""
    outputs = [
        run(
            compile_parts(
                "print_portable.cpp", *flags, parts=("resample", "sha256", "mask", "letterbox")
            )
        )
        for flags in (["-ffp-contract=off"], ["-ffp-contract=off", "-DTFANET_PORTABLE"])
    ]
    assert outputs[0] == outputs[1]
    texts = [line.split()[1] for line in outputs[0].splitlines() if line.startswith("text")]
    assert texts == [hashlib.sha256(b"a" * size).hexdigest() for size in range(301)]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("source", SOURCES)
def test_program_under_sanitizers(
    source: str,
    sanitizer: str,
    compile_program: Callable,
    sanitized: Callable,
    shared_bundle: Path,
) -> None:
    library = sanitized(sanitizer) / "libtfanet_runtime.so"
    program = compile_program(HERE / source, "-g", f"-fsanitize={sanitizer}", built=library)
    extra = ["no-limit"] if source.endswith(".c") else []
    output = run(
        program,
        shared_bundle,
        *extra,
        TFANET_ONNXRUNTIME=str(ort_library()),
        TSAN_OPTIONS=f"suppressions={HERE / 'tsan.supp'} report_mutex_bugs=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert "all as the header says" in output
