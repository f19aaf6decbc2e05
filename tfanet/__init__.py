"""tfanet: from a selective-scan vision model in PyTorch to a bundle that runs without it.

The parts live in sub-packages, each usable alone:

- `tfanet.model`, `tfanet.backbone`: TFANet and its VMamba backbone in PyTorch;
- `tfanet.plugins`: the selective-scan operator for PyTorch, ONNX and ONNX Runtime;
- `tfanet.export`: PyTorch to a bundle, with the parity check;
- `tfanet.runtime`: run a bundle; never imports PyTorch.

Importing this package imports none of them. It switches ONNX Runtime's telemetry off, which a
program that imports onnxruntime itself must do before that: nothing stops it later.
"""

from __future__ import annotations

import os
from pathlib import Path
from pkgutil import extend_path

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime looks up a host of its makers and keeps a store of events in the user's
# cache folder, unless it finds this when it is loaded. Children inherit it. The user may say 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__path__ = extend_path(__path__, __name__)

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "runtime").is_dir():
    # A checkout: export/, runtime/ and plugins/ stand beside this folder, not in it.
    __path__.append(str(_root))
