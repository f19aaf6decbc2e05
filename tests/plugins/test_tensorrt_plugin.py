"""libtfanet_trt.so driven as TensorRT drives it (tensorrt_conformance*.cpp), and its results.

Without a GPU the plugins are linked with tensorrt_host_scan.cpp and tensorrt_host_ss2d.cpp in place
of the CUDA kernels, so that `enqueue` runs too, and everything under AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_scans
import pytest
import torch
from onnx import TensorProto, helper

from tfanet.errors import MissingDependencyError
from tfanet.plugins import ss2d_ref, trt_library_path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "plugins"
CSRC = ROOT / "plugins" / "csrc"
EXPORTS = CSRC / "tensorrt" / "exports.map"
OPTIONAL = ("D", "delta_bias", "z")
# nvinfer1::DataType, the element type, and how near y must be to the oracle.
TYPES = {
    "float32": (0, np.dtype(np.float32), 1e-5),
    "float16": (1, np.dtype(np.float16), 1e-3),
    "bfloat16": (7, helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16), 8e-3),
}


def first_with(name: str, folders: list[Path]) -> Path | None:
    return next((f for f in folders if (f / name).is_file()), None)


@pytest.fixture(scope="session")
def include() -> list[str]:
    """Options of the compiler for the headers of TensorRT and CUDA."""
    root = os.environ.get("TENSORRT_ROOT")
    system = ["/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include"]
    places = [f"{root}/include"] if root else [*system, "/usr/local/tensorrt/include"]
    tensorrt = first_with("NvInferRuntime.h", [Path(p) for p in places])
    cuda_home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    cuda = first_with("cuda_runtime_api.h", [Path(cuda_home) / "include", Path("/usr/include")])
    if tensorrt is None or cuda is None:
        missing = "TensorRT 10.9 or newer" if tensorrt is None else "CUDA"
        pytest.skip(
            f"no headers of {missing}: set TENSORRT_ROOT to a folder with include/NvInferRuntime.h "
            "(github.com/NVIDIA/TensorRT has them) and CUDA_HOME to the toolkit"
        )
    return ["-isystem", str(tensorrt), "-isystem", str(cuda)]


def compile_all(*commands: list[Any]) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++)")

    def run(command: list[Any]) -> None:
        done = subprocess.run([compiler, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))


@dataclass(frozen=True)
class Conformance:
    """The program and a library for it to drive."""

    program: Path
    library: Path

    def run(self, *arguments: Path) -> str:
        done = subprocess.run(
            [self.program, self.library, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-4000:])
        return done.stdout


PLUGINS = ("SelectiveScan", "SS2D")
PROGRAMS = {"SelectiveScan": "tensorrt_conformance.cpp", "SS2D": "tensorrt_conformance_ss2d.cpp"}


@pytest.fixture(scope="session")
def hosted(include: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conformance]:
    """The library over scans on the processor, and of each plugin the program that drives it."""
    folder = tmp_path_factory.mktemp("tensorrt")
    library = folder / "libtfanet_trt.so"
    conformance = {name: Conformance(folder / name, library) for name in PLUGINS}
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *include, "-I", CSRC / "cuda"]
    options += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    options += ["-Wno-unknown-pragmas", "-I", HERE]
    compile_all(
        [
            *options,
            *("-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,--version-script={EXPORTS}"),
            *sorted((CSRC / "tensorrt").glob("*.cpp")),
            *(CSRC / "cuda" / "ss2d_sizes.cpp", HERE / "tensorrt_host_scan.cpp"),
            *(HERE / "tensorrt_host_ss2d.cpp", "-o", library),
        ],
        *(
            [*options, HERE / PROGRAMS[name], "-o", conformance[name].program, "-ldl"]
            for name in PLUGINS
        ),
    )
    return conformance


@pytest.fixture(scope="session")
def on_host(hosted: dict[str, Conformance]) -> Conformance:
    return hosted["SelectiveScan"]


@pytest.fixture(scope="session")
def real_library(include: list[str]) -> Path:
    """Interfaces differ between major versions, so the library must be of the headers' one."""
    try:
        library = trt_library_path()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    built = ctypes.CDLL(str(library)).tfanet_tensorrt_major()
    version = (Path(include[1]) / "NvInferVersion.h").read_text()
    found = re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", version)
    assert found is not None
    if built != int(found[1]):
        pytest.skip(f"{library} is for TensorRT {built}, the headers are of {found[1]}")
    return library


