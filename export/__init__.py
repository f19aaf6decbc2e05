"""From PyTorch to a bundle: ONNX graphs, one node per scan, compared with PyTorch; and engines.

Names are loaded when they are first used, so that a part that needs no PyTorch does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfanet.export.bundle import export_bundle
    from tfanet.export.engine import Profile, build_engine, engine_graph
    from tfanet.export.model_onnx import export_onnx
    from tfanet.export.precision import cast_graph

__all__ = ["Profile", "build_engine", "cast_graph", "engine_graph", "export_bundle", "export_onnx"]

_HOMES = {
    "Profile": "engine",
    "build_engine": "engine",
    "cast_graph": "precision",
    "engine_graph": "engine",
    "export_bundle": "bundle",
    "export_onnx": "model_onnx",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfanet.export' has no attribute {name!r}")
    return getattr(import_module(f"tfanet.export.{_HOMES[name]}"), name)
