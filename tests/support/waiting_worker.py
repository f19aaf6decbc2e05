"""A child process that tells its number and then waits for nothing: see test_worker.py."""

from __future__ import annotations

import os
import signal

from tfanet.worker import worker_job

if __name__ == "__main__":
    worker_job()
    print(os.getpid(), flush=True)
    signal.pause()