def make_cases(path: Path, seed: int) -> list[tuple[np.ndarray, np.dtype, float]]:
    """Writes calls for the program; returns y of the oracle, its type and the tolerance."""
    rng = np.random.default_rng(seed)
    expected = []
    combinations = itertools.product(TYPES, (False, True), range(8), (False, True))
    with path.open("wb") as stream:
        for io, narrow, mask, softplus in combinations:
            if narrow and io == "float32":
                continue
            code, dtype, tolerance = TYPES[io]
            weight_code, weight_dtype, _ = TYPES[io if narrow else "float32"]
            groups = int(rng.integers(1, 4))
            scan = onnx_scans.Scan(
                batch=int(rng.integers(1, 3)),
                dim=groups * int(rng.integers(1, 4)),
                length=int(rng.integers(1, 150)),
                groups=groups,
                states=int(rng.choice([1, 2, 5, 16])),
                optional=tuple(n for i, n in enumerate(OPTIONAL) if mask >> i & 1),
                softplus=softplus,
            )
            arrays = {
                name: value.astype(weight_dtype if name in ("A", "D", "delta_bias") else dtype)
                for name, value in scan.arrays(int(rng.integers(1 << 30))).items()
            }
            sizes = (scan.batch, scan.dim, scan.length, scan.groups, scan.states)
            head = (mask, int(softplus), code, weight_code, *sizes)
            stream.write(np.array(head, np.int32).tobytes())
            for value in arrays.values():
                stream.write(np.ascontiguousarray(value).tobytes())
            wide = {name: value.astype(np.float64) for name, value in arrays.items()}
            expected.append((onnx_scans.oracle(wide, softplus), dtype, tolerance))
    return expected


def check_enqueue(conformance: Conformance, folder: Path, seed: int) -> None:
    expected = make_cases(folder / "cases", seed)
    conformance.run(folder / "cases", folder / "results")
    results = (folder / "results").read_bytes()
    assert len(expected) == 5 * 16
    at = 0
    for y, dtype, tolerance in expected:
        found = np.frombuffer(results, dtype, y.size, at).reshape(y.shape).astype(np.float64)
        at += y.size * dtype.itemsize
        assert onnx_scans.error(found, y) < tolerance, (y.shape, dtype)
    assert at == len(results)


def make_maps(path: Path, seed: int) -> list[tuple[torch.Tensor, float]]:
    """Writes calls of SS2D for the program; returns y of the oracle and the tolerance."""
    random = torch.Generator().manual_seed(seed)
    expected = []
    sizes = [(1, 5, 7, 9, 2, 1), (2, 17, 1, 20, 3, 2), (1, 3, 33, 18, 5, 4)]
    with path.open("wb") as stream:
        for (code, dtype, tolerance), size in itertools.product(TYPES.values(), sizes):
            batch, channels, height, width, rank, states = size
            shapes = [(batch, channels, height, width), (4, rank + 2 * states, channels)]
            shapes += [(4, channels, rank), (4, channels), (4 * channels, states), (4 * channels,)]
            x = [torch.randn(shape, generator=random) for shape in shapes]
            x[1], x[4] = x[1] / channels**0.5, -x[4].exp()
            u = x[0].numpy().astype(dtype)
            stream.write(np.array((code, *size), np.int32).tobytes() + u.tobytes())
            for value in x[1:]:
                stream.write(value.numpy().tobytes())
            wide = torch.from_numpy(u.astype(np.float64))
            expected.append((ss2d_ref(wide, *x[1:]), tolerance))
    return expected


def check_maps(conformance: Conformance, folder: Path, seed: int) -> None:
    expected = make_maps(folder / "cases", seed)
    conformance.run(folder / "cases", folder / "results")
    results = (folder / "results").read_bytes()
    at = 0
    for (y, tolerance), dtype in zip(
        expected, (d for _, d, _ in TYPES.values() for _ in range(3)), strict=True
    ):
        found = np.frombuffer(results, dtype, y.numel(), at).astype(np.float64)
        at += y.numel() * dtype.itemsize
        error = (torch.from_numpy(found).view(y.shape) - y).abs().max()
        assert error <= tolerance * y.abs().max(), (y.shape, dtype, float(error))
    assert at == len(results)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_virtual_method(hosted: dict[str, Conformance], plugin: str) -> None:
    told = hosted[plugin].run()
    count = r"\d{6}" if plugin == "SelectiveScan" else r"\d{4}"
    assert re.fullmatch(count + r" checks with TensorRT 1\d\.\d+ headers\n", told), told


