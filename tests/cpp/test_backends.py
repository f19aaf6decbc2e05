"""Backends on a GPU, with stand-ins for CUDA, TensorRT and ONNX Runtime's providers (standins/).

Which backend is chosen, and in what words one that cannot run is refused, is what Python says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from c_library import ort_library

from tfanet.errors import TfanetError
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.backends.choose import BACKENDS
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import check_record
from tfanet.runtime.bundle.read import file_facts

import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CPP = ROOT / "runtime" / "cpp"
VERSION = "10.9.0.34"
GPU = Device(0, "8.9", "a stand-in")
CUDA, TENSORRT = "CUDAExecutionProvider ", "TensorrtExecutionProvider "
RTX = "NvTensorRTRTXExecutionProvider "


@dataclass(frozen=True)
class Machine:
    """A machine with a GPU and TensorRT: where the libraries lie, and programs linked with them."""

    folder: Path
    test: Path
    print: Path
    onnxruntime: str

    def run(self, program: Path, *arguments: object, **variables: str) -> str:
        known = os.environ | {
            "LD_LIBRARY_PATH": str(self.folder), "TFANET_ONNXRUNTIME": self.onnxruntime,
        }  # fmt: skip
        done = subprocess.run(
            [program, *map(str, arguments)],
            env=known | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def open(self, bundle: Path, backend: str, *more: object, **variables: str) -> tuple[str, ...]:
        """The status, and the error; or facts and then who was passed over, line by line."""
        lines = self.run(self.print, bundle, backend, *more, **variables).splitlines()
        return tuple(lines)


@pytest.fixture(scope="session")
def make_machine(
    onnxruntime_headers: str,
    compile_program: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Machine]:
    """Compiles the stand-ins and the programs, to lie beside a copy of the runtime's library."""

    def make(runtime: Path, *more: str) -> Machine:
        folder = tmp_path_factory.mktemp("machine")
        for name in ("libtfanet_runtime.so", "libtfanet_runtime.so.1"):
            shutil.copy(runtime, folder / name)
        cuda, engines = folder / "libcuda.so.1", folder / "libtfanet_backend_tensorrt.so"
        for source, built, flags in (
            ("cuda", cuda, ["-Wl,-soname,libcuda.so.1"]),
            ("engine_library", engines, [f"-I{CPP / 'src'}", str(cuda)]),
            ("onnxruntime", folder / "onnxruntime.so", [f"-isystem{onnxruntime_headers}", "-ldl"]),
        ):
            path = HERE / "standins" / f"{source}.cpp"
            subprocess.run(
                [
                    "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
                    str(path), "-o", str(built), *flags, *more,
                ],
                check=True,
            )  # fmt: skip
        shutil.copy(engines, folder / "libtfanet_backend_tensorrt_rtx.so")
        flags = [f"-I{HERE / 'standins'}", str(cuda), *more]
        library = folder / "libtfanet_runtime.so"
        return Machine(
            folder,
            compile_program(HERE / "backend_test.cpp", *flags, built=library),
            compile_program(HERE / "print_backend.cpp", *more, built=library),
            str(ort_library()),
        )

    return make


@pytest.fixture(scope="session")
def machine(make_machine: Callable[..., Machine], sdk: Path) -> Machine:
    return make_machine(next(sdk.rglob("libtfanet_runtime.so")).resolve())


@pytest.fixture
def add_engine(bundle: Path) -> Callable[..., Path]:
    """Adds an engine of the stand-in to the bundle, with the record of a real one."""

    def add(
        target: str = "tensorrt", precision: str = "fp16", plan: str = "", **record: Any
    ) -> Path:
        manifest = json.loads((bundle / "manifest.json").read_text())
        name = record.pop("name", f"{target}-{precision}")
        files = {}
        for graph, batches in (("text.onnx", "1 4"), ("image.onnx", "1 4")):
            kind = graph.removesuffix(".onnx")
            files[graph] = f"{kind}.{name}.engine"
            (bundle / files[graph]).write_text(f"standin {kind} {batches} {plan}")
            manifest["files"][files[graph]] = file_facts(bundle / files[graph])
        manifest["engines"].append(
            {
                "name": name, "target": target, "precision": precision, "version": VERSION,
                "library": target.replace("-", "_"), "compute": [], "scan": "", "flags": [],
                "profile": {"min": 1, "opt": 1, "max": 4}, "plugin": None, "files": files,
            } | record
        )  # fmt: skip
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return add


