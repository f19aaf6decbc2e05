"""How well masks are: a bundle or a checkpoint on one split of a dataset, and the metrics."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
