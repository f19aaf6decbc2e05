"""ONNX Runtime sessions with our operator library, and its errors in plain words."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime.backends.integer import needs_floats

__all__ = [
    "MAX_THREADS",
    "Shapes",
    "check_interface",
    "open_session",
    "runs_as_floats",
    "thread_count",
]

MAX_THREADS = 1024  # ONNX Runtime ends the process where it cannot start as many as it is told

_OPERATORS = ("SelectiveScan", "SS2DScan", "SS2D")  # no name before a longer one that it begins
_AS_FLOATS = ("session.disable_quant_qdq", "1")
Shapes = Mapping[str, tuple[int, ...]]


def open_session(
    path: Path,
    op_library: Path | None,
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    device: int = 0,
    content: Callable[[], bytes] | None = None,
    *,
    as_floats: bool | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        path: the ONNX file. content: gives its checked bytes, which are let go of when they are
            loaded; then `path` is for messages only.
        op_library: libtfanet_ort.so, or None to run the function body.
        threads: of a single run on the CPU; None takes every core that this process may use.
        provider: "CPUExecutionProvider", or "CUDAExecutionProvider" on the GPU `device`.
        as_floats: compute Q/DQ nodes as they stand, and make no integer layers of them. By default
            where this processor would compute those wrong, see `integer`.

    Raises:
        MissingDependencyError: without onnxruntime or the provider, or where the model holds an
            operator that neither the library nor a function in the file defines.
        InputError: where the file cannot be loaded, or for less than 1 or over 1024 threads.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime is not installed: pip install onnxruntime"
        ) from error
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider != "CPUExecutionProvider":
        if provider not in onnxruntime.get_available_providers():
            raise MissingDependencyError(
                f"onnxruntime {onnxruntime.__version__} here has no {provider}: pip uninstall "
                "onnxruntime, then pip install onnxruntime-gpu"
            )
        providers.insert(0, (provider, {"device_id": device}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Always a number: left to itself, ONNX Runtime takes all cores of the machine and binds threads
    # to them, to those that this process may not use as well.
    options.intra_op_num_threads = thread_count(threads)
    if provider != "CPUExecutionProvider":
        # Where our library has no fused 2-D scan for the provider, its parts run there.
        options.add_session_config_entry("tfanet.ss2d_as_parts", provider)
    if op_library is not None:
        try:
            options.register_custom_ops_library(str(op_library))
        except Exception as error:
            raise MissingDependencyError(
                f"{op_library} does not load in onnxruntime {onnxruntime.__version__} "
                f"({_first_line(error)}): build it with `make native`, or pass op_library=None"
            ) from error
    model = str(path) if content is None else content()
    if needs_floats(model) if as_floats is None else as_floats:
        options.add_session_config_entry(*_AS_FLOATS)
    try:
        try:
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph as error:
            if "float8" not in str(error):
                raise
            # It fuses FP8 Q/DQ nodes as if they were INT8, and then refuses its own graph. As they
            # stand it computes them.
            options.add_session_config_entry(*_AS_FLOATS)
            session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        message = _first_line(error)
        unknown = [name for name in _OPERATORS if f"tfanet:{name}" in message]
        if unknown and "not a registered" in message:
            raise MissingDependencyError(
                f"{path} holds the operator tfanet::{unknown[0]} without a function body, and no "
                "operator library is loaded: build it with `make native`, or export the model with "
                "--function sequential"
            ) from error
        raise InputError(f"{path} cannot be loaded: {message}") from error
    if session.get_providers()[0] != provider:  # onnxruntime only logs why, and takes the next
        raise MissingDependencyError(
            f"onnxruntime's {provider} does not start on GPU {device}: see nvidia-smi, and whether "
            "CUDA and cuDNN are of the versions that this onnxruntime wants"
        )
    return session


def runs_as_floats(session: Any) -> bool:
    """Whether a session of `open_session` computes Q/DQ nodes as they stand."""
    try:
        return session.get_session_options().get_session_config_entry(_AS_FLOATS[0]) == "1"
    except RuntimeError:  # no such entry
        return False


def thread_count(threads: int | None = None) -> int:
    """`threads`, or else the number of cores that this process may use (see `taskset`).

    Raises:
        InputError: for less than 1, or over MAX_THREADS.
    """
    if threads is None:
        # Two threads of one core compute no faster than one.
        return len({_core(cpu) for cpu in os.sched_getaffinity(0)})
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads is {threads}: give 1 to {MAX_THREADS}")
    return threads


def _core(cpu: int) -> str:
    """What tells the core of a logical processor from others: all that share it."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text()
    except OSError:  # not every container shows it
        return str(cpu)


def check_interface(session: Any, path: Path, inputs: Shapes, outputs: Shapes) -> None:
    """Check the names of a graph's inputs and outputs, and their shapes behind the batch.

    Raises:
        InputError: where they differ, or where the batch is fixed at another number than 1.
    """
    for found, expected in ((session.get_inputs(), inputs), (session.get_outputs(), outputs)):
        shapes = {value.name: value.shape for value in found}
        for name, shape in expected.items():
            actual = shapes.pop(name, None)
            if actual is None or not _fits(actual, (1, *shape)):
                raise InputError(
                    f"{path}: '{name}' has shape {actual}, expected {['batch', *shape]} by the "
                    "manifest: export the model again"
                )
        if shapes:
            raise InputError(f"{path} has the unknown value '{min(shapes)}': export again")


def _fits(actual: list[Any], expected: tuple[int, ...]) -> bool:
    """Whether shapes agree where both give a number; the graph's other sizes are names or None."""
    return len(actual) == len(expected) and all(
        a == e or not isinstance(a, int) for a, e in zip(actual, expected, strict=True)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
