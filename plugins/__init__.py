"""The selective-scan operator: PyTorch, ONNX and ONNX Runtime, from one definition.

Names are loaded when they are first used: `ort_library_path` needs neither PyTorch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet.plugins.function_body import attach, expand_ss2d, rewrite
    from tfanet.plugins.native import cpu_library_path, ort_library_path, trt_library_path
    from tfanet.plugins.onnx_op import custom_translation_table
    from tfanet.plugins.reference import (
        selective_scan_parallel,
        selective_scan_ref,
        ss2d_ref,
    )
    from tfanet.plugins.routing import exportable, install, uninstall
    from tfanet.plugins.scan import selective_scan
    from tfanet.plugins.scan2d import ss2d

__all__ = [
    "attach",
    "cpu_library_path",
    "custom_translation_table",
    "expand_ss2d",
    "exportable",
    "install",
    "ort_library_path",
    "rewrite",
    "selective_scan",
    "selective_scan_parallel",
    "selective_scan_ref",
    "ss2d",
    "ss2d_ref",
    "trt_library_path",
    "uninstall",
]

_HOMES = {
    "attach": "function_body",
    "cpu_library_path": "native",
    "custom_translation_table": "onnx_op",
    "expand_ss2d": "function_body",
    "exportable": "routing",
    "install": "routing",
    "ort_library_path": "native",
    "rewrite": "function_body",
    "selective_scan": "scan",
    "selective_scan_parallel": "reference",
    "selective_scan_ref": "reference",
    "ss2d": "scan2d",
    "ss2d_ref": "reference",
    "trt_library_path": "native",
    "uninstall": "routing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet.plugins' has no attribute {name!r}")
    return getattr(import_module(f"tfanet.plugins.{_HOMES[name]}"), name)
