"""Reads which module of tfanet imports which, from the sources alone: nothing is imported.

Imports inside functions and for type checkers count too: what a module knows is the question, not
when it learns it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Import:
    """One name that a file takes from a module of tfanet."""

    importer: str
    module: str
    name: str | None  # None for `import module`, or when the name is itself a module
    line: int

    def __str__(self) -> str:
        what = f"{self.name} of {self.module}" if self.name else self.module
        return f"{self.importer}, line {self.line}, imports {what}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages and its file; `tfanet.export` is in the folder `export`."""
    found = {}
    for folder in packages().values():
        for file in sorted(folder.glob("*.py")):
            found[module_name(file)] = file
    return found


@cache
def packages() -> dict[str, Path]:
    """Every package and its folder, by what lies there."""
    tops = {"tfanet": ROOT / "tfanet"}
    tops |= {f"tfanet.{link.name}": link.resolve() for link in _links()}
    found = {}
    for name, top in tops.items():
        for init in sorted(top.rglob("__init__.py")):
            inner = init.parent.relative_to(top).parts
            found[".".join((name, *inner))] = init.parent
    return dict(sorted(found.items()))


def module_name(file: Path) -> str:
    """The name by which a file of a package is imported."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "tfanet":
        parts.insert(0, "tfanet")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _links() -> list[Path]:
    return sorted(path for path in (ROOT / "tfanet").iterdir() if path.is_symlink())


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    """What one module takes from other modules of tfanet, in the order of its lines."""
    file = modules()[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            taken = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base) + "." if node.level else ""
            module = (prefix + (node.module or "")).rstrip(".")
            taken = [
                (f"{module}.{alias.name}", None)
                if f"{module}.{alias.name}" in modules()
                else (module, alias.name)
                for alias in node.names
            ]
        else:
            continue
        found += [
            Import(name, module, alias, node.lineno)
            for module, alias in taken
            if module.partition(".")[0] == "tfanet"
        ]
    return tuple(sorted(found, key=lambda found: found.line))


def all_imports() -> list[Import]:
    return [found for name in modules() for found in imports_of(name)]