def test_maps_on_the_processor(hosted: dict[str, Conformance], tmp_path: Path) -> None:
    check_maps(hosted["SS2D"], tmp_path, seed=1)


def test_enqueue_on_the_processor(on_host: Conformance, tmp_path: Path) -> None:
    check_enqueue(on_host, tmp_path, seed=1)


def test_library_exports_and_links_the_least(real_library: Path) -> None:
    linked = subprocess.run(["ldd", real_library], capture_output=True, text=True, check=True)
    names = {Path(line.split()[0]).name for line in linked.stdout.splitlines()}
    allowed = r"(linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt)\.so\.\d+"
    assert all(re.fullmatch(allowed, n) for n in names), names
    command = ["nm", "-D", "--defined-only", real_library]
    exported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[-1] for line in exported.splitlines()) == [
        "getCreators",
        "setLoggerFinder",
        "tfanet_tensorrt_major",
    ]


def test_every_virtual_method_of_the_library(on_host: Conformance, real_library: Path) -> None:
    assert "checks" in Conformance(on_host.program, real_library).run()


def test_enqueue_without_a_gpu_is_an_error(
    on_host: Conformance, real_library: Path, tmp_path: Path
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    make_cases(tmp_path / "cases", 2)
    command = [on_host.program, real_library, tmp_path / "cases", tmp_path / "results"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "logger: tfanet::SelectiveScan: " in done.stdout
    assert re.search("CUDA|driver|device", done.stdout), done.stdout


@pytest.mark.gpu
def test_enqueue_on_a_gpu(include: list[str], real_library: Path, tmp_path: Path) -> None:
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no CUDA device")
    cudart = Path(include[3]).parent / "lib64"
    options = ["-std=c++17", "-O1", "-DTFANET_ON_GPU", *include]
    links = ["-ldl", f"-L{cudart}", "-lcudart_static", "-lpthread", "-lrt"]
    found = {name: Conformance(tmp_path / name, real_library) for name in PLUGINS}
    compile_all(*([*options, HERE / PROGRAMS[n], "-o", found[n].program, *links] for n in PLUGINS))
    for conformance in found.values():
        conformance.run()
    check_enqueue(found["SelectiveScan"], tmp_path, seed=3)
    check_maps(found["SS2D"], tmp_path, seed=4)


# --- Which headers CMake takes --------------------------------------------------------------------

SCRIPT = """
include({headers})
tfanet_find_tensorrt_headers(found reason)
message("found [${{found}}] reason [${{reason}}]")
"""


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("#define NV_TENSORRT_MAJOR 10 //!< x\n#define NV_TENSORRT_MINOR 9\n", "found [{root}"),
        (
            "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
            "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n",
            "found [{root}",
        ),
        (
            "#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR 8\n",
            "is of TensorRT 10.8, 10.9",
        ),
        (
            "#define NV_TENSORRT_MAJOR 8\n#define NV_TENSORRT_MINOR 10\n",
            "is of TensorRT 8.10, 10.9",
        ),
        (None, "holds no include/NvInferRuntime.h"),
    ],
)
def test_headers_that_cmake_takes(tmp_path: Path, version: str | None, words: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    root = tmp_path / "root"
    (root / "include").mkdir(parents=True)
    if version is not None:
        (root / "include" / "NvInferRuntime.h").write_text("")
        (root / "include" / "NvInferVersion.h").write_text(version)
    script = tmp_path / "script.cmake"
    script.write_text(SCRIPT.format(headers=CSRC / "tensorrt" / "headers.cmake"))
    command = ["cmake", f"-DTENSORRT_ROOT={root}", "-P", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = " ".join((done.stdout + done.stderr).split())
    assert words.format(root=root) in told
    assert (done.returncode == 0) == (version is not None)
