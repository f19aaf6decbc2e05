"""The C library through ctypes, bundles small enough to make by hand, and a compiler."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ctypes import (  # fmt: skip
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_void_p,
)
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfanet.runtime import Predictor
from tfanet.runtime.bundle.read import file_facts

import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "runtime" / "cpp"
LIBRARY = ROOT / "runtime" / "lib" / "libtfanet_runtime.so"
STATUS = {
    0: "OK", -1: "INVALID_ARGUMENT", -2: "BAD_BUNDLE", -3: "BAD_IMAGE", -4: "BAD_TEXT",
    -5: "MISSING_DEPENDENCY", -6: "OUT_OF_MEMORY", -7: "BUSY", -8: "CLOSED", -9: "FAILED",
}  # fmt: skip
FORMATS = {"RGB": 1, "BGR": 2, "RGBA": 3, "BGRA": 4, "GREY": 5}
TOKENIZER = ("tokenizer", "tokenizer_file", "unicode", "python_text")  # its source files


def ort_library() -> Path:
    """The library inside the Python package of ONNX Runtime."""
    return next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


class Image(Structure):
    _fields_ = [
        ("size", c_size_t), ("pixels", c_void_p), ("width", c_int32), ("height", c_int32),
        ("stride", c_int64), ("format", c_int),
    ]  # fmt: skip


class Options(Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("threads", c_int32), ("cache", c_int32),
        ("onnxruntime", c_char_p), ("op_library", c_char_p), ("device", c_int32),
        ("tensorrt", c_char_p), ("plugin_library", c_char_p), ("host_code", c_char_p),
        ("digest", c_char_p),
    ]  # fmt: skip


class Info(Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("backend_version", c_char_p),
        ("op_library", c_char_p), ("bundle", c_char_p), ("model", c_char_p),
        ("image_width", c_int32), ("image_height", c_int32), ("text_length", c_int32),
        ("threshold", c_float), ("dynamic_batch", c_int32), ("engine", c_char_p),
        ("device", c_char_p), ("passed_over", c_char_p), ("min_batch", c_int32),
        ("max_batch", c_int32), ("digest", c_char_p), ("int8", c_char_p),
    ]  # fmt: skip


class Result(Structure):
    _fields_ = [
        ("size", c_size_t), ("width", c_int32), ("height", c_int32), ("mask", POINTER(c_uint8)),
        ("score", c_float), ("logits_width", c_int32), ("logits_height", c_int32),
        ("logits", POINTER(c_float)), ("preprocess_ms", c_double), ("text_ms", c_double),
        ("image_ms", c_double), ("postprocess_ms", c_double), ("total_ms", c_double),
    ]  # fmt: skip


CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_char_p)
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "version": (c_char_p, []),
    "status_name": (c_char_p, [c_int]),
    "error": (c_char_p, [c_void_p]),
    "open": (c_int, [c_char_p, c_void_p, POINTER(c_void_p)]),
    "close": (c_int, [c_void_p]),
    "get_info": (c_int, [c_void_p, c_void_p]),
    "tokenize": (c_int, [c_void_p, c_char_p, c_size_t, c_void_p, c_void_p, c_size_t, c_void_p]),
    "encode": (c_int, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "encode_tokens": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p]),
    "sentence_dropped": (c_size_t, [c_void_p]),
    "sentence_free": (None, [c_void_p]),
    "predict": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "predict_text": (c_int, [c_void_p, c_void_p, c_char_p, c_size_t, c_void_p]),
    "predict_batch": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p]),
    "predict_async": (c_int, [c_void_p, c_void_p, c_void_p, CALLBACK, c_void_p]),
    "preprocess": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
    "predict_tensors": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "prediction_get": (c_int, [c_void_p, c_void_p]),
    "prediction_free": (None, [c_void_p]),
}


class NativeError(Exception):
    """A status of the library other than OK, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUS[status]


def make_image(pixels: np.ndarray, kind: str, stride: int = 0) -> Image:
    """A view of an array (H, W) or (H, W, C); the array must outlive it."""
    height, width = pixels.shape[:2]
    return Image(ctypes.sizeof(Image), pixels.ctypes.data, width, height, stride, FORMATS[kind])


