"""Where a training's figures go: log.jsonl, and trackers through Accelerate."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tfanet.errors import MissingDependencyError, check_choice
from tfanet.files import whole_file

__all__ = ["TRACKERS", "Log", "check_tracker"]

TRACKERS = ("tensorboard", "wandb")


def check_tracker(name: str) -> None:
    """Raises InputError for an unknown tracker, MissingDependencyError for one that is missing."""
    check_choice("log_with", name, TRACKERS)
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"{name} is not installed: pip install 'tfanet[{name}]'")


class Log:
    """Lines of JSON, appended to a file.

    Args:
        fresh: they take the place of an earlier training's, when this one saves for the first time:
            until then its checkpoint is there, too.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._kept: list[str] | None = [] if fresh and path.exists() else None

    def add(self, facts: dict[str, Any]) -> None:
        line = json.dumps(facts) + "\n"
        if self._kept is not None:
            self._kept.append(line)
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)

    def save(self) -> None:
        """The checkpoint that these lines are about has taken its place."""
        if self._kept is not None:
            with whole_file(self._path) as part:
                part.write_text("".join(self._kept), encoding="utf-8")
            self._kept = None
