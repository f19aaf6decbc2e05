"""Post-training INT8: ranges from a few hundred pictures, Q/DQ graphs, a guarantee on accuracy.

calibration = calibrate("bundle", "data", "refcoco", "train")
calibration.save("ranges.json")
quantize_bundle("bundle", "bundle-int8", calibration, GuardOptions("data", "refcoco", max_drop=0.5))

Needs onnx and ONNX Runtime, no PyTorch.
"""

from __future__ import annotations

from tfanet.calibration.calibrator import calibrate
from tfanet.calibration.quantizer import GuardOptions, quantize_bundle, recheck
from tfanet.calibration.ranges import Calibration, diff

__all__ = [
    "Calibration",
    "GuardOptions",
    "calibrate",
    "diff",
    "quantize_bundle",
    "recheck",
]
