"""`exportable()`: known selective-scan entry points run on our operator, wherever they are used.

An entry point is known by its name **and** its parameters, in whichever module it was defined:
forks keep both. References to it are found by identity, in modules and in live `nn.Module`s, and
put back afterwards. Nothing is imported: what is not there is not touched.

The routing is the whole process's: while any block is open, every thread sees it.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from tfanet.errors import InputError
from tfanet.plugins.compat.known_names import (
    BY_NAME,
    COMMON_NAMES,
    METHODS,
    Family,
    Function,
)
from tfanet.plugins.compat.standin_import import Standins
from tfanet.plugins.compat.standins import OTHER_SCANS

__all__ = ["exportable", "install", "uninstall"]


@dataclass(frozen=True)
class _Route:
    """One entry point (a function, or an autograd Function) and what stands in for it."""

    original: Any
    replacement: Function
    family: Family | None = None  # None: another scan, whose failure is explained

    @property
    def name(self) -> str:
        return f"{self.original.__module__}.{self.original.__qualname__}"


@contextmanager
def exportable() -> Iterator[tuple[str, ...]]:
    """While active, known selective-scan entry points compute with `tfanet.plugins.selective_scan`.

        with exportable():
            program = torch.onnx.export(model, ...)

    Routed are, wherever they have been imported by now: `selective_scan_fn`, `selective_scan_ref`,
    `mamba_inner_fn` (taken apart) and their variants in mamba-ssm and Vim; VMamba's scan,
    cross-scan and cross-merge families, Triton ones included; transformers' Mamba mixers;
    `causal_conv1d_fn`, as a standard convolution; MambaVision's `window_reverse`, whose batch then
    stays open. Results and gradients are the same up to rounding. Also a decorator,
    `@exportable()`; blocks may be nested. All is put back at the end, also after an error.

    Yields:
        the names of the entry points that are routed, "package.module.name".

    Warns:
        UserWarning: naming a cross-scan or cross-merge that goes over the map in another order than
            VMamba's, or whose order can't be checked here; it is left as it is.
    """
    try:
        yield _routing.enter()
    finally:
        _routing.leave()


def install(standins: bool = False) -> tuple[str, ...]:
    """Route as `exportable`, until `uninstall`; call it again after importing further models.

    Args:
        standins: first make `mamba_ssm`, `causal_conv1d` and the `selective_scan_cuda*` extensions
            importable where they are not: a model that imports them at its top then loads, runs
            and exports on a CPU. Checkpoints fit: parameters have the official names. A package
            that is there is used, over stand-ins of what it needs.

    Returns:
        the names of the entry points that are routed.
    """
    if standins:
        _standins.add()
    if _routing.installed:
        return _routing.refresh()
    _routing.installed = True
    try:
        return _routing.enter()
    except BaseException:
        uninstall()
        raise


def uninstall() -> None:
    """Undo `install`: restore entry points and remove stand-in modules; harmless otherwise."""
    if _routing.installed:
        _routing.installed = False
        _routing.leave()
    _standins.remove()


class _Routing:
    """The routes that are open, and how many blocks want them."""

    def __init__(self) -> None:
        self.installed = False
        self._lock = threading.RLock()
        self._blocks = 0
        self._routes: dict[int, _Route] = {}
        # What was made from an original when it was replaced (a partial, a bound `apply`).
        self._derived: dict[int, tuple[Any, Any]] = {}
        self._methods: dict[str, tuple[type, str, Function]] = {}

    def enter(self) -> tuple[str, ...]:
        with self._lock:
            self._blocks += 1
            return self.refresh()

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._restore()

    def refresh(self) -> tuple[str, ...]:
        """Route what has been imported since the last time; returns the names of all routes."""
        with self._lock:
            found = [r for r in _find_routes() if id(r.original) not in self._routes]
            self._routes.update({id(r.original): r for r in found})
            for route in found:
                if isinstance(route.original, type):
                    route.original.apply = staticmethod(route.replacement)  # type: ignore[attr-defined]
            self._swap({key: route.replacement for key, route in self._routes.items()})
            self._route_methods()
            ours = (r.name for r in self._routes.values() if r.family is not None)
            return tuple(sorted([*ours, *self._methods]))

    def _route_methods(self) -> None:
        for module, kind, name, replacement in METHODS:
            owner: Any = getattr(sys.modules.get(module), kind, object)
            label = f"{module}.{kind}.{name}"
            if label not in self._methods and name in vars(owner):
                self._methods[label] = (owner, name, getattr(owner, name))
                setattr(owner, name, _without_cache(getattr(owner, name), replacement))

    def _restore(self) -> None:
        routes = self._routes.values()
        back = {id(r.replacement): r.original for r in routes if not isinstance(r.original, type)}
        back.update({id(new): old for new, old in self._derived.values()})
        for route in routes:
            if isinstance(route.original, type):
                del route.original.apply  # type: ignore[attr-defined]
        self._swap(back)
        for owner, name, method in self._methods.values():
            setattr(owner, name, method)
        self._routes, self._derived, self._methods = {}, {}, {}

    def _swap(self, table: dict[int, Any]) -> None:
        """Replace the keys' objects, and what is made of them, in every namespace."""
        if not table:
            return
        for namespace in _namespaces():
            for name, value in list(namespace.items()):
                new = self._exchange(value, table)
                if new is not None:
                    namespace[name] = new

    def _exchange(self, value: Any, table: dict[int, Any]) -> Any:
        # `type`, not `isinstance`: proxies answer that with a warning or an import.
        kind = type(value)
        if id(value) in table:
            # An autograd Function keeps its place: its `apply` is what changes.
            return None if issubclass(kind, type) else table[id(value)]
        if kind is functools.partial and id(value.func) in table:
            new: Any = functools.partial(table[id(value.func)], *value.args, **value.keywords)
        elif kind is MethodType and value.__name__ == "apply":
            new = table.get(id(value.__self__))
        else:
            return None
        if new is not None:
            self._derived[id(new)] = (new, value)
        return new