def test_engines(machine: Machine, add_engine: Callable[..., Path]) -> None:
    """What backend_test.cpp says: results, memory and streams, threads, failures, closing."""
    assert machine.run(machine.test, add_engine(), "tensorrt") == "all as the header says\n"


@pytest.mark.full
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_engines_under_sanitizers(
    sanitizer: str,
    make_machine: Callable[..., Machine],
    sanitized: Callable[[str], Path],
    add_engine: Callable[..., Path],
) -> None:
    library = sanitized(sanitizer) / "libtfanet_runtime.so"
    machine = make_machine(library, "-g", f"-fsanitize={sanitizer}")
    output = machine.run(
        machine.test,
        add_engine(),
        "tensorrt",
        TSAN_OPTIONS=f"suppressions={HERE / 'tsan.supp'} report_mutex_bugs=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert "all as the header says" in output


def test_engine_whose_launches_cannot_be_captured(
    machine: Machine, add_engine: Callable[..., Path]
) -> None:
    assert machine.open(add_engine(plan="uncapturable"), "auto")[0] == "OK"


@pytest.fixture(scope="session")
def tensorrt_headers() -> list[str]:
    """Options of the compiler for the headers of TensorRT and CUDA."""
    root, cuda = os.environ.get("TENSORRT_ROOT"), os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [Path(root or "/usr/local/tensorrt") / "include", Path(cuda) / "include"]
    for folder, name in zip(folders, ("NvInferRuntime.h", "cuda_runtime_api.h"), strict=True):
        if not (folder / name).is_file():
            pytest.skip(f"{folder} has no {name}: set TENSORRT_ROOT and CUDA_HOME")
    return [f"-isystem{folder}" for folder in folders]


def test_tensorrt_itself(
    machine: Machine, tensorrt_headers: list[str], add_engine: Callable[..., Path], tmp_path: Path
) -> None:
    """With the real backend: what it says where TensorRT is missing, or another library."""
    real = replace(machine, folder=tmp_path)
    for name in ("libtfanet_runtime.so.1", "libcuda.so.1"):
        shutil.copy(machine.folder / name, tmp_path)
    source, built = CPP / "tensorrt" / "tensorrt.cpp", tmp_path / "libtfanet_backend_tensorrt.so"
    subprocess.run(
        [
            "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", str(source),
            "-o", str(built), f"-I{CPP / 'src'}", *tensorrt_headers, "-Wl,--no-undefined", "-ldl",
        ],
        check=True,
    )  # fmt: skip
    path = add_engine()
    for library, words in (
        ("/no/such/libnvinfer.so", "/no/such/libnvinfer.so: cannot open shared object file"),
        (machine.folder / "libcuda.so.1", "undefined symbol: createInferRuntime_INTERNAL"),
    ):
        status, text = real.open(path, "tensorrt", 0, "-", "-", library)
        assert status == "MISSING_DEPENDENCY" and words in text
        assert text.startswith("TensorRT cannot be loaded (") and "options.tensorrt" in text


def test_names_are_those_of_python(machine: Machine, add_engine: Callable[..., Path]) -> None:
    """And two more, for providers of ONNX Runtime that Python does not offer."""
    path = add_engine("tensorrt-rtx")
    status, text = machine.open(path, "gpu")
    assert status == "INVALID_ARGUMENT"
    with pytest.raises(TfanetError) as expected:
        Predictor(path, backend="gpu")
    more = "onnxruntime-tensorrt, onnxruntime-tensorrt-rtx, "
    assert text == str(expected.value).replace("onnxruntime-cuda", f"{more}onnxruntime-cuda")
    table = re.findall(r"^\| `([\w-]+)` \|", (CPP / "README.md").read_text(), re.M)
    assert [name for name in table if name in BACKENDS] == list(BACKENDS)
    listed = text.split("choose auto, ")[1].split(", or an engine")[0]
    assert sorted(table) == sorted(listed.split(", "))


def test_best_engine_comes_first(machine: Machine, add_engine: Callable[..., Path]) -> None:
    for target, precision in (("tensorrt-rtx", "fp16"), ("tensorrt", "fp32"), ("tensorrt", "bf16")):
        path = add_engine(target, precision)
    for backend, engine in (
        ("auto", "tensorrt-bf16"),
        ("tensorrt", "tensorrt-bf16"),
        ("tensorrt-fp32", "tensorrt-fp32"),
        ("tensorrt-rtx", "tensorrt-rtx-fp16"),
    ):
        target = engine.rsplit("-", 1)[0]
        assert machine.open(path, backend) == ("OK", f"{target} {engine} 1 4 a stand-in")
    cpu = machine.open(path, "onnxruntime-cpu")
    assert cpu == ("OK", "onnxruntime-cpu - 1 1024 -")


def passed_over(lines: tuple[str, ...]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in lines[2:])


def test_reasons_without_any_engine(machine: Machine, bundle: Path) -> None:
    if CUDA.strip() in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    lines = machine.open(bundle, "auto")
    assert lines[:2] == ("OK", "onnxruntime-cpu - 1 1024 -")
    expected = Predictor(bundle).info()["passed_over"]
    found = passed_over(lines)
    assert list(found) == list(expected)
    for name in ("tensorrt", "tensorrt-rtx"):
        assert found[name] == expected[name]
        assert machine.open(bundle, name) == ("MISSING_DEPENDENCY", expected[name])
    # Up to what to do about it, which here is no matter of pip alone.
    own, pythons = found["onnxruntime-cuda"], expected["onnxruntime-cuda"]
    assert own.split(": ")[0] == pythons.split(": ")[0]
    assert "name the library of a build that has it" in own


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.16.1.2"},
        {"version": "10.16.1.2", "target": "tensorrt-rtx", "precision": "int8"},
        {"compute": ["12.0"]},
        {"compute": ["8.0", "12.0"]},
        {"flags": ["REFIT", "STRIP_PLAN"]},
    ],
)
def test_engine_of_another_version_or_gpu(
    change: dict[str, Any], machine: Machine, add_engine: Callable[..., Path]
) -> None:
    path = add_engine(**change)
    record = Bundle.open(path).manifest.engines[0]
    with pytest.raises(TfanetError) as expected:
        check_record(record, GPU, VERSION)
    for backend in (record["target"], record["name"]):
        assert machine.open(path, backend) == ("BAD_BUNDLE", str(expected.value))
    assert passed_over(machine.open(path, "auto"))[record["name"]] == str(expected.value)


