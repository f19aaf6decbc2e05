"""The tutorial's notebook is made from its page, and its cells run, in order and in one session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_notebook import NOTEBOOK, PAGE, notebook

RUN = """
import json, subprocess, sys
session = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "code" and source.startswith("%%sh\\n"):
        subprocess.run(["sh", "-ec", source.removeprefix("%%sh\\n")], check=True)
    elif cell["cell_type"] == "code":
        exec(source, session)
"""


def test_the_notebook_is_the_page():
    assert NOTEBOOK.read_text() == notebook(PAGE.read_text())


def test_every_cell_is_of_a_kind_that_jupyter_knows():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert sum(cell["cell_type"] == "code" for cell in cells) >= 8


@pytest.mark.full
def test_the_cells_run(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "overlay.png").is_file() and (tmp_path / "rows.onnx").is_file()
    assert "largest difference" in done.stdout
