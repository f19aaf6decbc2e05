"""Engines behind `Predictor`, on stand-ins for the GPU and the library.

The stand-in for CUDA has host memory in place of the device's, refuses any pointer that it did not
give out, and does the work of a stream only when that is waited for. The stand-in for TensorRT runs
an ONNX file through ONNX Runtime. Both have only names that the real modules have, see
`test_stand_ins_have_no_name_of_their_own`.
"""

from __future__ import annotations

import ctypes
import enum
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

OK, VERSION, SENTENCE = real_cuda.cudaError_t.cudaSuccess, "1.7.1.116", "the red circle"


class Cuda:
    """`cuda.bindings.runtime` with a GPU made of host memory."""

    for _name in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        locals()[_name] = getattr(real_cuda, _name)
    cudaStreamNonBlocking = real_cuda.cudaStreamNonBlocking
    cudaGetErrorString = staticmethod(real_cuda.cudaGetErrorString)

    def __init__(self, compute=(8, 9), limit=1 << 40):
        self._memory: dict[int, np.ndarray] = {}
        self._streams: dict[int, list] = {}
        self._graphs: dict[int, list] = {}
        self._capturing: dict[int, list] = {}
        self._compute, self._limit = compute, limit
        self._device, self._lock, self._next = threading.local(), threading.Lock(), 1000
        self.launches = self.captures = 0
        self.known: list[bytes] = []  # what contexts were told is compiled

    def _handle(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def cudaGetDeviceCount(self):
        return OK, 2

    def cudaDeviceGetAttribute(self, kind, index):
        return OK, self._compute[kind.name.endswith("Minor")]

    def cudaGetDeviceProperties(self, index):
        return OK, types.SimpleNamespace(name=b"a stand-in")

    def cudaGetDevice(self):
        return OK, getattr(self._device, "index", 0)

    def cudaSetDevice(self, index):
        self._device.index = index
        return (OK,)

    def _allocate(self, size):
        if sum(block.nbytes for block in list(self._memory.values())) + size > self._limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = np.full(size, 0xA5, np.uint8)
        self._memory[block.ctypes.data] = block
        return OK, block.ctypes.data

    cudaMalloc = cudaMallocHost = _allocate

    def _free(self, pointer):
        del self._memory[int(pointer)]
        return (OK,)

    cudaFree = cudaFreeHost = _free

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        handle = self._handle()
        self._streams[handle] = []
        return OK, handle

    def cudaStreamDestroy(self, stream):
        assert not self._streams.pop(stream)
        return (OK,)

    def push(self, stream, work):
        self._capturing.get(stream, self._streams[stream]).append(work)

    def cudaStreamSynchronize(self, stream):
        work, self._streams[stream] = self._streams[stream], []
        for step in work:
            step()
        return (OK,)

    def inside(self, pointer, count):
        assert any(
            start <= pointer and pointer + count <= start + block.nbytes
            for start, block in list(self._memory.items())
        ), "memory that CUDA never gave out"

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        self.inside(target, count)
        if kind != self.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            self.inside(source, count)
        self.push(stream, lambda: ctypes.memmove(target, source, count))
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        self._capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        handle = self._handle()
        self._graphs[handle] = self._capturing.pop(stream)
        self.captures += 1
        return OK, handle

    def cudaGraphInstantiate(self, graph, flags):
        handle = self._handle()
        self._graphs[handle] = self._graphs[graph]
        return OK, handle

    def cudaGraphLaunch(self, graph, stream):
        self._streams[stream].extend(self._graphs[graph])
        self.launches += 1
        return (OK,)

    def _destroy(self, graph):
        del self._graphs[graph]
        return (OK,)

    cudaGraphDestroy = cudaGraphExecDestroy = _destroy

    def held(self):
        return len(self._memory), len(self._streams), len(self._graphs)


class Context:
    """An execution context that reads and writes the addresses that it was given."""

    active = most_active = 0
    meeting: threading.Barrier | None = None  # where so many computations wait for each other

    def __init__(self, engine):
        self._engine, self._addresses, self._shapes = engine, {}, {}

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        assert low[0] <= shape[0] <= high[0]
        self._shapes[name] = shape
        return True

    def is_stream_capturable(self, stream):
        return self._engine.plan.get("capturable", True)

    def execute_async_v3(self, stream):
        if "fails" in self._engine.plan:
            self._engine.logger.log(ILogger.ERROR, self._engine.plan["fails"])
            return False
        shapes = dict(self._shapes)
        bindings.runtime.push(stream, lambda: self._compute(shapes))
        return True

    def _compute(self, shapes):
        with bindings.runtime._lock:
            Context.active += 1
            Context.most_active = max(Context.most_active, Context.active)
        feeds = {}
        for name, shape in shapes.items():
            dtype = self._engine.get_tensor_dtype(name)
            bindings.runtime.inside(self._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(
                self._addresses[name]
            )
            feeds[name] = np.frombuffer(memory, dtype).reshape(shape).copy()
        if Context.meeting is not None:
            Context.meeting.wait(3600)
        outputs = self._engine.session.run(None, feeds)
        for value, facts in zip(outputs, self._engine.session.get_outputs(), strict=True):
            bindings.runtime.inside(self._addresses[facts.name], value.nbytes)
            ctypes.memmove(self._addresses[facts.name], value.ctypes.data, value.nbytes)
        with bindings.runtime._lock:
            Context.active -= 1


class Engine:
    """Runs the ONNX file that a plan names."""

    def __init__(self, plan, logger):
        self.plan, self.logger = plan, logger
        self.session = onnxruntime.InferenceSession(plan["onnx"])
        self._inputs = self.session.get_inputs()
        self._all = {value.name: value for value in (*self._inputs, *self.session.get_outputs())}
        self.num_io_tensors = len(self._all)

    def get_tensor_name(self, index):
        return list(self._all)[index]

    def get_tensor_mode(self, name):
        known = {value.name for value in self._inputs}
        return TensorIOMode.INPUT if name in known else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return [-1 if isinstance(size, str) else size for size in self._all[name].shape]

    def get_tensor_dtype(self, name):
        return np.dtype(np.int64 if "int64" in self._all[name].type else np.float32)

    def get_tensor_profile_shape(self, name, index):
        rest = self.get_tensor_shape(name)[1:]
        return [(batch, *rest) for batch in self.plan["profile"]]

    def create_execution_context(self, config=None):
        assert config is None or isinstance(config, Config)
        return Context(self)

    def create_runtime_config(self):
        return Config()


class Config:
    """Settings of an RTX engine's contexts."""

    def create_runtime_cache(self):
        return Cache()

    def set_runtime_cache(self, cache):
        self._cache = cache

    def get_runtime_cache(self):
        return self._cache


class Cache:
    """What an RTX engine compiled."""

    def deserialize(self, blob):
        bindings.runtime.known.append(bytes(blob))
        return True

    def serialize(self):
        return b"compiled kernels"


class ILogger:
    """As in both libraries; 1 is an error."""

    ERROR = 1

    def __init__(self):
        pass


class Runtime:
    """Loads plans that are JSON."""

    engine_host_code_allowed = False

    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, blob):
        try:
            plan = json.loads(blob)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Magic tag does not match\nand more")
            return None
        if "refused" in plan or (plan.get("host_code") and not self.engine_host_code_allowed):
            self._logger.log(ILogger.ERROR, plan.get("refused", "host code is not allowed"))
            return None
        return Engine(plan, self._logger)


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


STAND_INS = {
    "Runtime": Runtime,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
    "IRuntimeConfig": Config,
    "IRuntimeCache": Cache,
    "ILogger": ILogger,
    "TensorIOMode": TensorIOMode,
}


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
