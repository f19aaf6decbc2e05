"""`Progress`: what long work calls to say how far it is; `Stages`: one position over several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["WHOLE", "Positioned", "Progress", "Stages"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
WHOLE = 1000  # steps of a job of several stages, as a plain function is told them


@runtime_checkable
class Positioned(Protocol):
    """A `Progress` that is told a stage's own steps and the position in the whole job, apart."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...

    def at(self, stage: str, done: int, total: int, position: float) -> None:
        """`position`: of the whole job, 0 to 1."""


class Stages:
    """Work of several stages, which moves one position from 0 to 1 and never back.

    A plain function is told it in steps of `WHOLE`. Nothing is told where `progress` is None.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._end = progress, 0.0
        self._current: _Part | None = None

    def next(self, stage: str, share: float = 1.0) -> Positioned:
        """Begin a stage that takes this share of what is left; what tells of its steps.

        Without a name nothing is told of its beginning: its work is a job that names its own.
        It may be told of nothing: the next stage, or `end`, begins where this one ends.
        """
        start = self._end
        self._end += share * (1 - start)
        return self._begin(stage, start, 0.0)

    def end(self, stage: str = "done") -> None:
        """Everything is done."""
        self._end = 1.0
        self._begin(stage, 1.0, 1.0)

    def is_current(self, part: Positioned) -> bool:
        """Whether no later stage has begun: what an earlier one still tells is not passed on."""
        return part is self._current

    def _begin(self, stage: str, start: float, position: float) -> Positioned:
        part = self._current = _Part(self, self._progress, start, self._end)
        if stage:
            part.at(stage, 0, 0, position)
        return part


@dataclass(eq=False)
class _Part:
    """A stage of a job as a job of its own."""

    stages: Stages
    whole: Progress | None
    start: float
    end: float
    reached: float = 0.0

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        self.at(stage, done, total, done / max(total, 1))

    def at(self, stage: str, done: int, total: int, position: float) -> None:
        if not self.stages.is_current(self):
            return
        self.reached = max(self.reached, min(position, 1.0))
        place = self.start + (self.end - self.start) * self.reached
        if isinstance(self.whole, Positioned):
            self.whole.at(stage, done, total, place)
        elif self.whole is not None:
            counted = f"{stage} {done}/{total}" if total > 1 else stage
            self.whole(counted, round(WHOLE * place), WHOLE)
