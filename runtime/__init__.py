"""Run a bundle without PyTorch: NumPy, Pillow, tokenizers and ONNX Runtime.

from tfanet.runtime import Predictor

prediction = Predictor("bundle")("picture.jpg", "the man in red on the left")
prediction.mask  # (H, W) bool
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
