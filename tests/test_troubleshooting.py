"""The messages that docs/troubleshooting.md explains are those of the sources, word for word."""

from __future__ import annotations

import ast
import re

import pytest
from imports import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
# The message between the outer backticks of a heading; it may hold backticks itself.
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, flags=re.M)
# A message's own values, and all that a heading leaves out: "…" of the page stands for them.
ANYTHING = "…"


def template(node: ast.expr) -> str:
    """A string as the page would write it, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return ANYTHING


def said_by_cmake(text: str) -> list[str]:
    """The messages with which a CMake file ends a build."""
    calls = re.findall(r"message\(FATAL_ERROR ((?:\s*\"(?:[^\"\\]|\\.)*\")+)\)", text)
    joined = ["".join(re.findall(r"\"((?:[^\"\\]|\\.)*)\"", call)) for call in calls]
    return [re.sub(r"\$\{\w+\}", ANYTHING, message) for message in joined]


@pytest.fixture(scope="module")
def templates() -> set[str]:
    """Every string of the sources in Python, and every message of those for CMake."""
    rooms = ("calibration", "export", "plugins", "runtime", "tfanet")
    strings = (ast.Constant, ast.JoinedStr, ast.BinOp)
    found = {
        template(node)
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, strings)
    }
    for room in ("plugins", "runtime"):
        for path in (ROOT / room).rglob("CMakeLists.txt"):
            found.update(said_by_cmake(path.read_text()))
    return found


def test_the_page_explains_many():
    assert len(MESSAGES) > 30 and len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_source_says_it(message, templates):
    assert len(message.replace(ANYTHING, "")) > 20
    pattern = re.compile(".*".join(map(re.escape, message.split(ANYTHING))), flags=re.S)
    assert any(pattern.search(text) for text in templates), f"no source says {message!r} any more"
