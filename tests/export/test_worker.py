"""Child processes end with their parent, however that ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys

from tfanet.worker import worker_command, worker_environment


def test_a_worker_ends_with_a_killed_parent():
    code = (
        "import subprocess; from tfanet.worker import worker_command, worker_environment; "
        "subprocess.run(worker_command('waiting_worker', {}), env=worker_environment())"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=worker_environment()
    )
    assert parent.stdout is not None
    worker = os.pidfd_open(int(parent.stdout.readline()))
    assert not select.select([worker], [], [], 0)[0]
    parent.kill()
    parent.wait()
    assert select.select([worker], [], [], 600)[0]  # else it would wait for ever


def test_a_worker_whose_parent_is_gone_does_not_begin():
    command = worker_command("waiting_worker", {})
    job = json.loads(command[-1]) | {"parent": 1}
    done = subprocess.run(
        [*command[:-1], json.dumps(job)], capture_output=True, text=True, env=worker_environment()
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "the parent process has ended" in done.stderr
