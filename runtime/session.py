"""ONNX Runtime sessions with our operator library, and its errors in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfanet.errors import InputError, MissingDependencyError

__all__ = ["open_session"]


def open_session(path: Path, op_library: Path | None, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        path: the ONNX file. op_library: libtfanet_ort.so, or None to run the function body.
        threads: of a single run; None takes all cores.

    Raises:
        MissingDependencyError: without onnxruntime, or where the model holds an operator that
            neither the library nor a function in the file defines.
        InputError: where the file cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime is not installed: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads is {threads}: give 1 or more")
        options.intra_op_num_threads = threads
    if op_library is not None:
        try:
            options.register_custom_ops_library(str(op_library))
        except Exception as error:
            raise MissingDependencyError(
                f"{op_library} does not load in onnxruntime {onnxruntime.__version__}: "
                f"{_first_line(error)}"
            ) from error
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        message = _first_line(error)
        if "tfanet" in message and ("not a registered function" in message or "Fatal" in message):
            raise MissingDependencyError(
                f"{path} holds the operator tfanet::SelectiveScan without a function body, and no "
                "operator library is loaded: build it with `make native`, or export the model with "
                "--function sequential"
            ) from error
        raise InputError(f"{path} cannot be loaded: {message}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
