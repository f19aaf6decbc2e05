"""Post-training INT8: ranges from a few hundred pictures, Q/DQ graphs, a guarantee on accuracy.

calibration = calibrate("bundle", "data", "refcoco", "train")
calibration.save("ranges.json")
quantize_bundle("bundle", "bundle-int8", calibration, GuardOptions("data", "refcoco"))

Needs onnx and ONNX Runtime, no PyTorch.
"""

from __future__ import annotations

from tfanet.calibration.calibrator import calibrate
from tfanet.calibration.certificate import GuardOptions, recheck
from tfanet.calibration.quantizer import quantize_bundle
from tfanet.calibration.ranges import Calibration, diff

__all__ = [
    "Calibration",
    "GuardOptions",
    "calibrate",
    "diff",
    "quantize_bundle",
    "recheck",
]
