"""Child processes: they import nothing from the current folder, and end with their parent.

`python -m` looks for modules in the current folder first. Users keep their data there, and a file
json.py among it would run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["peak_bytes", "worker_command", "worker_environment", "worker_job"]

_PR_SET_PDEATHSIG = 1


def worker_command(module: str, job: Mapping[str, Any]) -> list[str]:
    """The words that run a module of ours with a job, JSON in its first argument."""
    return [sys.executable, "-m", module, json.dumps({**job, "parent": os.getpid()})]


def worker_job() -> dict[str, Any]:
    """The job of this child process, which from now on ends when its parent does, however it ends.

    A killed export would leave a builder that works on for half an hour, in a folder that the next
    export removes.
    """
    job: dict[str, Any] = json.loads(sys.argv[1])
    with contextlib.suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job.pop("parent"):
        sys.exit("the parent process has ended")
    return job


def worker_environment(**more: str) -> dict[str, str]:
    """This process's environment, with its import path in place of the current folder, and `more`.

    The child's own children start so too.
    """
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **more}


def peak_bytes() -> int:
    """Peak resident memory since this program was started, in bytes.

    Not `getrusage`: its maximum starts at what the parent held when it forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
