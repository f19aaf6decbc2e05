"""`Progress`: what long work calls to say how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
