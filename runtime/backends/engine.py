"""Engine files of TensorRT and TensorRT-RTX, run through their Python bindings and cuda-python.

What can be known without the GPU (the record in the manifest, versions, the compute capability) is
checked before the file is handed to the library, which answers a bad one with None, or crashes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

from tfanet.errors import InputError, MissingDependencyError
from tfanet.files import whole_file
from tfanet.plugins.libraries import trt_library_path
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine_slot import Slot
from tfanet.runtime.bundle.manifest import TARGETS

__all__ = [
    "MODULES",
    "EngineError",
    "EngineGraph",
    "check_record",
    "load_module",
    "load_plugin_library",
    "make_logger",
]

MODULES = dict(zip(TARGETS, ("tensorrt", "tensorrt_rtx"), strict=True))
_PACKAGES = dict(zip(TARGETS, ("tensorrt", "tensorrt-rtx-cu13"), strict=True))
RTX_LOWEST = (8, 0)  # an engine of TensorRT-RTX that names no compute capability


class EngineError(InputError):
    """An engine that cannot run here: of another version or GPU, damaged, or without its plugin."""


def check_record(record: Mapping[str, Any], device: Device, version: str) -> None:
    """Check that an engine can run here, from what the manifest says of it.

    Args:
        record: one of the manifest's engines. version: of the library that is installed here.

    Raises:
        EngineError: naming what differs, and how to build an engine that fits.
    """
    again = (
        f"build it again here with `tfanet engine --bundle DIR --target {record['target']} "
        f"--precision {record['precision']}`"
    )
    if version != record["version"]:
        raise EngineError(
            f"engine {record['name']} was built by {record['library']} {record['version']}, here "
            f"is {version}: install that version, or {again}"
        )
    if "STRIP_PLAN" in record.get("flags", ()):
        raise EngineError(
            f"engine {record['name']} holds no weights: fill them in with `tfanet refit --bundle "
            f"DIR --engine {record['name']}`"
        )
    wanted = record["compute"]
    here = tuple(map(int, device.compute.split(".")))
    if wanted and device.compute not in wanted:
        raise EngineError(
            f"engine {record['name']} was built for compute capability {' and '.join(wanted)}, "
            f"{device.name} has {device.compute}: {again}"
        )
    if not wanted and record["target"] == "tensorrt-rtx" and here < RTX_LOWEST:
        raise EngineError(
            f"engine {record['name']} runs on compute capability 8.0 and later, {device.name} has "
            f"{device.compute}: {again} --compute {device.compute}"
        )


def load_module(target: str) -> Any:
    """The Python bindings of a target. Raises MissingDependencyError where they are missing."""
    try:
        return importlib.import_module(MODULES[target])
    except Exception as error:  # the loader raises what the operating system says
        raise MissingDependencyError(
            f"{MODULES[target]} cannot be imported ({str(error).splitlines()[0]}): "
            f"pip install {_PACKAGES[target]}"
        ) from error


def load_plugin_library(trt: Any, path: Path) -> None:
    """Make libtfanet_trt.so known to TensorRT, once a process.

    Raises EngineError where the library is of another major version, or is refused.
    """
    again = "build it again with the headers of that version (TENSORRT_ROOT=DIR make native)"
    try:
        built = ctypes.CDLL(str(path)).tfanet_tensorrt_major()
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be loaded ({error}): {again}") from error
    if built != int(trt.__version__.split(".")[0]):
        raise EngineError(f"{path} is for TensorRT {built}, here is {trt.__version__}: {again}")
    registry = trt.get_plugin_registry()
    if registry.load_library(str(path)) is not None:
        return
    if registry.get_creator("SelectiveScan", "1", "tfanet") is None:  # not loaded earlier either
        raise EngineError(f"{path} is refused by {trt.__name__} {trt.__version__}: {again}")


class EngineGraph:
    """One engine file on one GPU. `run` may be called from many threads.

    Each call takes an execution context of its own with a stream, pinned buffers and, from the
    second call of a batch size on, a CUDA graph of the launches; contexts are made when they are
    needed, up to `contexts`, beyond which callers wait.

    Args:
        path: the plan. record: its entry in the manifest. plan: its bytes, where they were read and
            compared with their SHA-256 already; then `path` is for messages only.
        device: index of the GPU. contexts: largest number of calls that run at the same time.
        host_code: run code for the CPU that the plan may carry; only for plans that you built.
        cache: a file that keeps what TensorRT-RTX compiles at the first run, for the next start.

    Raises:
        MissingDependencyError: without bindings, cuda-python or a GPU. EngineError: for an engine
        that cannot run here.
    """

    def __init__(
        self,
        path: Path,
        record: Mapping[str, Any],
        *,
        plan: bytes | None = None,
        device: int = 0,
        contexts: int = 4,
        host_code: bool = False,
        cache: Path | None = None,
    ) -> None:
        if contexts < 1:
            raise InputError(f"contexts is {contexts}: give 1 or more")
        self.device = Device.open(device)
        self._trt = load_module(record["target"])
        check_record(record, self.device, self._trt.__version__)
        self._name, self._path = record["name"], path
        self._logger = make_logger(self._trt)
        if record.get("plugin") == "library":
            load_plugin_library(self._trt, trt_library_path())
        with self.device.current():
            runtime = self._trt.Runtime(self._logger)
            if self._logger.errors:  # an object that crashes in use, where the driver is too old
                raise self._refusal("cannot be loaded")
            runtime.engine_host_code_allowed = host_code
            engine = runtime.deserialize_cuda_engine(plan or path.read_bytes())
        if engine is None:
            raise self._refusal("cannot be loaded")
        self._runtime, self._engine = runtime, engine
        self._tensors = self._describe()
        self._config, self._cache = self._make_config(cache)
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        self._slots: list[Slot] = []
        self._contexts, self._lock = contexts, threading.Lock()

    def get_inputs(self) -> list[Any]:
        """Name and shape of each input, as an ONNX Runtime session gives them."""
        return [t for t in self._tensors if t.is_input]

    def get_outputs(self) -> list[Any]:
        """Name and shape of each output."""
        return [t for t in self._tensors if not t.is_input]

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and largest batch."""
        return self._tensors[0].batches

    def run(self, names: None, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """All outputs for inputs by name: NumPy arrays, or arrays in the memory of this GPU.

        Raises:
            InputError: for a missing input, another dtype or shape, or a batch that the engine's
                profile does not hold. DeviceError: where the GPU fails.
        """
        with self.device.current(), self._slot() as slot:
            batch = 0
            for tensor in self.get_inputs():
                if tensor.name not in feeds:
                    raise InputError(f"input '{tensor.name}' is missing")
                batch = slot.upload(tensor, feeds[tensor.name])
            if not slot.execute(batch):
                raise self._refusal("failed to run")
            return slot.download(self.get_outputs(), batch)

    def close(self) -> None:
        """Waits for no one: call it when nothing runs. Writes the cache, frees the GPU's memory."""
        if self._cache is not None and self._config is not None:
            blob = bytes(self._config.get_runtime_cache().serialize())
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._cache) as part:
                part.write_bytes(blob)
        with self.device.current():
            for slot in self._slots:
                slot.close()
        self._slots, self._free = [], queue.LifoQueue()

    @contextlib.contextmanager
    def _slot(self) -> Iterator[Slot]:
        slot = self._take()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def _take(self) -> Slot:
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        with self._lock:
            if len(self._slots) < self._contexts:
                args = () if self._config is None else (self._config,)
                context = self._engine.create_execution_context(*args)
                if context is None:
                    raise self._refusal("gives no execution context")
                self._slots.append(Slot(context, self._tensors))
                return self._slots[-1]
        return self._free.get()

    def _describe(self) -> list[Any]:
        engine, tensors = self._engine, []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = tuple(engine.get_tensor_shape(name))
            is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            batches = (shape[0], shape[0])
            if is_input and shape[0] < 0:
                low, _, high = engine.get_tensor_profile_shape(name, 0)
                batches = (low[0], high[0])
            dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(name)))
            tensors.append(
                SimpleNamespace(
                    name=name,
                    shape=["batch" if size < 0 else size for size in shape],
                    is_input=is_input,
                    batches=batches,
                    dtype=dtype,
                )
            )
        tensors.sort(key=lambda tensor: not tensor.is_input)
        for tensor in tensors:
            if not tensor.is_input:
                tensor.batches = tensors[0].batches
        return tensors

    def _make_config(self, cache: Path | None) -> tuple[Any, Path | None]:
        """TensorRT-RTX: the settings of contexts, with what earlier processes compiled."""
        if not hasattr(self._engine, "create_runtime_config") or cache is None:
            return None, None
        config = self._engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):  # full TensorRT compiles nothing here
            return None, None
        kept = config.create_runtime_cache()
        with self.device.current(), contextlib.suppress(FileNotFoundError):
            kept.deserialize(cache.read_bytes())  # of another GPU or driver: starts empty
        config.set_runtime_cache(kept)
        return config, cache

    def _refusal(self, what: str) -> EngineError:
        """The library's own words, with what to do."""
        said = "; ".join(self._logger.errors[-2:]) or "no reason given"
        self._logger.errors.clear()
        low = said.lower()
        if "plugin" in low or "creator" in low:
            remedy = "load the plugin's library first, or build with `--plugin aot`"
        elif "host code" in low or "lean runtime" in low:
            remedy = "it carries code for the CPU; allow it by name (host_code) if you built it"
        elif "driver" in low or "cuda initialization" in low:
            remedy = "see nvidia-smi: the driver must be as new as the library wants"
        elif "memory" in low:
            remedy = "free memory on the GPU, or build for a smaller batch"
        else:
            remedy = "build it again on this machine with `tfanet engine`"
        return EngineError(f"{self._path} (engine {self._name}) {what}: {said}; {remedy}")


def make_logger(trt: Any, echo: IO[str] | None = None) -> Any:
    """A logger for one of the libraries that keeps the first line of each error in `errors`.

    Args:
        echo: where errors are written too, whole.
    """

    class Logger(trt.ILogger):
        """See `make_logger`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text.strip().splitlines()[0])
                if echo is not None:
                    echo.write(text + "\n")

    return Logger()
