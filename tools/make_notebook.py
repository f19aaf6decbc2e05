"""Makes docs/tutorial.ipynb from docs/tutorial.md, so that what they say stands once.

    python tools/make_notebook.py

Blocks marked `run` become code cells, those of the shell with `%%sh`; all between them is text.
Links lead from the notebook where they lead from the page, beside which it lies.
"""

from __future__ import annotations

import json
import re

from imports import ROOT

PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
_BLOCK = re.compile(r"^```(sh|python) run\n(.*?)^```\n", flags=re.M | re.S)


def cells(page: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) for each cell, in order."""
    found: list[tuple[str, str]] = []
    end = 0
    for block in _BLOCK.finditer(page):
        found.append(("markdown", page[end : block.start()]))
        found.append(("code", "%%sh\n" * (block[1] == "sh") + block[2]))
        end = block.end()
    found.append(("markdown", page[end:]))
    return [(kind, text.strip("\n")) for kind, text in found if text.strip()]


def notebook(page: str) -> str:
    """The notebook of a page, in Jupyter's format 4.5, without outputs."""
    written: list[dict[str, object]] = []
    for number, (kind, text) in enumerate(cells(page)):
        cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        written.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {
        "cells": written,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    NOTEBOOK.write_text(notebook(PAGE.read_text()))


if __name__ == "__main__":
    main()
