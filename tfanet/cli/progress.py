"""How far a verb is, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tfanet.errors import plain
from tfanet.progress import Progress

__all__ = ["Display", "progress_line", "say", "showing_progress"]

EVERY = 5.0  # seconds between lines where there is no terminal
DRAWN = 0.1  # seconds between pictures of the bar: a terminal far away would slow the work down
BAR = "{percentage:3.0f} %|{bar:20}| {elapsed}<{remaining}  {desc}"
log = logging.getLogger("tfanet.progress")


class Display:
    """A `Positioned` that shows one position, which never goes back: bar, rate and time left.

    Args:
        terminal: whether standard error is one. quiet: log it, and show nothing. clock: gives
            seconds.
    """

    def __init__(
        self,
        *,
        terminal: bool,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal, self._quiet, self._clock = terminal, quiet, clock
        self._bar: Any = None
        self._began = clock()
        self._position, self._told, self._drawn = 0.0, -math.inf, -math.inf
        # Of the stage: its steps, those done when it was first seen and when last, and the time.
        self._total, self._first, self._last, self._stage_began = -1, 0, 0, self._began

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        self.at(stage, done, total, done / max(total, 1))

    def at(self, stage: str, done: int, total: int, position: float) -> None:
        """Show the steps of a stage, and the position in the whole job, 0 to 1."""
        now = self._clock()
        self._position = max(self._position, min(position, 1.0))
        if total != self._total or done < self._last:
            self._total, self._first, self._stage_began = total, done, now
        self._last = done
        text = plain(stage)
        if total > 1:
            text += f" {done}/{total}{_rate(done - self._first, now - self._stage_began)}"
        ended = self._position >= 1
        if self._terminal and not self._quiet:
            self._draw(text)
        if now - self._told >= EVERY or ended:
            self._told = now
            left = ""
            if 0 < self._position < 1:
                left = f", {_time((now - self._began) * (1 / self._position - 1))} left"
            line = f"{int(100 * self._position):3} %  {text}{left}"
            log.debug("%s", line)
            if not self._terminal and not self._quiet:
                say(line)
        if ended:
            self.close()

    def _draw(self, text: str) -> None:
        if self._bar is None:
            from tqdm.std import tqdm

            tqdm.monitor_interval = 0  # no thread: workers are forked
            self._bar = tqdm(total=1.0, file=sys.stderr, bar_format=BAR, dynamic_ncols=True)
        self._bar.n = self._position
        self._bar.set_description_str(text, refresh=False)
        if self._position >= 1 or self._clock() - self._drawn >= DRAWN:
            self._bar.refresh()
            self._drawn = self._clock()

    def close(self) -> None:
        """Leave the line as it is; what is printed next begins below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def write(self, line: str) -> None:
        """A line of text above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
            return
        with contextlib.suppress(BrokenPipeError):  # nobody reads on, and work goes on
            print(line, file=sys.stderr, flush=True)


_quiet = False
_shown: Display | None = None  # by the verb that runs


@contextmanager
def showing_progress(*, quiet: bool) -> Iterator[None]:
    """Show progress, or none, while a verb runs; what is printed behind begins on its own line."""
    global _quiet, _shown
    _quiet = quiet
    try:
        yield
    finally:
        if _shown is not None:
            _shown.close()
        _shown, _quiet = None, False


def progress_line() -> Progress:
    """The progress of the verb that runs: ask once, `Stages` divide it."""
    global _shown
    _shown = Display(terminal=sys.stderr.isatty(), quiet=_quiet)
    return _shown


def say(line: str) -> None:
    """Print a line on standard error, above a bar if there is one."""
    (_shown or Display(terminal=False)).write(line)


def _rate(steps: int, seconds: float) -> str:
    if steps < 1 or seconds <= 0:
        return ""
    rate = steps / seconds
    return f", {rate:.1f}/s" if rate >= 1 else f", {1 / rate:.1f} s each"


def _time(seconds: float) -> str:
    """`1:05`, `2:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
