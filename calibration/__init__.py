"""INT8 and FP8 after training: ranges from a few hundred pictures, Q/DQ graphs, bounded loss.

calibration = calibrate("bundle", "data", "refcoco", "train")
calibration.save("ranges.json")
quantize_bundle("bundle", "bundle-int8", calibration, GuardOptions("data", "refcoco"))

Needs onnx and ONNX Runtime, no PyTorch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
