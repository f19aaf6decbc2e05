"""Stand-ins for a GPU and TensorRT, under the names that the real modules have.

CUDA has host memory in place of the device's, refuses any pointer that it did not give out, and
does the work of a stream only when that is waited for. TensorRT runs an ONNX file through ONNX
Runtime. Needs cuda-bindings, for its enumerations and to check the names against.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
import types

import cuda.bindings as bindings
import numpy as np
from cuda.bindings import runtime as real_cuda

import onnxruntime

OK = real_cuda.cudaError_t.cudaSuccess


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
