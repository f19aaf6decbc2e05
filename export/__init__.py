"""From PyTorch to a bundle: ONNX graphs, one node per scan, compared with PyTorch."""

from __future__ import annotations

from tfanet.export.bundle import export_bundle

__all__ = ["export_bundle"]
