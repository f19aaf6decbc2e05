"""The C library, bundles made by hand, and a compiler."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built import need_native, need_runtime_library
from c_library import Runtime, load_api
from hand_made import image_model, write_bundle

from tfanet.runtime import Predictor
from tfanet.runtime.bundle.read import file_facts

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "runtime" / "cpp"
TOKENIZER = (  # its source files
    *("tokenizer", "tokenizer_bert", "tokenizer_clip", "tokenizer_file", "unicode", "python_text"),
)


@pytest.fixture(scope="session")
def library() -> Path:
    return need_runtime_library()


@pytest.fixture(scope="session")
def api(library: Path) -> SimpleNamespace:
    return load_api(library)


@pytest.fixture
def open_runtime(api: SimpleNamespace) -> Iterator[Callable[..., Runtime]]:
    """Opens bundles, and closes them after the test."""
    opened: list[Runtime] = []

    def open_one(path: Path | str, **options: Any) -> Runtime:
        opened.append(Runtime(api, path, **options))
        return opened[-1]

    yield open_one
    for runtime in opened:
        runtime.close()


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle with a dynamic batch, not to be changed."""
    return write_bundle(tmp_path_factory.mktemp("cpp") / "bundle", image_model())


@pytest.fixture(scope="session")
def scan_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph holds a bare SelectiveScan node, with a batch of 1."""
    path = tmp_path_factory.mktemp("cpp") / "scan"
    return write_bundle(path, image_model(scan=True), dynamic_batch=False)


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose sentences have all of CLIP's 77 positions."""
    path = tmp_path_factory.mktemp("cpp") / "long"
    return write_bundle(path, image_model(length=77), length=77)


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A good bundle of the test's own."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))


@pytest.fixture
def seal() -> Callable[[Path], None]:
    """Makes the manifest agree with files that a test has changed."""

    def update(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"] = {name: file_facts(path / name) for name in manifest["files"]}
        (path / "manifest.json").write_text(json.dumps(manifest))

    return update


@pytest.fixture(scope="session")
def python(shared_bundle: Path) -> Predictor:
    return Predictor(shared_bundle, threads=1)


@pytest.fixture(scope="session")
def sdk(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files for C and C++ projects are installed."""
    prefix = tmp_path_factory.mktemp("sdk")
    command = [
        "cmake",
        "--install",
        str(need_native()),
        "--component",
        "sdk",
        "--prefix",
        str(prefix),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return prefix


@pytest.fixture(scope="session")
def compile_program(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a C or C++ file against the installed library, with warnings as errors."""
    compilers = {".c": ["cc", "-std=c11", "-D_DEFAULT_SOURCE"], ".cpp": ["c++", "-std=c++17"]}

    def compile_one(source: Path, *flags: str, built: Path | None = None) -> Path:
        command, *standard = compilers[source.suffix]
        if shutil.which(command) is None:
            pytest.skip(f"{source.name} cannot be compiled: there is no `{command}`")
        folder = (built or next(sdk.rglob("libtfanet_runtime.so"))).parent
        program = tmp_path_factory.mktemp("program") / source.stem
        subprocess.run(
            [
                command, *standard, "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
                f"-I{sdk / 'include'}", str(source), "-o", str(program), f"-L{folder}",
                "-ltfanet_runtime", f"-Wl,-rpath,{folder}", "-pthread", *flags,
            ],
            check=True,
        )  # fmt: skip
        return program

    return compile_one


def json_headers() -> list[str]:
    """The compiler's option for nlohmann-json where CMake has fetched it."""
    cache = (need_native() / "CMakeCache.txt").read_text()
    found = re.search(r"^TFANET_JSON_FOUND:PATH=(.*json/usr/include)$", cache, re.M)
    return [f"-isystem{found[1]}"] if found else []


@pytest.fixture(scope="session")
def compile_parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a file of this folder with the sources that it tests from the inside."""

    def compile_one(
        source: str | Path,
        *flags: str | Path,
        parts: Sequence[str] = TOKENIZER,
        compiler: str = "c++",
    ) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"{source} cannot be compiled: there is no `{compiler}`")
        program = tmp_path_factory.mktemp("program") / Path(source).stem
        sources = [str(CPP / "src" / f"{part}.cpp") for part in parts]
        subprocess.run(
            [
                compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror",
                f"-I{CPP / 'include'}", f"-I{CPP / 'src'}", *json_headers(),
                str(Path(__file__).parent / source),
                *sources, "-o", str(program), *map(str, flags),
            ],
            check=True,
        )  # fmt: skip
        return program

    return compile_one


@pytest.fixture(scope="session")
def onnxruntime_headers(library: Path) -> str:
    """The folder of the headers that the libraries were built with."""
    cache = (need_native() / "CMakeCache.txt").read_text()
    found = re.search(r"TFANET_ONNXRUNTIME_HEADERS:INTERNAL=(.+)", cache)
    assert found, "build/native is not configured: run `make native`"
    return found[1]


@pytest.fixture(scope="session")
def sanitized(onnxruntime_headers: str) -> Callable[[str], Path]:
    """Builds the library, and with AddressSanitizer the fuzz targets, in a folder under build/."""
    settings = {"address,undefined": "-DTFANET_FUZZ=ON", "thread": "-DTFANET_SANITIZE=thread"}
    targets = {"address,undefined": ["tfanet_runtime", "fuzz"], "thread": ["tfanet_runtime"]}

    @functools.cache
    def build(sanitizer: str) -> Path:
        folder = ROOT / "build" / f"sanitize-{sanitizer.partition(',')[0]}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug",
            "-DTFANET_CUDA=OFF", f"-DONNXRUNTIME_INCLUDE_DIR={onnxruntime_headers}",
            settings[sanitizer],
        ]  # fmt: skip
        make = ["cmake", "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0)))]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may build it too
            for command in (configure, [*make, "--target", *targets[sanitizer]]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return folder / "runtime" / "cpp"

    return build
