"""How stand-ins become importable: where the real package is not there, or can't be imported.

A finder behind Python's own answers for what nothing else finds. So a project's own `mamba_ssm` is
used as it is, over stand-ins of the extensions that it needs. Only what is there and can't be
imported even so is replaced, with a warning; `Standins.used` tells what was, and why.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from tfanet.errors import InputError
from tfanet.plugins.compat.standins import (
    OTHER_SCANS,
    PACKAGES,
    is_other_module,
    unknown_extension,
)

__all__ = ["Standins", "standin_users"]

_MARK = "__tfanet_standin__"  # in a stand-in module: the package that it is of
_NOT_INSTALLED = "not installed"
# Why a package has a stand-in, for as long as the process lives: what imported one keeps it.
_reasons: dict[str, str] = {}


class _Loader(Loader):
    """Fills stand-in modules."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name, f"Stand-in of {spec.name} by tfanet.")

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        package = name.partition(".")[0]
        setattr(module, _MARK, package)
        _reasons.setdefault(package, _NOT_INSTALLED)
        if package == "triton":
            parts: dict[str, Any] = _triton(name)
        elif package in PACKAGES:
            parts = {**PACKAGES[package].get(name, {}), "__getattr__": _missing(name)}
        else:
            parts = unknown_extension(name) or {}
        vars(module).update(parts)
        if name == package and package in PACKAGES:
            for part in PACKAGES[package]:  # as the real package does
                importlib.import_module(part)


class _Finder(MetaPathFinder):
    """Finds stand-ins. `last` in line it answers for all, first in line for `broken` packages."""

    def __init__(self, last: bool) -> None:
        self.last, self.broken, self.loading = last, set[str](), False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if not (self.last or package in self.broken):
            return None
        if package == "triton":
            known = self.loading and _asked_by_a_project()
        else:
            known = (
                fullname in PACKAGES.get(package, {})
                or is_other_module(fullname)
                or unknown_extension(fullname) is not None
            )
        if not known or not _is_standin(package, fullname):
            return None
        # A package, so that its parts are found.
        return ModuleSpec(fullname, _LOADER, origin="a stand-in of tfanet", is_package=True)


_LOADER = _Loader()


