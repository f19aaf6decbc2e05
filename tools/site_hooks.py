"""What MkDocs does not do by itself for the site of docs/ (mkdocs.yml names this file as a hook).

- Pages that lie elsewhere in the repository, as `SECURITY.md`, are pages of the site too.
- A link to any other file of the repository becomes its name: the site does not hold it.
- "sh run" and "python run" are marks for tests: to MkDocs such a block is "sh" or "python".
- `::: tfanet.runtime` stands for everything public in that package, as its `__init__.pyi` has it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "checkpoints/README.md",
    "runtime/cpp/README.md",
    "tfanet/assets/README.md",
)
RESULTS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("benchmarks/results/*.md"))
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_MEMBERS = re.compile(r"^::: (tfanet\.[\w.]+)$", flags=re.M)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File, InclusionLevel

    for name in (*ELSEWHERE, *RESULTS):
        file = File.generated(config, name, content=(ROOT / name).read_text())
        if name in RESULTS:  # the page of figures leads to them
            file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    name = page.file.src_uri
    place = name if name in (*ELSEWHERE, *RESULTS) else f"docs/{name}"
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)  # links stand outside code
    parts[::2] = [_LINK.sub(lambda m: _link(m, name, place, files), part) for part in parts[::2]]
    text = re.sub(r"^```(sh|python) run.*$", r"```\1", "".join(parts), flags=re.M)
    return _MEMBERS.sub(lambda m: _members(m[1]), text)


def _link(match: re.Match[str], name: str, place: str, files: Any) -> str:
    """A link as it is on the page `name` of the site, which is `place` in the repository."""
    image, text, target = match.groups()
    file, hash_, heading = target.partition("#")
    if not file or re.match(r"[a-z]+:", file):
        return match[0]
    leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(place), file))
    here = leads_to.removeprefix("docs/")
    # README's page is the first one of the site, which is docs/README.md.
    here = "README.md" if leads_to == "README.md" else here
    if files.get_file_from_path(here) is None or (leads_to == "README.md" and heading):
        return text
    relative = posixpath.relpath(here, posixpath.dirname(name) or ".")
    return f"{image}[{text}]({relative}{hash_}{heading})"


def _members(package: str) -> str:
    """A directive for each public name of a package, or for the module itself."""
    names = public_names(package)
    return "\n\n".join(f"::: {name}" for name in names) if names else f"::: {package}"


def public_names(package: str) -> list[str]:
    """Where each name of a package's `__init__.pyi` is defined, in order."""
    folder = ROOT.joinpath(*package.split("."))
    if not (folder / "__init__.pyi").is_file():
        return []
    found = []
    for node in ast.parse((folder / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            module = f"{package}.{node.module}"
            inner = {name.rpartition(".")[2]: name for name in public_names(module)}
            found += [inner.get(a.name, f"{module}.{a.name}") for a in node.names]
    return found
