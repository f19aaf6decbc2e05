"""What is installed, which backends can run here, and what to do about the others."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tfanet import __version__
from tfanet.errors import MissingDependencyError
from tfanet.plugins.libraries import cpu_library_path, ort_library_path
from tfanet.runtime.backends.integer import describe, instructions

__all__ = ["diagnose", "machine"]

PACKAGES = (
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "torch",
    "onnx",
    "onnxscript",
    "transformers",
    "safetensors",
    "accelerate",
    "pycocotools",
    "mamba-ssm",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "polygraphy",
)


def diagnose() -> dict[str, Any]:
    """Facts about this machine, as plain JSON data.

    Returns:
        `machine`: Python, platform, cores and integer instructions; `int8`: what INT8 graphs do
        here; `packages`: version or None by name; `backends`: for each, `available` and, where it
        is not, the `reason` with the next step.
    """
    return {
        "machine": {
            "tfanet": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(terse=True),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "integer_instructions": instructions(),
        },
        "int8": describe(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {
            "PyTorch (scan kernel)": _backend(_torch_reason()),
            "ONNX Runtime CPU (scan kernel)": _backend(_onnxruntime_reason(kernel=True)),
            "ONNX Runtime CPU (scan in standard ops)": _backend(_onnxruntime_reason(kernel=False)),
            "ONNX Runtime CUDA": _backend(_onnxruntime_cuda_reason()),
            "TensorRT": _backend(_tensorrt_reason("tensorrt", "tensorrt")),
            "TensorRT-RTX": _backend(_tensorrt_reason("tensorrt_rtx", "tensorrt-rtx-cu13")),
        },
    }


def machine() -> dict[str, Any]:
    """The processor's name, the number of cores, the platform: what figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # other systems, other processors: the plain name above
    return {"processor": model, "cores": os.cpu_count(), "platform": platform.platform(terse=True)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backend(reason: str | None) -> dict[str, Any]:
    return {"available": reason is None, "reason": reason}


def _missing(module: str) -> bool:
    return util.find_spec(module) is None


def _torch_reason() -> str | None:
    if _missing("torch"):
        return "torch is not installed: pip install 'tfanet[export]'"
    return _library_reason(cpu_library_path)


def _onnxruntime_reason(*, kernel: bool) -> str | None:
    if _missing("onnxruntime"):
        return "onnxruntime is not installed: pip install onnxruntime"
    return _library_reason(ort_library_path) if kernel else None


def _library_reason(path: Any) -> str | None:
    try:
        ctypes.CDLL(str(path()))
    except (MissingDependencyError, OSError) as error:
        return str(error)
    return None


def _onnxruntime_cuda_reason() -> str | None:
    if reason := _onnxruntime_reason(kernel=False):
        return reason
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            "this onnxruntime has no CUDA provider: pip uninstall onnxruntime, "
            "then pip install onnxruntime-gpu"
        )
    return _device_reason()


def _tensorrt_reason(module: str, package: str) -> str | None:
    if _missing(module):
        return f"{module} is not installed: pip install {package}"
    return _device_reason()


def _device_reason() -> str | None:
    """Why no GPU can be used, in the words of the runtime that would use it."""
    from tfanet.runtime.backends.device import Device

    try:
        Device.open()
    except MissingDependencyError as error:
        return str(error)
    return None