class Standins:
    """The stand-ins that can be imported between `add` and `remove`."""

    def __init__(self) -> None:
        self._first, self._last = _Finder(last=False), _Finder(last=True)

    def add(self) -> None:
        """Make importable what isn't; call it again after the path has changed.

        Warns:
            UserWarning: where a package is there and can't be imported, not even over stand-ins of
                its extensions: a stand-in then takes its place.
        """
        importlib.invalidate_caches()
        if self._last not in sys.meta_path:
            sys.meta_path.insert(0, self._first)
            sys.meta_path.append(self._last)
        with self.loading():
            for package in PACKAGES:
                if package not in sys.modules and package not in self._first.broken:
                    self._try(package)

    def remove(self) -> None:
        """Take away the finders and the stand-in modules; what has imported them keeps them."""
        for finder in (self._first, self._last):
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        self._first.broken.clear()
        for name, module in list(sys.modules.items()):
            if _MARK in getattr(module, "__dict__", {}):
                del sys.modules[name]

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While a project's code is imported it also finds a Triton, none of whose kernels run.

        Not for longer, and nobody else: PyTorch would take it for the real one.
        """
        if self._last.loading or importlib.util.find_spec("triton") is not None:
            yield
            return
        from torch.utils._triton import has_triton_package

        has_triton_package()  # keeps its first answer
        self._last.loading = True
        try:
            yield
        finally:
            self._last.loading = False
            for name in [n for n in sys.modules if n.partition(".")[0] == "triton"]:
                if _MARK in vars(sys.modules[name]):
                    del sys.modules[name]

    def used(self) -> dict[str, str]:
        """Why, by name, for each package whose stand-in a module of this process has imported."""
        found = {package for _, package in standin_users()}
        return {name: _reasons.get(name, _NOT_INSTALLED) for name in sorted(found)}

    def reason(self, package: str) -> str | None:
        """Why a package that has been imported is a stand-in; None where it is not."""
        module = sys.modules.get(package)
        return _reasons.get(package) if module is not None and _MARK in vars(module) else None

    def _try(self, package: str) -> None:
        """Import a package that is there; where that fails, a stand-in is to take its place."""
        spec = importlib.util.find_spec(package)
        if spec is None or spec.loader is _LOADER:
            _reasons[package] = _NOT_INSTALLED
            return
        before = set(sys.modules)
        try:
            importlib.import_module(package)
            for part in PACKAGES[package]:  # some need Triton, which is there for now only
                with suppress(Exception):
                    importlib.import_module(part)
            return
        except Exception as error:  # whatever a half-installed extension raises
            line = (str(error).strip() or "no message").splitlines()[0]
            reason = f"{type(error).__name__}: {line}"
        for name in set(sys.modules) - before:
            if name.split(".")[0] == package:
                del sys.modules[name]
        self._first.broken.add(package)
        _reasons[package] = f"{spec.origin or 'the package'} can't be imported: {reason}"
        warnings.warn(
            f"{package} is replaced by a stand-in of tfanet, which computes what the official "
            f"{package} does: {_reasons[package]}; if it is the project's own, make it importable",
            stacklevel=4,
        )


def standin_users() -> Iterator[tuple[str, str]]:
    """Modules of this process that hold a part of a stand-in, and the package it stands for."""
    ours = {
        id(member): package
        for package, modules in PACKAGES.items()
        for members in modules.values()
        for member in members.values()
    }
    for name, module in list(sys.modules.items()):
        held = getattr(module, "__dict__", {})
        if name.startswith("tfanet.") or _MARK in held:
            continue
        for value in list(held.values()):
            # `type`, not `isinstance`: proxies answer that with a warning or an import.
            if issubclass(type(value), ModuleType):
                package = vars(value).get(_MARK)
            else:
                package = ours.get(id(value))
            if package is not None:
                yield name, package


def _is_standin(package: str, name: str) -> bool:
    """Whether a part would belong to a stand-in: the real package's missing parts stay missing."""
    module = sys.modules.get(package)
    return name == package or module is None or _MARK in vars(module)


def _asked_by_a_project() -> bool:
    """Whether the import comes from a project's file or a package that we know, not a library's."""
    frame: FrameType | None = sys._getframe(2)
    name, found = "importlib", dict[str, Any]()
    while frame is not None and name in ("importlib", "_frozen_importlib"):
        found = frame.f_globals
        name = str(found.get("__name__", "")).partition(".")[0]
        frame = frame.f_back
    file = Path(str(found.get("__file__", "")))
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return name in PACKAGES or not (installed or name in ("torch", "tfanet"))


def _missing(module: str) -> Any:
    """`__getattr__` of a stand-in module: says what is not there, and why."""

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in OTHER_SCANS or is_other_module(module):
            raise ImportError(
                f"the stand-in of mamba_ssm has no {name}: Mamba-2 and Mamba-3 use other scans "
                "than tfanet::SelectiveScan; install mamba-ssm to run it"
            )
        raise AttributeError(name)

    return missing


class _TritonName:
    """Whatever a file needs of Triton while it is imported; what becomes a kernel can't be run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _TritonName(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As a decorator, with arguments or without.
        return _TritonKernel(args[0]) if len(args) == 1 and callable(args[0]) else self


class _TritonKernel:
    def __init__(self, function: Any) -> None:
        self.__name__ = getattr(function, "__name__", "a kernel")

    def __getitem__(self, grid: Any) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise InputError(
            f"the Triton kernel {self.__name__} can't run here: triton is not installed, and no "
            "known entry point stands before it; use the model's PyTorch form of it"
        )


def _triton(module: str) -> dict[str, Any]:
    def attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _TritonName(f"{module}.{name}")

    return {
        "__version__": "0.0.0",
        "__getattr__": attribute,
        "cdiv": lambda x, y: -(-x // y),
        "next_power_of_2": lambda n: 1 << max(n - 1, 0).bit_length(),
    }
