"""tfanet: from a selective-scan vision model in PyTorch to a bundle that runs without it.

The parts live in sub-packages, each usable alone:

- `tfanet.model`: TFANet and its VMamba backbone in PyTorch;
- `tfanet.plugins`: the selective-scan operator for PyTorch, ONNX and ONNX Runtime;
- `tfanet.export`: PyTorch to a bundle, with the parity check; engines;
- `tfanet.calibration`: INT8 and FP8, with a bound on what is lost;
- `tfanet.runtime`: run a bundle; never imports PyTorch.

Importing this package imports none of them. It switches ONNX Runtime's telemetry off, which a
program that imports onnxruntime itself must do before that: nothing stops it later.
"""

from __future__ import annotations

import os
import sys

# `python -m tfanet` has put the current folder first. What lies there, such as a json.py among the
# data, is not to be run; a user's own model is looked for there by `tfanet onnx`.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

import lazy_loader

from tfanet import moved

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime looks up a host of its makers and keeps a store of events in the user's
# cache folder, unless it finds this when it is loaded. Children inherit it. The user may say 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
moved.install()