class Runtime:
    """One open bundle, with arrays in and out."""

    def __init__(self, api: SimpleNamespace, path: Path | str, **options: Any) -> None:
        self.api, self.handle = api, c_void_p()
        options.setdefault("onnxruntime", str(ort_library()))
        options.setdefault("threads", 1)
        encoded = {k: os.fsencode(v) if isinstance(v, str) else v for k, v in options.items()}
        self.options = Options(size=ctypes.sizeof(Options), **encoded)
        status = api.open(os.fsencode(path), byref(self.options), byref(self.handle))
        try:
            self.check(status)
        except NativeError:
            self.close()
            raise

    def check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.api.error(self.handle).decode())

    def close(self) -> None:
        self.check(self.api.close(self.handle))
        self.handle = c_void_p()

    def info(self) -> Info:
        info = Info(size=ctypes.sizeof(Info))
        self.check(self.api.get_info(self.handle, byref(info)))
        return info

    def tokenize(self, text: bytes) -> tuple[np.ndarray, np.ndarray, int]:
        length, count = self.info().text_length, c_size_t()
        ids, mask = np.zeros(length, np.int64), np.zeros(length, np.float32)
        self.check(
            self.api.tokenize(
                self.handle, text, len(text), ids.ctypes.data, mask.ctypes.data, length,
                byref(count),
            )
        )  # fmt: skip
        return ids, mask, count.value

    def encode(self, text: str | bytes) -> c_void_p:
        data, out = text.encode() if isinstance(text, str) else text, c_void_p()
        self.check(self.api.encode(self.handle, data, len(data), byref(out)))
        return out

    def predict(self, image: Image, text: str | c_void_p) -> SimpleNamespace:
        out = c_void_p()
        if isinstance(text, str):
            data = text.encode()
            status = self.api.predict_text(self.handle, byref(image), data, len(data), byref(out))
        else:
            status = self.api.predict(self.handle, byref(image), text, byref(out))
        self.check(status)
        return self.take(out)

    def take(self, prediction: c_void_p | int | None) -> SimpleNamespace:
        """The contents of a prediction, which is freed."""
        result = Result(size=ctypes.sizeof(Result))
        assert self.api.prediction_get(prediction, byref(result)) == 0
        mask = np.ctypeslib.as_array(result.mask, (result.height, result.width)).copy()
        shape = (result.logits_height, result.logits_width)
        logits = np.ctypeslib.as_array(result.logits, shape).copy()
        self.api.prediction_free(prediction)
        return SimpleNamespace(mask=mask, logits=logits, score=result.score, result=result)

    def preprocess(self, image: Image) -> np.ndarray:
        info = self.info()
        tensor = np.zeros((3, info.image_height, info.image_width), np.float32)
        self.check(self.api.preprocess(self.handle, byref(image), tensor.ctypes.data, tensor.size))
        return tensor


def load_api(path: Path) -> SimpleNamespace:
    """The functions of tfanet.h, without their prefix."""
    library = ctypes.CDLL(str(path))
    api = SimpleNamespace()
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, f"tfanet_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(api, name, function)
    return api


@pytest.fixture(scope="session")
def library() -> Path:
    if not LIBRARY.is_file():
        pytest.skip(f"{LIBRARY.relative_to(ROOT)} is not built: see the message of `make native`")
    return LIBRARY


@pytest.fixture(scope="session")
def api(library: Path) -> SimpleNamespace:
    return load_api(library)


@pytest.fixture(scope="session")
def image_of() -> Callable[..., Image]:
    return make_image


@pytest.fixture(scope="session")
def callback_type() -> Any:
    return CALLBACK


@pytest.fixture(scope="session")
def runtime_type() -> type[Runtime]:
    return Runtime


@pytest.fixture(scope="session")
def ort_path() -> str:
    return str(ort_library())


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


def by_hand() -> ModuleType:
    """tests/runtime/conftest.py, which makes bundles without the exporter."""
    path = ROOT / "tests" / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("bundles_by_hand", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle with a dynamic batch, not to be changed."""
    module = by_hand()
    return module.write_bundle(tmp_path_factory.mktemp("cpp") / "bundle", module.image_model())


@pytest.fixture(scope="session")
def scan_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph holds a bare SelectiveScan node, with a batch of 1."""
    module = by_hand()
    path = tmp_path_factory.mktemp("cpp") / "scan"
    return module.write_bundle(path, module.image_model(scan=True), dynamic_batch=False)


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose sentences have all of CLIP's 77 positions."""
    module: Any = by_hand()
    module.LENGTH = 77
    return module.write_bundle(tmp_path_factory.mktemp("cpp") / "long", module.image_model())


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
    build = ROOT / "build" / "native"
    if not (build / "CMakeCache.txt").is_file():
        pytest.skip("build/native is not there: run `make native`")
    prefix = tmp_path_factory.mktemp("sdk")
    command = ["cmake", "--install", str(build), "--component", "sdk", "--prefix", str(prefix)]
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
    cache = ROOT / "build" / "native" / "CMakeCache.txt"
    found = re.search(r"^TFANET_JSON_FOUND:PATH=(.*json/usr/include)$", cache.read_text(), re.M)
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
    cache = (ROOT / "build" / "native" / "CMakeCache.txt").read_text()
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
        for command in (configure, [*make, "--target", *targets[sanitizer]]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return folder / "runtime" / "cpp"

    return build