def test_rtx_engine_without_compute_wants_8_0(
    machine: Machine, add_engine: Callable[..., Path]
) -> None:
    path = add_engine("tensorrt-rtx")
    with pytest.raises(TfanetError) as expected:
        check_record(Bundle.open(path).manifest.engines[0], Device(0, "7.5", GPU.name), VERSION)
    refused = machine.open(path, "tensorrt-rtx", TFANET_STANDIN_COMPUTE="75")
    assert refused == ("BAD_BUNDLE", str(expected.value))
    assert machine.open(path, "tensorrt-rtx")[0] == "OK"


@pytest.mark.parametrize(
    ("plan", "status", "words"),
    [
        ("refused=no_creator_for_X", "BAD_BUNDLE", "cannot be loaded: no creator for X; load the"),
        (
            "refused=out_of_memory",
            "OUT_OF_MEMORY",
            "out of memory; free memory on the GPU, or build",
        ),
        ("refused=Version_tag", "BAD_BUNDLE", "Version tag; build it again on this machine with"),
        ("host-code", "BAD_BUNDLE", "host code is not allowed; it carries code for the CPU; allow"),
        ("no-context=why", "FAILED", "gives no execution context: why; build it again"),
        ("fails=an_illegal_access", "FAILED", "failed to run: an illegal access; build it again"),
        ("empty", "BAD_BUNDLE", "has no inputs: build it again"),
        ("open-height", "BAD_BUNDLE", "which is open beyond the batch: build it again"),
    ],
)
def test_engine_that_cannot_run(
    plan: str, status: str, words: str, machine: Machine, add_engine: Callable[..., Path]
) -> None:
    found, text = machine.open(add_engine(plan=plan), "tensorrt")
    assert found == status and words in text
    assert ".tensorrt-fp16.engine (engine tensorrt-fp16)" in text


def test_host_code_is_allowed_by_name_only(
    machine: Machine, add_engine: Callable[..., Path]
) -> None:
    path = add_engine(plan="host-code")
    assert machine.open(path, "tensorrt", 0, "another")[0] == "BAD_BUNDLE"
    assert machine.open(path, "tensorrt", 0, "tensorrt-fp16")[0] == "OK"


