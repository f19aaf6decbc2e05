"""Referring-segmentation data: the REFER reader, its check, and the synthetic shapes dataset."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
