"""Old names: each gives the very objects of its new home, with a warning, until it is due to go."""

from __future__ import annotations

import importlib
import inspect
import warnings

import pytest
from imports import modules

import tfanet
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


def test_old_names_go_when_they_are_due():
    """Fails from the release on that takes them away: delete tfanet/moved.py and its tests then."""

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")))

    assert numbers(tfanet.__version__) < numbers(REMOVAL)


def test_old_names_lead_to_modules_that_are_there():
    for old, homes in MOVED.items():
        assert f"tfanet.{old}" not in modules(), f"{old} is both an old name and a module"
        missing = [home for home in homes.split() if f"tfanet.{home}" not in modules()]
        assert not missing, f"{old} leads to {missing}"


def test_an_old_name_warns_with_the_new_one_and_the_version_in_which_it_goes():
    old = importlib.import_module("tfanet.plugins.scan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function = old.selective_scan
    from tfanet.plugins import selective_scan

    assert function is selective_scan
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert str(warning.message) == (
        "tfanet.plugins.scan.selective_scan is now "
        "tfanet.plugins.pytorch.selective_scan.selective_scan; "
        f"the old name goes in tfanet {REMOVAL}"
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = old.nothing