def test_plan_that_is_none(
    machine: Machine, add_engine: Callable[..., Path], seal: Callable[[Path], None]
) -> None:
    path = add_engine()
    plan = path / "image.tensorrt-fp16.engine"
    for content in (b"", b"\0" * 100, plan.read_bytes()[:9]):
        plan.write_bytes(content)
        seal(path)
        status, text = machine.open(path, "tensorrt")
        assert status == "BAD_BUNDLE" and "Magic tag does not match; build it again" in text


def test_engine_of_another_shape(
    machine: Machine, add_engine: Callable[..., Path], seal: Callable[[Path], None]
) -> None:
    path = add_engine()
    files = [path / f"{kind}.tensorrt-fp16.engine" for kind in ("text", "image")]
    files[0].write_bytes(files[1].read_bytes())
    seal(path)
    status, text = machine.open(path, "tensorrt")
    assert status == "BAD_BUNDLE" and "text.onnx: 'token_ids' has shape None, expected" in text


def test_altered_engine(machine: Machine, add_engine: Callable[..., Path]) -> None:
    path = add_engine()
    plan = path / "image.tensorrt-fp16.engine"
    plan.write_bytes(plan.read_bytes()[:-1] + b"_")
    for backend in ("auto", "onnxruntime-cpu"):
        status, text = machine.open(path, backend)
        assert status == "BAD_BUNDLE" and "does not match its SHA-256" in text


def test_gpus_that_are_not_there(machine: Machine, add_engine: Callable[..., Path]) -> None:
    path = add_engine()
    missing = "device is 2: this machine has GPUs 0 to 1"
    for backend in ("auto", "tensorrt"):
        assert machine.open(path, backend, 2) == ("INVALID_ARGUMENT", missing)
        assert machine.open(path, backend, -1)[0] == "INVALID_ARGUMENT"
    assert machine.open(path, "tensorrt", 1)[0] == "OK"
    none = {"TFANET_STANDIN_DEVICES": "0"}
    assert machine.open(path, "tensorrt", **none) == (
        "MISSING_DEPENDENCY",
        "no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE): use a machine with an NVIDIA "
        "GPU",
    )
    assert "NVIDIA GPU" in passed_over(machine.open(path, "auto", **none))["tensorrt-fp16"]


def test_libraries_that_are_not_there(
    machine: Machine, add_engine: Callable[..., Path], tmp_path: Path
) -> None:
    path = add_engine()
    bare = replace(machine, folder=tmp_path)
    for name in ("libtfanet_runtime.so.1", "libcuda.so.1"):
        shutil.copy(machine.folder / name, tmp_path)

    def reason() -> str:
        status, text = bare.open(
            path,
            "tensorrt",
        )
        assert status == "MISSING_DEPENDENCY"
        return text

    assert "libtfanet_backend_tensorrt.so does not lie beside" in reason()
    assert "-DTENSORRT_ROOT=DIR" in reason()
    (tmp_path / "libtfanet_backend_tensorrt.so").write_text("no library")
    assert "libtfanet_backend_tensorrt.so cannot be loaded (" in reason()
    shutil.copy(machine.folder / "libtfanet_backend_tensorrt.so", tmp_path)
    status, text = bare.open(path, "tensorrt", 0, "-", "-", "/missing/libnvinfer.so.10")
    assert status == "MISSING_DEPENDENCY"
    assert text.startswith("TensorRT cannot be loaded (no such file): install it, and the NVIDIA")
    assert bare.open(path, "tensorrt", TFANET_TENSORRT="missing") == (status, text)
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    assert "an NVIDIA driver" in reason()


