"""How child processes are started: with what this process imports, and nothing from where it runs.

`python -m` looks for modules in the current folder before all others. There lie users' data, and a
json.py among them would run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["worker_command", "worker_environment"]


def worker_command(module: str, job: Mapping[str, Any]) -> list[str]:
    """The words that run a module of ours with a job, JSON in its first argument."""
    return [sys.executable, "-m", module, json.dumps(job)]


def worker_environment(**more: str) -> dict[str, str]:
    """This process's environment, with its import path in place of the current folder, and `more`.

    The child's own children start so too.
    """
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **more}
