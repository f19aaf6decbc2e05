"""The rules of the house: which room may know which. CONTRIBUTING.md says why.

Rooms are the folders directly below `tfanet`. What is read are the imports in the sources, those
inside functions and for type checkers included.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest
from imports import ROOT, Import, all_imports, modules, packages

import tfanet

LEAVES = ("errors", "files", "progress")  # modules that every room may know, and that know none
BOTTOM = ("errors", "files")  # those of them that plugins and the runtime need
STUBS = {name: folder / "__init__.pyi" for name, folder in packages().items()}
PUBLIC = {name: stub for name, stub in STUBS.items() if stub.is_file()}
LAZY = [
    "from __future__ import annotations",
    "import lazy_loader",
    "__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)",
]
# The parts of export that know TFANet; the others take any model.
TFANET_EXPORT = ("tfanet.export.bundle", "tfanet.export.graphs", "tfanet.export.parity")


def room(module: str) -> str:
    """`plugins` for tfanet.plugins.graph.attach, "" for tfanet itself."""
    return [*module.split("."), ""][1]


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def from_room(*names: str) -> list[Import]:
    found = [i for i in all_imports() if room(i.importer) in names]
    assert found, f"no imports in {names}"
    return found


def listed(found: list[Import]) -> list[str]:
    return [str(one) for one in found]


def test_leaves_know_nothing():
    wrong = [i for i in all_imports() if room(i.importer) in LEAVES]
    assert not wrong, listed(wrong)


def test_plugins_know_errors_and_how_files_are_written():
    wrong = [i for i in from_room("plugins") if room(i.module) not in ("plugins", *BOTTOM)]
    assert not wrong, listed(wrong)


def test_the_runtime_knows_no_more_of_plugins_than_where_libraries_are():
    wrong = [
        i
        for i in from_room("runtime")
        if room(i.module) not in ("runtime", *BOTTOM)
        and (i.module, i.name) != ("tfanet", "__version__")
        and i.module != "tfanet.plugins.libraries"
    ]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("name", ["model", "data"])
def test_the_model_and_the_data_stand_on_plugins_and_the_runtime(name):
    allowed = (name, "plugins", "runtime", *LEAVES, "weights")
    wrong = [i for i in from_room(name) if room(i.module) not in allowed]
    assert not wrong, listed(wrong)


def test_calibration_never_imports_export_nor_the_model():
    forbidden = ("export", "model", "training", "bench", "cli")
    wrong = [i for i in from_room("calibration") if room(i.module) in forbidden]
    assert not wrong, listed(wrong)


def test_export_imports_neither_training_nor_the_command_line():
    wrong = [i for i in from_room("export") if room(i.module) in ("training", "bench", "cli")]
    assert not wrong, listed(wrong)


def test_only_its_own_part_of_export_knows_tfanet():
    wrong = [
        i
        for i in from_room("export")
        if room(i.module) == "model" and not within(i.importer, *TFANET_EXPORT)
    ]
    assert not wrong, listed(wrong)
    generic = [i for i in all_imports() if within(i.importer, "tfanet.export.user_model")]
    wrong = [i for i in generic if within(i.module, *TFANET_EXPORT)]
    assert generic and not wrong, listed(wrong)


def test_nothing_knows_the_command_line():
    wrong = [
        i
        for i in all_imports()
        if room(i.module) == "cli" and room(i.importer) not in ("cli", "__main__")
    ]
    assert not wrong, listed(wrong)


def test_no_two_rooms_import_each_other():
    """Not even around several corners: there is an order in which each needs earlier ones only."""
    needs: dict[str, set[str]] = {room(module): set() for module in modules()}
    for found in all_imports():
        importer, imported = room(found.importer), room(found.module)
        if imported not in ("", importer):
            needs[importer].add(imported)
    done: set[str] = set()
    while ready := [name for name in needs.keys() - done if needs[name] <= done]:
        done.update(ready)
    assert needs.keys() == done, {name: needs[name] - done for name in needs.keys() - done}


def test_no_private_name_crosses_a_file():
    def private(name: str) -> bool:
        return name.startswith("_") and not name.endswith("__")

    wrong = [
        str(i) for i in all_imports() if any(map(private, [*i.module.split("."), i.name or ""]))
    ]
    for name, file in modules().items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.level or (node.module or "").partition(".")[0] == "tfanet")
            for alias in node.names
        }
        wrong += [
            f"{name}, line {node.lineno}, uses {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in imported
            and private(node.attr)
        ]
    assert not wrong, wrong


def test_packages_hold_a_docstring_and_the_list_of_their_names():
    for name, folder in packages().items():
        if name == "tfanet":  # which also sets the version and switches telemetry off
            continue
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{name} has no docstring"
        rest = [ast.unparse(node) for node in tree.body[1:]]
        assert rest in ([], LAZY if name in PUBLIC else []), name


def test_every_module_says_what_it_is():
    wrong = [
        name
        for name, file in modules().items()
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not wrong, wrong


def test_docstrings_cite_what_exists():
    """A function or argument in backticks is defined or used in the code, not only in prose."""
    trees = {name: ast.parse(file.read_text()) for name, file in modules().items()}
    known = set().union(*(identifiers(tree) for tree in trees.values()))
    wrong = [
        f"{name} cites `{cited}`"
        for name, tree in trees.items()
        for text in docstrings(tree)
        for cited in re.findall(r"`(\w+_\w+)`", text)
        if cited not in known
    ]
    assert not wrong, "\n".join(wrong)


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            yield ast.get_docstring(node) or ""


def identifiers(tree: ast.AST) -> set[str]:
    """Names, arguments and words of strings, but for docstrings."""
    found = set()
    prose = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, DOCUMENTED) and n.body and isinstance(n.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            found.add(str(getattr(node, field, "")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.update(re.findall(r"\w+", node.value))
        if isinstance(node, ast.alias):
            found.update(node.name.split("."))
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_dir_shows_the_public_names_and_each_is_there(name):
    tree = ast.parse(PUBLIC[name].read_text(encoding="utf-8"))
    names = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    package = importlib.import_module(name)
    assert len(names) == len(set(names)) and dir(package) == sorted(names)
    for one in names:
        assert getattr(package, one) is not None


def test_the_checkout_is_not_on_the_packages_path():
    assert len(list(tfanet.__path__)) == 1
    for name in ("tfanet.tfanet", "tfanet.setup", "tfanet.tests"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_folders_and_packages_are_one_tree():
    """Links make the top-level folders packages of tfanet: no path is set at run time."""
    links = sorted(p.name for p in (ROOT / "tfanet").iterdir() if p.is_symlink())
    assert links == ["calibration", "export", "plugins", "runtime"]
    for name in links:
        assert (ROOT / "tfanet" / name).resolve() == ROOT / name
