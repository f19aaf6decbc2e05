"""TFANet in PyTorch: one file for each part, `tfanet` for the whole."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
