"""The CUDA sources without a GPU: nvcc and NVRTC compile them, C++ and Python launch them alike."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.kernels import cuda, cuda_ss2d
from tfanet.plugins.kernels.geometry import launch_geometry
from tfanet.plugins.operands import SELECTIVE_SCAN

SOURCES = Path(__file__).resolve().parents[2] / "plugins" / "csrc" / "cuda"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the path")


def nvrtc_missing() -> str:
    try:
        cuda.architectures()
    except MissingDependencyError as error:
        return str(error)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(nvrtc_missing()), reason=nvrtc_missing() or "-")
# Of every kind one that matters, and N at its limits.
KERNELS = [
    cuda.ScanKernel("float32", "float32", 1, ("D", "delta_bias"), True),
    cuda.ScanKernel("float16", "float32", 1, ("D", "delta_bias"), True),
    cuda.ScanKernel("bfloat16", "float32", 1, ("D", "delta_bias", "z"), True),
    cuda.ScanKernel("float16", "float16", 16, ("D", "delta_bias", "z"), True),
    cuda.ScanKernel("float32", "float32", 64, (), False),
    cuda.ScanKernel("bfloat16", "bfloat16", 2, ("delta_bias",), False),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cuda._compile.cache_clear()
    return tmp_path / "tfanet" / "cuda"


def spills(log: str) -> dict[tuple[str, str], int]:
    """Bytes stored and loaded for want of registers, by kernel and architecture."""
    found = re.findall(
        r"entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill",
        log,
        re.DOTALL,
    )
    return {(name, arch): int(stores) + int(loads) for name, arch, stores, loads in found}


@needs_nvcc
@pytest.mark.parametrize(
    ("source", "kernels", "architectures", "spilt"),
    [
        # From 10.0 on, two-byte types keep two constants of the row in local memory.
        ("selective_scan_cuda.cu", 12, ARCHITECTURES, 16),
        ("ss2d_cuda.cu", 18, (90,), 0),
        # What stands in for TF32 on 7.5 lacks a few registers, and so do constants of scan_map
        # from 10.0 on.
        pytest.param("ss2d_cuda.cu", 18, ARCHITECTURES, 300, marks=pytest.mark.full),
    ],
)
def test_nvcc_compiles_for_every_architecture(
    tmp_path: Path, source: str, kernels: int, architectures: tuple[int, ...], spilt: int
) -> None:
    command = [NVCC, "-std=c++17", "-fatbin", "--threads=2", "-Werror=all-warnings", "-Xptxas=-v"]
    command += ["-Xcompiler=-Wall,-Wextra", "-o", str(tmp_path / "scan.fatbin")]
    listed = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = [a for a in architectures if f"compute_{a}\n" in listed]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    done = subprocess.run(
        [*command, str(SOURCES / source)],  # type: ignore[list-item]
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0 and "warning" not in log, log
    found = spills(log)
    assert len(known) >= min(len(architectures), 5) and len(found) == kernels * len(known)
    clean = range(80 if source == "ss2d_cuda.cu" else 75, 100)
    assert all(bytes_ == 0 for (_, arch), bytes_ in found.items() if int(arch) in clean), found
    assert all(bytes_ <= spilt for bytes_ in found.values()), found


LAUNCHER = """
#include <cstdio>
#include "selective_scan_cuda.h"
using namespace tfanet;
static float memory[64];
static void show(const char* name, const ScanCall& call) {
  const char* wrong = launch_selective_scan(call, nullptr);
  std::printf("%s: %s\\n", name, wrong != nullptr ? wrong : "ok");
}
int main() {
  ScanCall good{};
  good.u = good.delta = good.A = good.B = good.C = good.y = memory;
  good.batch = good.groups = good.states = 1;
  good.dim = 2;
  good.length = 3;
  show("good", good);
#define CHANGED(field, value) { ScanCall call = good; call.field = value; show(#field, call); }
  CHANGED(batch, 0)
  CHANGED(length, 0)
  CHANGED(length, -1)
  CHANGED(length, 1LL << 31)
  CHANGED(batch, 1LL << 30)
  CHANGED(groups, 3)
  CHANGED(groups, 0)
  CHANGED(states, 65)
  CHANGED(states, 0)
  CHANGED(io, static_cast<ScanType>(7))
  CHANGED(weight, ScanType::kFloat16)
  CHANGED(C, nullptr)
  CHANGED(z, reinterpret_cast<char*>(memory) + 2)
  CHANGED(D, reinterpret_cast<char*>(memory) + 1)
}
"""


@needs_nvcc
def test_the_launcher_checks_its_call_and_reports_a_missing_driver(tmp_path: Path) -> None:
    (tmp_path / "launch.cpp").write_text(LAUNCHER)
    command = [NVCC, "-std=c++17", "-arch=sm_80", f"-I{SOURCES}", "-o", str(tmp_path / "launch")]
    sources = [str(SOURCES / "selective_scan_cuda.cu"), str(tmp_path / "launch.cpp")]
    subprocess.run([*command, *sources], check=True)  # type: ignore[list-item]
    done = subprocess.run(
        [tmp_path / "launch"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    good, *others = done.stdout.splitlines()
    assert re.fullmatch(r"good: the kernel could not be launched: .* \(cudaError\w+\)", good)
    assert others == [
        "batch: ok",
        "length: ok",
        "length: a size is negative",
        "length: batch x dim or length is above 2^31 - 2^17",
        "batch: batch x dim or length is above 2^31 - 2^17",
        "groups: the groups of B do not divide dim",
        "groups: the groups of B do not divide dim",
        "states: N is not from 1 to 64 (on the GPU)",
        "states: N is not from 1 to 64 (on the GPU)",
        "io: an element type is not float32, float16 or bfloat16",
        "weight: A, D and delta_bias must be float32 or of the type of u",
        "C: an operand is missing",
        "z: an operand is not aligned to its element type",
        "D: a weight is not aligned to its element type",
    ]


@needs_nvrtc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.io}-{k.states}")
def test_ptx_has_the_parameters_that_are_passed(kernel: cuda.ScanKernel, tmp_path: Path) -> None:
    for arch in (75, 90, 120):
        code, name = cuda.ptx(*vars(kernel).values(), arch=arch)
        text = code.rstrip(b"\0").decode()
        assert f".target sm_{arch}\n" in text
        (entry,) = re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", text)
        assert entry[0] == name
        kinds = re.findall(r"\.param \.(\w+)", entry[1])
        assert kinds == ["u64"] * len(kernel.operands()) + ["u32"] * 4 + ["u64"]
        # u, delta, B, C and y (twice 16 bytes for 8 floats) are moved in vectors.
        vectors = 2 if kernel.io == "float32" and kernel.states > 1 else 1
        for access in ("ld.global.cs", "ld.global.nc", "st.global"):
            assert len(re.findall(rf"{re.escape(access)}\S*\.v4\.", text)) >= vectors, access
        assert not re.search(r"\b(atom|red|div\.\w+\.f32)\b", text)
        ptxas = shutil.which("ptxas")
        if ptxas:
            (tmp_path / "scan.ptx").write_text(text)
            output = ["-o", str(tmp_path / "scan.cubin"), str(tmp_path / "scan.ptx")]
            done = subprocess.run(
                [ptxas, "-v", f"-arch=sm_{arch}", *output], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            (bytes_,) = spills(done.stdout + done.stderr).values()
            assert bytes_ <= (0 if arch < 100 else 32)


@needs_nvrtc
@pytest.mark.parametrize(("io", "states", "arch"), [("float32", 0, 90), ("bfloat16", 1, 75)])
def test_the_kernels_of_a_2d_scan_take_the_same_parameters(io: str, states: int, arch: int) -> None:
    kernels = cuda_ss2d.SS2DKernels(io, states)
    text = cuda._compile(kernels, f"compute_{arch}").rstrip(b"\0").decode()
    entries = dict(re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", text))
    assert sorted(entries) == sorted(kernels.kernels)
    for parameters in entries.values():
        assert re.findall(r"\.param \.(\w+)", parameters) == ["u64"] * 8 + ["u32"] * 6
    assert ("mma.sync.aligned.m16n8k8" in text) == (arch >= 80)
    assert not re.search(r"\b(atom|red|div\.\w+\.f32)\b", text)


@needs_nvrtc
def test_code_is_kept_on_disk(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KERNELS[0]
    first = cuda._compile(kernel, "sm_90")
    assert first.startswith(b"\x7fELF")
    (kept,) = own_cache.iterdir()
    assert kept.read_bytes() == first and own_cache.stat().st_mode & 0o077 == 0

    def compiled_again(*_: Any, **__: Any) -> bytes:
        return b"again"

    monkeypatch.setattr(cuda, "_compile_now", compiled_again)
    cuda._compile.cache_clear()
    assert cuda._compile(kernel, "sm_90") == first
    assert cuda._compile(kernel, "compute_90") == b"again"
    assert cuda._compile(KERNELS[1], "sm_90") == b"again"
    monkeypatch.setattr(cuda, "_nvrtc_version", lambda: (99, 0))
    cuda._compile.cache_clear()
    assert cuda._compile(kernel, "sm_90") == b"again"
    assert len(list(own_cache.iterdir())) == 4


@needs_nvrtc
def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cuda._compile(KERNELS[0], "sm_80").startswith(b"\x7fELF")


@needs_nvrtc
def test_what_nvrtc_says_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda.CPP_TYPES, "float32", "no_such_type")
    with pytest.raises(MissingDependencyError, match=r"NVRTC 1\d\.\d+ does not compile.*no_such_t"):
        cuda._compile(KERNELS[0], "sm_90")
    with pytest.raises(InputError, match=r"arch is 10, expected one of 75, .*120"):
        cuda.ptx(*vars(KERNELS[1]).values(), arch=10)


@pytest.mark.parametrize(
    ("fields", "optional", "message"),
    [
        (("float64", "float64", 1), (), "u is float64, expected one of float32, float16"),
        (
            ("float16", "bfloat16", 1),
            (),
            "A is bfloat16, expected float32 or float16 as u; cast it",
        ),
        (("float32", "float32", 0), (), "A has N = 0, expected from 1 to 64"),
        (("float32", "float32", 65), (), "A has N = 65, expected from 1 to 64"),
        (("float32", "float32", 1), ("D", "E"), "optional names E, expected some of D, delta_bias"),
    ],
)
def test_kernels_that_there_are_not(
    fields: tuple[Any, ...], optional: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cuda.ScanKernel(*fields, optional, False)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 0, 5), "dim is 0, expected from 1"),
        ((1, 4, 2**31), f"length is {2**31}, expected from 1"),
        ((2**20, 2**12, 5), f"batch x dim is {2**32}, expected at most"),
    ],
)
def test_sizes_that_no_launch_takes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        launch_geometry(*sizes, "float32", 1)


def test_cpp_and_python_choose_the_same_launch(tmp_path: Path) -> None:
    source = """
    #include <cstdio>
    #include "scan_launch.h"
    int main() {
      for (long long n[4]; std::fread(n, sizeof n, 1, stdin) == 1;) {
        const auto x = tfanet::scan_launch(n[0], n[1], int(n[2]), int(n[3]));
        const long long out[] = {x.grid, x.lanes, x.rows};
        std::fwrite(out, sizeof out, 1, stdout);
      }
    }"""
    (tmp_path / "launch.cpp").write_text(source)
    program = tmp_path / "launch"
    subprocess.run(
        ["g++", "-std=c++17", f"-I{SOURCES}", str(tmp_path / "launch.cpp"), "-o", str(program)],
        check=True,
    )
    rows = [*range(1, 70), *(r + d for r in (256, 512, 1024, 4096, 8192) for d in (-1, 0, 1))]
    rows += [16384, 10**6, 2**31 - 2**17]
    lengths = [*range(1, 70), 127, 129, 225, 255, 257, 900, 1023, 1025, 3600, 14400, 10**6]
    lengths.append(2**31 - 2**17)
    calls = list(itertools.product(rows, lengths, ("float32", "float16"), (1, 2, 16)))
    numbers = [(r, n, 4 if io == "float32" else 2, s) for r, n, io, s in calls]
    done = subprocess.run(
        [program], input=np.array(numbers, np.int64).tobytes(), capture_output=True, check=True
    )
    expected = np.frombuffer(done.stdout, np.int64).reshape(-1, 3)
    for (r, n, io, s), (grid, lanes, block_rows) in zip(calls, expected.tolist(), strict=True):
        geometry = launch_geometry(1, r, n, io, s)
        assert geometry == ((grid, 1, 1), (lanes, block_rows, 1), 0), (r, n, io, s)
        assert lanes % 32 == 0 and lanes * block_rows <= 256 and block_rows <= 8
        assert grid * block_rows >= r > (grid - 1) * block_rows


class Driver:
    """The functions of cuda.bindings.driver that a launch calls, in the order of the calls."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            failed = name == self.fails
            status = SimpleNamespace(value=int(failed), name="CUDA_ERROR_X" if failed else "OK")
            return (status, f"result of {name}")

        function.__name__ = name
        return function


