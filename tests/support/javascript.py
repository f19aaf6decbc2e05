"""The browser page's own modules, called in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tfanet.export.web.page import PAGE

DRIVER = Path(__file__).with_name("call_page.mjs")


def call_page(command: str, **request: Any) -> Any:
    """The answer to one of the commands in call_page.mjs; skips the test where there is no Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    done = subprocess.run(
        [node, str(DRIVER), str(PAGE.resolve())],
        input=json.dumps({"command": command, **request}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
