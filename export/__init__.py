"""From PyTorch to a bundle: ONNX graphs, one node per scan, compared with PyTorch; and engines.

Names are loaded when they are first used, so that a part that needs no PyTorch does without. They
are listed in `__init__.pyi`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