ADDRESSES = {name: 4096 * (i + 1) for i, name in enumerate((*SELECTIVE_SCAN.inputs, "y"))}


def launch(driver: Driver, monkeypatch: pytest.MonkeyPatch, arch: int = 90) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    monkeypatch.setattr(cuda, "architectures", lambda: (75, 90))
    monkeypatch.setattr(cuda, "_compile", lambda kernel, target: target.encode())
    cuda._context.cache_clear()
    cuda._load.cache_clear()
    try:
        cuda.enqueue(KERNELS[0], ADDRESSES, (2, 512, 100, 4), device=3, arch=arch, stream=77)
    finally:
        cuda._context.cache_clear()
        cuda._load.cache_clear()


def test_a_launch_passes_operands_sizes_and_y(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    launch(driver, monkeypatch)
    calls = dict(driver.calls)
    assert calls["cuLibraryLoadData"][0] == b"sm_90"
    assert calls["cuDeviceGet"] == (3,)
    names = [name for name, _ in driver.calls]
    assert names[-3:] == ["cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"]
    handle, *geometry, stream, (values, types), extra = calls["cuLaunchKernel"]
    assert handle == "result of cuLibraryGetKernel" and stream == 77 and extra == 0
    grid, block, shared = launch_geometry(2, 512, 100, "float32", 1)
    assert tuple(geometry) == (*grid, *block, shared)
    inputs = [ADDRESSES[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    assert values == (*inputs, 2, 512, 100, 4, ADDRESSES["y"])
    assert [t.__name__ for t in types] == ["c_void_p"] * 7 + ["c_int"] * 4 + ["c_void_p"]


def test_devices_older_and_newer_than_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    launch(driver, monkeypatch, arch=123)
    assert dict(driver.calls)["cuLibraryLoadData"][0] == b"compute_90"
    with pytest.raises(InputError, match=r"compute capability 6\.1, expected 7\.5 or newer"):
        launch(driver, monkeypatch, arch=61)


def test_an_error_of_the_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(fails="cuLaunchKernel")
    with pytest.raises(MissingDependencyError, match="cuLaunchKernel failed with CUDA_ERROR_X"):
        launch(driver, monkeypatch)
    assert driver.calls[-1][0] == "cuCtxPopCurrent"


def test_a_missing_nvrtc_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> None:
        raise RuntimeError("Failure finding libnvrtc.so.13:\n no such file\n")

    monkeypatch.setattr(cuda, "_nvrtc", lambda: SimpleNamespace(nvrtcVersion=version))
    cuda._nvrtc_version.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        cuda._nvrtc_version()
    assert str(caught.value) == (
        "selective_scan on CUDA needs NVRTC (Failure finding libnvrtc.so.13: no such file): "
        "pip install 'tfanet[cuda]'"
    )


def test_the_compute_capability_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=12,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
    )
    driver = Driver()
    driver.CUdevice_attribute = kinds  # type: ignore[attr-defined]
    # An attribute's number is its value here.
    driver.cuDeviceGetAttribute = lambda kind, _: (SimpleNamespace(value=0), kind)  # type: ignore[attr-defined]
    monkeypatch.setattr(cuda, "_driver", lambda: driver)
    assert cuda.compute_capability(3) == 121
    assert driver.calls == [("cuInit", (0,)), ("cuDeviceGet", (3,))]
    driver.fails = "cuInit"
    with pytest.raises(MissingDependencyError, match="cuInit failed with CUDA_ERROR_X"):
        cuda.compute_capability()


def test_a_missing_driver_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(_: int) -> None:
        raise RuntimeError("no libcuda.so.1\nfor you")

    monkeypatch.setattr(cuda, "_driver", lambda: SimpleNamespace(cuInit=init))
    with pytest.raises(MissingDependencyError) as caught:
        cuda.compute_capability()
    assert str(caught.value) == (
        "selective_scan on CUDA needs NVIDIA's driver (no libcuda.so.1 for you): install it, or "
        "name the compute capability to compile for"
    )


def test_missing_packages_name_the_extra() -> None:
    # In a process of its own, where cuda.bindings can't be imported and PyTorch is not.
    script = """
import sys
sys.modules["cuda"] = None
from tfanet.plugins.kernels import cuda, cuda_ss2d
try:
    cuda.ptx("float32", "float32", 1, (), False, 90)
except cuda.MissingDependencyError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(
        r"selective_scan on CUDA needs cuda-bindings \(.*\): pip install 'tfanet\[cuda\]'\n",
        done.stdout,
    )
