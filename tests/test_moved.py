"""Each old name of a module gives the very objects of its new home, with a warning."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tfanet.moved import MOVED, REMOVAL, RENAMED


@pytest.mark.parametrize("old", MOVED)
def test_what_an_old_name_gives_is_what_the_new_one_gives(old: str) -> None:
    homes = [importlib.import_module(f"tfanet.{home}") for home in MOVED[old].split()]
    module, seen = importlib.import_module(f"tfanet.{old}"), 0
    for home in homes:
        for name, value in vars(home).items():
            own = inspect.isclass(value) or inspect.isfunction(value)
            if name.startswith("_") or not own or value.__module__ != home.__name__:
                continue
            first = next(one for one in homes if hasattr(one, name))  # it may be imported there
            with pytest.warns(DeprecationWarning, match="is now") as caught:
                assert getattr(module, name) is value
            assert [str(one.message) for one in caught] == [
                f"tfanet.{old}.{name} is now {first.__name__}.{name}; "
                f"the old name goes in tfanet {REMOVAL}"
            ]
            seen += 1
    assert seen


@pytest.mark.parametrize("old", RENAMED)
def test_what_was_renamed_as_it_moved_is_found_by_its_old_name(old: str) -> None:
    module, _, name = old.rpartition(".")
    home = importlib.import_module(f"tfanet.{MOVED[module]}")
    with pytest.warns(DeprecationWarning, match=rf"is now {home.__name__}\.{RENAMED[old]}; "):
        found = getattr(importlib.import_module(f"tfanet.{module}"), name)
    assert found is getattr(home, RENAMED[old])