def test_plugin_library(machine: Machine, add_engine: Callable[..., Path], tmp_path: Path) -> None:
    path = add_engine(plan="needs-plugin", plugin="library")
    status, text = machine.open(path, "tensorrt")
    assert status == "MISSING_DEPENDENCY"
    assert "libtfanet_trt.so does not lie beside libtfanet_runtime.so: build it with" in text
    assert "libtfanet_trt.so does not" in passed_over(machine.open(path, "auto"))["tensorrt-fp16"]

    def library(name: str, code: str) -> Path:
        built = tmp_path / name
        (tmp_path / "plugins.c").write_text(code)
        command = ["cc", "-shared", "-fPIC", str(tmp_path / "plugins.c"), "-o", str(built)]
        subprocess.run(command, check=True)
        return built

    for name, code, status, words in (
        ("good.so", "int tfanet_tensorrt_major() { return 10; }", "OK", "tensorrt"),
        ("old.so", "int tfanet_tensorrt_major() { return 8; }", "BAD_BUNDLE",
         f"is for TensorRT 8, here is {VERSION}: build it again with the headers"),
        ("other.so", "int another() { return 10; }", "BAD_BUNDLE", "other.so cannot be loaded ("),
        ("refused.so", "int tfanet_tensorrt_major() { return 10; }", "BAD_BUNDLE",
         f"refused.so is refused by tensorrt {VERSION}: build it again"),
    ):  # fmt: skip
        lines = machine.open(path, "tensorrt", 0, "-", library(name, code))
        assert lines[0] == status and words in lines[1]
    missing = machine.open(path, "tensorrt", 0, "-", "/no/such/library.so")
    assert missing[0] == "MISSING_DEPENDENCY" and "/no/such/library.so does not exist" in missing[1]


@pytest.fixture
def with_providers(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Machine, Path]]:
    """The machine with an ONNX Runtime that claims to have providers, and what it is told."""

    def make(providers: str) -> tuple[Machine, Path]:
        monkeypatch.setenv("TFANET_STANDIN_ONNXRUNTIME", machine.onnxruntime)
        monkeypatch.setenv("TFANET_STANDIN_PROVIDERS", providers)
        monkeypatch.setenv("TFANET_STANDIN_LOG", str(tmp_path / "log"))
        library = str(machine.folder / "onnxruntime.so")
        return replace(machine, onnxruntime=library), tmp_path / "log"

    return make


@pytest.mark.parametrize(
    ("backend", "providers", "told"),
    [
        ("onnxruntime-cuda", CUDA, ["CUDA device_id=1"]),
        ("onnxruntime-tensorrt", TENSORRT + CUDA, ["TensorRT device_id=1", "CUDA device_id=1"]),
        ("onnxruntime-tensorrt", TENSORRT, ["TensorRT device_id=1"]),
        ("onnxruntime-tensorrt-rtx", RTX + CUDA, ["NvTensorRtRtx device_id=1", "CUDA device_id=1"]),
    ],
)
def test_provider_of_onnxruntime(
    backend: str,
    providers: str,
    told: list[str],
    with_providers: Callable[..., tuple[Machine, Path]],
    bundle: Path,
) -> None:
    machine, log = with_providers(providers)
    assert machine.open(bundle, backend, 1) == ("OK", f"{backend} - 1 1024 a stand-in")
    one = ["memory Cuda 1", f"tfanet.ss2d_as_parts={providers.split()[0]}", *told]
    assert log.read_text().splitlines() == 2 * one  # of both graphs


def test_memory_of_the_gpu_with_a_provider(
    with_providers: Callable[..., tuple[Machine, Path]], bundle: Path
) -> None:
    machine, _ = with_providers(CUDA)
    assert machine.run(machine.test, bundle, "onnxruntime-cuda") == "all as the header says\n"


def test_provider_that_does_not_start(
    with_providers: Callable[..., tuple[Machine, Path]], bundle: Path
) -> None:
    machine, _ = with_providers(CUDA)
    status, text = machine.open(bundle, "onnxruntime-cuda", TFANET_STANDIN_BROKEN="1")
    assert status == "MISSING_DEPENDENCY"
    assert text == (
        "onnxruntime's CUDAExecutionProvider does not start on GPU 0 (libcudnn.so.9: cannot open "
        "shared object file): see nvidia-smi, and whether CUDA and cuDNN are of the versions that "
        "this onnxruntime wants"
    )
    lines = machine.open(bundle, "auto", TFANET_STANDIN_BROKEN="1")
    assert lines[1].startswith("onnxruntime-cpu") and passed_over(lines)["onnxruntime-cuda"] == text
    for backend in ("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"):
        status, text = machine.open(bundle, backend)
        assert status == "MISSING_DEPENDENCY" and "ExecutionProvider: name the library" in text


def test_auto_takes_cuda_and_leaves_providers_that_build_engines(
    with_providers: Callable[..., tuple[Machine, Path]], bundle: Path
) -> None:
    machine, _ = with_providers(TENSORRT + RTX + CUDA)
    lines = machine.open(bundle, "auto")
    assert lines[1] == "onnxruntime-cuda - 1 1024 a stand-in"
    assert list(passed_over(lines)) == ["tensorrt", "tensorrt-rtx"]
