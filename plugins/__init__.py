"""The selective-scan operator: PyTorch, ONNX and ONNX Runtime, from one definition.

Names are loaded when they are first used: `ort_library_path` needs neither PyTorch nor onnx. They
are listed in `__init__.pyi`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
