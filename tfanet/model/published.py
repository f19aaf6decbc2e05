"""What a family's authors report of it, to be read beside what is measured here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Published"]


@dataclass(frozen=True)
class Published:
    """Figures of the full-size model.

    Attributes:
        source: where the results stand, and by which protocol.
        metrics: names of the columns. results: by data and split, in percent; None: not given.
        params, alive, flops: of the whole model, and of what decides its mask, where somebody gives
            them or the official code was counted; counted says which.
    """

    source: str
    metrics: tuple[str, ...]
    results: dict[str, tuple[float | None, ...]]
    params: int | None = None
    alive: int | None = None
    flops: float | None = None
    counted: str = ""
