"""Engines behind `Predictor`, on stand-ins for the GPU and the library.

The stand-ins (tests/support/gpu_standins.py) have only names that the real modules have, see
`test_stand_ins_have_no_name_of_their_own`.
"""

from __future__ import annotations

import json
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tfanet
from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.backends.device import Device, DeviceError
from tfanet.runtime.backends.engine import EngineError, EngineGraph
from tfanet.runtime.bundle.read import file_facts

import onnxruntime

bindings = pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
from cuda.bindings import runtime as real_cuda  # noqa: E402
from gpu_standins import STAND_INS, Context, Cuda, ILogger, Runtime  # noqa: E402

VERSION, SENTENCE = "1.7.1.116", "the red circle"


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A machine with a GPU, TensorRT and TensorRT-RTX."""
    fake = Cuda()
    monkeypatch.setattr(bindings, "runtime", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Context, "most_active", 0)
    for name in ("tensorrt", "tensorrt_rtx"):
        module = types.ModuleType(name)
        vars(module).update(STAND_INS, __version__=VERSION, nptype=lambda dtype: dtype)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def add_engine(bundle):
    """Adds an engine to the bundle: stand-in plans of both graphs, and the record of the real."""

    def add(target="tensorrt-rtx", precision="fp16", profile=(1, 1, 4), plan=None, **record):
        manifest = Bundle.open(bundle).manifest
        name = record.pop("name", f"{target}-{precision}")
        files = {}
        for graph in ("text.onnx", "image.onnx"):
            files[graph] = f"{graph.split('.')[0]}.{name}.engine"
            content = {"onnx": str(bundle / graph), "profile": profile, **(plan or {})}
            (bundle / files[graph]).write_text(json.dumps(content))
        entry = {
            "name": name, "target": target, "precision": precision, "version": VERSION,
            "library": target.replace("-", "_"), "compute": [], "scan": "standard operators",
            "profile": dict(zip(("min", "opt", "max"), profile, strict=True)), "files": files,
        } | record  # fmt: skip
        facts = {file: file_facts(bundle / file) for file in files.values()}
        changed = replace(
            manifest, engines=[*manifest.engines, entry], files=manifest.files | facts
        )
        (bundle / "manifest.json").write_text(changed.to_json())
        return bundle

    return add


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def test_stand_ins_have_no_name_of_their_own():
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    own = {"Engine": {"plan", "logger", "session"}, "Context": {"active", "most_active", "meeting"}}
    for name, fake in STAND_INS.items():
        used = {n for n in vars(fake) if not n.startswith("_")} - own.get(fake.__name__, set())
        assert used <= set(dir(getattr(trt, name))), name
    used = {n for n in vars(Cuda) if n.startswith("cuda")}
    assert len(used) > 20 and used <= set(dir(real_cuda))


def test_engine_gives_the_mask_of_onnxruntime(cuda, add_engine):
    path = add_engine()
    engine, session = Predictor(path), Predictor(path, backend="onnxruntime-cpu")
    info = engine.info()
    assert (info["backend"], info["engine"]) == ("tensorrt-rtx", "tensorrt-rtx-fp16")
    assert info["device"] == "a stand-in" and list(info["passed_over"]) == ["tensorrt"]
    assert "`tfanet engine --bundle" in info["passed_over"]["tensorrt"]
    texts = ["the red circle", "a blue star", "left", "the big one", "right of it"]
    for got, wanted in zip(engine(picture(), texts), session(picture(), texts), strict=True):
        np.testing.assert_array_equal(got.logits, wanted.logits)
        np.testing.assert_array_equal(got.mask, wanted.mask)


def test_batches_change_back_and_forth(cuda, add_engine):
    path = add_engine()
    image, session = Predictor(path), Predictor(path, backend="onnxruntime-cpu")
    sentence = image.encode_text(SENTENCE)
    random = np.random.default_rng(1)
    for batch in (1, 1, 1, 4, 4, 1, 2, 2, 2, 1):
        tensor = random.standard_normal((batch, 3, 32, 48)).astype(np.float32)
        got = image.predict_tensors(tensor, sentence)
        np.testing.assert_array_equal(got, session.predict_tensors(tensor, sentence))
    assert cuda.captures == 3  # a second run of 1, of 4 and of 2
    assert cuda.launches == 5


def test_stream_that_cannot_be_captured(cuda, add_engine):
    path = add_engine(plan={"capturable": False})
    predictor = Predictor(path)
    masks = [predictor(picture(), SENTENCE).mask for _ in range(3)]
    assert all((mask == masks[0]).all() for mask in masks) and cuda.captures == 0


def test_many_callers_share_a_few_contexts(cuda, add_engine, monkeypatch):
    path = add_engine()
    predictor, session = Predictor(path), Predictor(path, backend="onnxruntime-cpu")
    wanted = [session(picture(i), SENTENCE).logits for i in range(24)]
    predictor.encode_text(SENTENCE)  # so that only image engines run below
    Context.most_active = 0
    monkeypatch.setattr(Context, "meeting", threading.Barrier(4))
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda i: predictor(picture(i), SENTENCE).logits, range(24)))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert Context.most_active == 4


def test_close_gives_everything_back(cuda, add_engine):
    path = add_engine()
    bundle = Bundle.open(path)
    record = bundle.manifest.engines[0]
    graph = EngineGraph(bundle.file(record["files"]["text.onnx"]), record)
    ids = np.ones((2, 8), np.int64)
    for _ in range(3):
        graph.run(None, {"token_ids": ids})
    assert all(cuda.held())
    graph.close()
    assert cuda.held() == (0, 0, 0)


def test_too_little_memory_on_the_gpu(cuda, add_engine):
    path = add_engine()
    cuda._limit = 20_000
    with pytest.raises(DeviceError, match=r"cudaErrorMemoryAllocation.*: use a smaller batch"):
        Predictor(path)(picture(), SENTENCE)


def test_rtx_keeps_what_it_compiled(cuda, add_engine, tmp_path):
    path = add_engine()
    predictor = Predictor(path)
    assert cuda.known == []
    predictor.close()
    assert len(list((tmp_path / "cache" / "tfanet").glob("*-8.9.rtxcache"))) == 2
    Predictor(path)
    assert cuda.known == [b"compiled kernels"] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.6.0.1"}, r"built by tensorrt_rtx 1\.6\.0\.1, here is 1\.7\.1\.116"),
        ({"compute": ["12.0"]}, r"for compute capability 12\.0, a stand-in has 8\.9: build it aga"),
        ({"plan": {"refused": "no creator for plugin X"}}, "load the plugin's library first"),
        ({"plan": {"refused": "out of memory"}}, "free memory on the GPU"),
        ({"plan": {"refused": "Version tag does not match"}}, "Version tag .*; build it again on"),
        ({"plan": {"host_code": True}}, "allow it by name"),
    ],
)  # fmt: skip
def test_engine_that_cannot_run_here(cuda, add_engine, change, words):
    path = add_engine(**change)
    with pytest.raises(EngineError, match=words) as caught:
        Predictor(path, backend="tensorrt-rtx")
    assert len(str(caught.value).splitlines()) == 1
    passed_over = Predictor(path).info()["passed_over"]
    assert passed_over["tensorrt-rtx-fp16"] == str(caught.value)


def test_engine_without_compute_wants_8_0(cuda, add_engine):
    cuda._compute = (7, 5)
    with pytest.raises(EngineError, match=r"8\.0 and later, a stand-in has 7\.5.*--compute 7\.5"):
        Predictor(add_engine(), backend="tensorrt-rtx-fp16")


def test_host_code_is_allowed_by_name_only(cuda, add_engine):
    path = add_engine(plan={"host_code": True})
    with pytest.raises(EngineError, match="host code"):
        Predictor(path, backend="tensorrt-rtx", host_code=["another"])
    allowed = Predictor(path, backend="tensorrt-rtx", host_code=["tensorrt-rtx-fp16"])
    assert allowed(picture(), SENTENCE).mask.shape == (40, 60)


def test_best_engine_comes_first(cuda, add_engine):
    for target, precision in (("tensorrt-rtx", "fp16"), ("tensorrt", "fp32"), ("tensorrt", "bf16")):
        path = add_engine(target, precision)
    assert Predictor(path).info()["engine"] == "tensorrt-bf16"
    assert Predictor(path, backend="tensorrt-fp32").info()["engine"] == "tensorrt-fp32"
    assert Predictor(path, backend="tensorrt-rtx").info()["engine"] == "tensorrt-rtx-fp16"
    with pytest.raises(InputError, match=r"'tensorrt-int8'.*tensorrt-rtx-fp16, tensorrt-fp32"):
        Predictor(path, backend="tensorrt-int8")


def test_altered_engine_never_reaches_the_library(cuda, add_engine, monkeypatch):
    path = add_engine()
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda *_: pytest.fail("was loaded"))
    plan = path / "image.tensorrt-rtx-fp16.engine"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="truncated or altered"):
        Predictor(path)
    plan.write_bytes(whole[:-1] + b" ")
    with pytest.raises(InputError, match="does not match its SHA-256"):
        Predictor(path)


def test_plan_that_is_none(cuda, add_engine):
    path = add_engine()
    record = Bundle.open(path).manifest.engines[0]
    plan = path / "garbage"
    plan.write_bytes(b"\0" * 100)
    with pytest.raises(EngineError, match="Magic tag does not match; build it again"):
        EngineGraph(plan, record)


def test_library_that_does_not_start(cuda, add_engine, monkeypatch):
    """TensorRT hands out an object then, which takes the process down in use."""

    def start(self, logger):
        logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")

    def crash(self, blob):
        pytest.fail("a runtime that did not start was used")

    monkeypatch.setattr(Runtime, "__init__", start)
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", crash)
    with pytest.raises(EngineError, match="initialization failure with error: 35; see nvidia-smi"):
        Predictor(add_engine(), backend="tensorrt-rtx")


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "'token_ids' is missing"),
        ({"token_ids": np.ones((1, 8), np.int32)}, r"int32 \(1, 8\), the engine takes int64"),
        ({"token_ids": np.ones((1, 9), np.int64)}, r"\(1, 9\), the engine takes int64 \('ba"),
        ({"token_ids": np.ones((5, 8), np.int64)}, "batch of 'token_ids' is 5.* takes 1 to 4"),
        ({"token_ids": np.ones((0, 8), np.int64)}, "is 0.* takes 1 to 4"),
        ({"token_ids": np.int64(3)}, r"int64 \(\)"),
    ],
)  # fmt: skip
def test_bad_inputs(cuda, add_engine, feeds, words):
    bundle = Bundle.open(add_engine())
    record = bundle.manifest.engines[0]
    graph = EngineGraph(bundle.file(record["files"]["text.onnx"]), record)
    with pytest.raises(InputError, match=words):
        graph.run(None, feeds)
    graph.run(None, {"token_ids": np.ones((2, 8), np.int64)})  # and goes on


def test_failure_while_running(cuda, add_engine):
    path = add_engine(plan={"fails": "an illegal access"})
    with pytest.raises(EngineError, match="failed to run: an illegal access"):
        Predictor(path)(picture(), SENTENCE)


class OnDevice:
    """An array "in GPU memory" with one of the protocols."""

    def __init__(self, array, protocol):
        self._array, self.shape = array, array.shape
        if protocol == "cai":
            self.__cuda_array_interface__ = array.__array_interface__ | {"stream": None}
        else:
            self.__dlpack_device__ = lambda: (2, 0)

    def __dlpack__(self, *, stream):
        assert stream > 1000  # one of ours
        return self._array.__dlpack__()


@pytest.mark.parametrize("protocol", ["cai", "dlpack"])
def test_image_in_the_memory_of_the_gpu(cuda, add_engine, protocol):
    predictor = Predictor(add_engine())
    sentence = predictor.encode_text(SENTENCE)
    tensor = np.random.default_rng(3).standard_normal((2, 3, 32, 48)).astype(np.float32)
    wanted = predictor.predict_tensors(tensor, sentence)
    got = predictor.predict_tensors(OnDevice(tensor, protocol), sentence)
    np.testing.assert_array_equal(got, wanted)
    turned = np.ascontiguousarray(tensor.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    with pytest.raises(InputError, match="make it contiguous"):
        predictor.predict_tensors(OnDevice(turned, protocol), sentence)
    with pytest.raises(InputError, match="float64"):
        predictor.predict_tensors(OnDevice(tensor.astype(np.float64), protocol), sentence)
    session = Predictor(predictor.bundle.path, backend="onnxruntime-cpu")
    with pytest.raises(InputError, match="OnDevice: onnxruntime-cpu takes NumPy arrays"):
        session.predict_tensors(OnDevice(tensor, protocol), sentence)


def test_device_that_is_not_there(cuda, add_engine):
    with pytest.raises(InputError, match="device is 2: this machine has GPUs 0 to 1"):
        Device.open(2)
    Predictor(add_engine(), device=1)(picture(), SENTENCE)
    assert cuda.cudaGetDevice()[1] == 0  # the caller's own is left as it was


def test_without_bindings_or_gpu(cuda, add_engine, monkeypatch):
    path = add_engine("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorrt"):
        Predictor(path, backend="tensorrt")
    none = real_cuda.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (none, None))
    with pytest.raises(MissingDependencyError, match="install an NVIDIA driver"):
        Predictor(path, backend="tensorrt")
    monkeypatch.delattr(bindings, "runtime")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match="pip install cuda-bindings"):
        Predictor(path, backend="tensorrt")
    info = Predictor(path).info()
    assert info["backend"] == "onnxruntime-cpu" and "cuda-bindings" in str(info["passed_over"])


def test_cuda_provider_that_is_not_there(shared_bundle: Path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime-gpu"):
        Predictor(shared_bundle, backend="onnxruntime-cuda")


def test_engines_need_no_torch():
    import subprocess

    code = "import sys, tfanet.runtime.backends.engine; print('torch' in sys.modules)"
    root = Path(tfanet.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "False"


def test_engine_whose_plugin_is_in_a_library(cuda, add_engine, monkeypatch, tmp_path):
    path = add_engine("tensorrt", plugin="library")
    monkeypatch.setattr("tfanet.plugins.libraries._FOLDER", tmp_path)
    with pytest.raises(MissingDependencyError, match=r"libtfanet_trt\.so has not been built"):
        Predictor(path, backend="tensorrt")
    passed_over = Predictor(path).info()["passed_over"]
    assert "libtfanet_trt.so has not been built" in passed_over["tensorrt-fp16"]

    calls = []
    monkeypatch.setattr(
        "tfanet.runtime.backends.engine.trt_library_path", lambda: tmp_path / "library"
    )
    monkeypatch.setattr(
        "tfanet.runtime.backends.engine.load_plugin_library", lambda trt, file: calls.append(file)
    )
    deserialize = Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        Runtime,
        "deserialize_cuda_engine",
        lambda self, plan: (calls.append("plan"), deserialize(self, plan))[1],
    )
    predictor = Predictor(path, backend="tensorrt")
    assert calls == [tmp_path / "library", "plan"] * 2  # both graphs, the library first
    assert predictor(picture(), SENTENCE).mask.shape == (40, 60)
