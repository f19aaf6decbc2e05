"""Where the native libraries of this installation are."""

from __future__ import annotations

from pathlib import Path

from tfanet.errors import MissingDependencyError

__all__ = ["cpu_library_path", "ort_library_path", "trt_library_path"]

_FOLDER = Path(__file__).resolve().parent / "lib"


def cpu_library_path() -> Path:
    """libtfanet_cpu.so, which the operator runs on the CPU in PyTorch.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built("libtfanet_cpu.so", "")


def ort_library_path() -> Path:
    """libtfanet_ort.so, to be given to `SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built("libtfanet_ort.so", "")


def trt_library_path() -> Path:
    """libtfanet_trt.so, for `trtexec --dynamicPlugins` or `IPluginRegistry.load_library`.

    Raises:
        MissingDependencyError: where it has not been built.
    """
    return _built(
        "libtfanet_trt.so",
        " (it needs the CUDA compiler, and the headers of TensorRT in TENSORRT_ROOT/include)",
    )


def _built(name: str, need: str) -> Path:
    path = _FOLDER / name
    if not path.is_file():
        raise MissingDependencyError(
            f"{path} has not been built{need}: run `make native` in a checkout, or install tfanet "
            "again with a C++17 compiler at hand"
        )
    return path