_routing = _Routing()
_standins = Standins()


def _namespaces() -> Iterator[dict[str, Any]]:
    """Where names may refer to an entry point: modules, and attributes of live nn.Modules."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            yield vars(module)
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module):
            yield vars(thing)


def _find_routes() -> list[_Route]:
    """Routes of all entry points that modules hold, checked where their name is not enough."""
    holders: dict[int, set[str]] = {}
    found: dict[int, Any] = {}
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        for value in list(vars(module).values()):
            if _is_entry_point(value):
                found[id(value)] = value
                holders.setdefault(id(value), set()).add(module.__name__)

    routes, unchecked = [], []
    trusted: set[tuple[Function, str]] = set()  # families proved right, by module that holds one
    for key, value in found.items():
        family = BY_NAME.get(value.__name__)
        if family is None:
            routes.append(_Route(value, _explained(value)))
            continue
        unlike = _unlike(value, family)
        if unlike is not None:
            if value.__name__ not in COMMON_NAMES:
                _warn(value, f"has the name of a known entry point, but {unlike}")
            continue
        route = _Route(value, _replacement(value, family), family)
        verdict = _behaves(route, family)
        if verdict is None:
            unchecked.append((route, family))
        elif verdict:
            routes.append(route)
            trusted.update((_order(family), holder) for holder in holders[key])
        elif "cross" in value.__name__.lower():
            _warn(value, "goes over the map in another order than VMamba's")
    for route, family in unchecked:
        # A Triton kernel can't run here; the PyTorch form that stands beside it has been compared.
        beside = ((_order(family), h) for h in holders[id(route.original)])
        if trusted.intersection(beside):
            routes.append(route)
        else:
            _warn(route.original, "goes over the map in an order that can't be checked here")
    return routes


def _is_entry_point(value: Any) -> bool:
    if not issubclass(type(value), FunctionType | type):
        return False
    family = BY_NAME.get(value.__name__)
    if family is None and value.__name__ not in OTHER_SCANS:
        return False
    if value.__module__.startswith("tfanet.plugins.") or hasattr(value, "_tfanet_route"):
        return False  # our own, and stand-ins
    if isinstance(value, FunctionType):
        return family is None or value.__name__ in family.functions
    return (
        family is not None
        and value.__name__ in family.classes
        and issubclass(value, torch.autograd.Function)
    )


def _parameters(value: Any, family: Family) -> tuple[list[inspect.Parameter], list[str], bool]:
    """The named parameters of an entry point, what the family calls them, and whether more come."""
    signature = inspect.signature(getattr(value, "forward", value))
    parameters = [p for p in signature.parameters.values() if p.name != "ctx"]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return named, [_known(p.name, family) for p in named], open_ended


def _known(name: str, family: Family) -> str:
    target = inspect.signature(family.implementation).parameters
    return name if name in target else family.aliases.get(name, name)


def _unlike(value: Any, family: Family) -> str | None:
    """In words, the first parameter by which an entry point is not of the family; else None."""
    named, names, _ = _parameters(value, family)
    target = inspect.signature(family.implementation).parameters
    for name, parameter in target.items():
        if parameter.default is parameter.empty and name not in names:
            return f"no parameter {name!r}"
    for name, parameter in zip(names, named, strict=True):
        if name not in {*target, *family.ignored} and parameter.default is parameter.empty:
            return f"a parameter {parameter.name!r}, which that does not have"
    return None


def _replacement(value: Any, family: Family) -> Function:
    """What stands in for an entry point, with its own parameters."""
    named, names, open_ended = _parameters(value, family)
    target = inspect.signature(family.implementation).parameters
    defaults = {n: p.default for n, p in zip(names, named, strict=True) if p.default is not p.empty}
    understood = {*target, *family.ignored}
    label = f"{value.__module__}.{value.__qualname__}"

    @functools.wraps(value, updated=())
    def routed(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names) and not open_ended:
            raise TypeError(f"{label}() takes {len(names)} arguments, {len(args)} were given")
        given = {**dict(zip(names, args, strict=False))}
        given.update({_known(n, family): kwargs[n] for n in kwargs})
        for n, argument in given.items():
            if n not in understood and argument is not defaults.get(n):
                raise InputError(
                    f"{label}: the argument {n!r} has no meaning for the operator that stands in "
                    "for it; leave it out, or run this model without tfanet.plugins.exportable"
                )
        values = {**defaults, **given}
        return family.implementation(**{n: v for n, v in values.items() if n in target})

    routed._tfanet_route = True  # type: ignore[attr-defined]
    return routed


def _explained(value: Any) -> Function:
    """Mamba-2's function as it is; where it can't run here, the error says why."""
    label = f"{value.__module__}.{value.__qualname__}"

    @functools.wraps(value, updated=())
    def routed(*args: Any, **kwargs: Any) -> Any:
        try:
            return value(*args, **kwargs)
        except Exception as error:  # whatever a kernel without its device raises
            raise InputError(
                f"{label} is Mamba-2's or Mamba-3's scan, not tfanet::SelectiveScan, "
                "and can't run here: use its PyTorch form, which is exported as standard operators"
            ) from error

    routed._tfanet_route = True  # type: ignore[attr-defined]
    return routed


def _without_cache(method: Function, replacement: Function) -> Function:
    """The replacement, for calls that give no `cache_params`; decoding keeps the method."""

    @functools.wraps(method)
    def routed(
        self: Any, input_states: Any, cache_params: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if cache_params is not None:
            return method(self, input_states, cache_params, *args, **kwargs)
        bound = inspect.signature(method).bind(self, input_states, None, *args, **kwargs)
        return replacement(self, input_states, bound.arguments.get("attention_mask"))

    return routed


def _behaves(route: _Route, family: Family) -> bool | None:
    """Whether an original gives what its replacement does; None where that must be seen elsewhere.

    Families without a probe are trusted: no code is known that gives their names another meaning.
    So is a cross-scan that has VMamba's flags in its signature, where it can't run here.
    """
    probe = family.probe
    if probe is None:
        return True
    call = getattr(route.original, "apply", route.original)
    expected = route.replacement(*probe())
    try:
        with torch.no_grad():
            result = call(*probe())
    except Exception:  # whatever a kernel without its device raises
        flags = inspect.signature(getattr(route.original, "forward", route.original)).parameters
        return True if "in_channel_first" in flags else None
    return bool(result.shape == expected.shape and torch.equal(result, expected))


def _order(family: Family) -> Function:
    """What two families share that go over the map in the same way."""
    implementation = family.implementation
    return implementation.func if isinstance(implementation, functools.partial) else implementation


def _warn(value: Any, reason: str) -> None:
    what = "call tfanet.plugins.selective_scan in it if it is a selective scan"
    hint = "" if "cross" in value.__name__.lower() else f"; {what}"
    warnings.warn(
        f"{value.__module__}.{value.__qualname__} {reason}: it is left as it is{hint}", stacklevel=6
    )
