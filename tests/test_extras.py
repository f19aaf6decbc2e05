"""What a message, a docstring or a page says to install can be installed."""

from __future__ import annotations

import argparse
import configparser
import re
from collections.abc import Iterator

import pytest
from checkouts import tracked
from imports import ROOT

from tfanet.cli import build_parser

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = set(SETUP["options.extras_require"])
NAMED = re.compile(r"""(?:tfanet|["' ]\.)\[([a-z0-9 ,_-]+)\]""")


def requirements() -> Iterator[tuple[str, str]]:
    """Where an extra of tfanet is named, and its name."""
    for name in tracked():
        if name.endswith(
            (".py", ".pyi", ".md", ".cmake", ".txt", ".html", ".cfg", ".toml", ".cpp")
        ):
            for match in NAMED.finditer((ROOT / name).read_text(encoding="utf-8")):
                for extra in match[1].split(","):
                    yield name, extra.strip()


def test_every_extra_that_is_named_exists():
    found = set(requirements())
    assert {extra for _, extra in found} >= {"export", "cuda"}
    assert [f"{name} names {extra}" for name, extra in found if extra not in EXTRAS] == []


def test_the_page_of_installation_names_what_users_may_want():
    page = (ROOT / "docs/install.md").read_text()
    named = {extra for match in NAMED.finditer(page) for extra in match[1].split(",")}
    assert named == EXTRAS - {"dev", "docs", "test"}


def verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in inner:
        for verb in action.choices.values():
            yield from verbs(verb)
    if not inner:
        yield parser


@pytest.mark.parametrize("verb", [pytest.param(v, id=v.prog) for v in verbs(build_parser())])
def test_every_verb_names_a_package_that_exists(verb):
    package = verb.get_default("package")
    assert package == "tfanet" or re.fullmatch(r"'tfanet\[(.+)\]'", package)[1] in EXTRAS
