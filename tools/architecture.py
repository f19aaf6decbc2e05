"""Draws docs/dev/architecture.svg: the packages of tfanet, and which of them import which.

    python tools/architecture.py           # writes the picture
    python tools/architecture.py --check   # exit code 1 where it is not what the imports say

An arrow leads from a package to one that it imports. It is left out where a chain of other arrows
says the same. Arrows between rooms are drawn once for the whole room.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from imports import ROOT, all_imports, modules, packages

PICTURE = ROOT / "docs" / "dev" / "architecture.svg"
CHARACTER, LINE, PAD = 6.7, 15, 12  # of the 11 pixel monospace font; of a line; inside a box
GAP_X, GAP_Y = 26, 40
LETTERS = 26  # in a line of module names

Edges = set[tuple[str, str]]
Point = tuple[float, float]


@dataclass
class Box:
    """A package: its lines of text, and the packages in it, already placed."""

    title: str
    lines: list[str] = field(default_factory=list)
    inner: Layout | None = None

    @property
    def head(self) -> float:
        return PAD + LINE * (1 + len(self.lines))

    @property
    def size(self) -> tuple[float, float]:
        width = max(len(self.title) * 1.2, *map(len, self.lines), 0) * CHARACTER
        if self.inner is None:
            return width + 2 * PAD, self.head + PAD
        return max(width, self.inner.width) + 2 * PAD, self.head + 2 * PAD + self.inner.height


def reach(nodes: Iterable[str], edges: Edges) -> dict[str, set[str]]:
    """For every node, all nodes that it reaches."""
    reached = {node: {b for a, b in edges if a == node} for node in nodes}
    for middle in reached:
        for node in reached:
            if middle in reached[node]:
                reached[node] |= reached[middle]
    return reached


def reduced(nodes: Iterable[str], edges: Edges) -> Edges:
    """Without the edges that a chain of others implies. Edges of a cycle are all kept."""
    reached = reach(nodes, edges)

    def implied(a: str, b: str) -> bool:
        return any(
            c != b and b in reached[c] and a not in reached[c] and c not in reached[b]
            for x, c in edges
            if x == a
        )

    return {(a, b) for a, b in edges if a in reached[b] or not implied(a, b)}


class Layout:
    """Boxes in layers, importers above what they import; long arrows pass between the boxes."""

    def __init__(self, boxes: dict[str, Box], edges: Edges) -> None:
        self.boxes, self.edges = boxes, reduced(boxes, edges)
        layer = self._layers()
        self.paths: dict[tuple[str, str], list[str]] = {}
        self.rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
        for name in sorted(boxes):
            self.rows[layer[name]].append(name)
        for a, b in sorted(self.edges):
            bends = [f"{a}>{b}@{n}" for n in range(layer[a] + 1, layer[b])]
            for n, bend in enumerate(bends, layer[a] + 1):
                self.rows[n].append(bend)
            self.paths[a, b] = [a, *bends, b]
        self._order()
        self._place()

    def _layers(self) -> dict[str, int]:
        reached = reach(self.boxes, self.edges)
        layer = dict.fromkeys(self.boxes, 0)
        for _ in self.boxes:
            for a, b in self.edges:
                if a not in reached[b]:
                    layer[b] = max(layer[b], layer[a] + 1)
            for a in self.boxes:  # what imports each other stands side by side
                for b in reached[a]:
                    if a in reached[b]:
                        layer[a] = layer[b] = max(layer[a], layer[b])
        return layer

    def _order(self) -> None:
        near: dict[str, list[str]] = {}
        for path in self.paths.values():
            for a, b in pairwise(path):
                near.setdefault(a, []).append(b)
                near.setdefault(b, []).append(a)
        for sweep in range(8):
            rows = self.rows[1:] if sweep % 2 == 0 else self.rows[-2::-1]
            for row in rows:
                place = {n: i / len(r) for r in self.rows if r is not row for i, n in enumerate(r)}

                def middle(name: str, place: dict[str, float] = place) -> float:
                    known = [place[n] for n in near.get(name, ()) if n in place]
                    return sum(known) / len(known) if known else 0.5

                row.sort(key=lambda name: (round(middle(name), 6), name))

    def _place(self) -> None:
        sizes = {n: self.boxes[n].size if n in self.boxes else (4, 0) for r in self.rows for n in r}
        widths = [sum(sizes[n][0] + GAP_X for n in row) - GAP_X for row in self.rows]
        self.width = max(widths, default=0)
        self.at: dict[str, Point] = {}
        self.below: dict[str, float] = {}  # the lower edge of a box's row
        y = 0.0
        for row, width in zip(self.rows, widths, strict=True):
            gap = (self.width - width) / (len(row) + 1)
            x, height = gap, max(sizes[n][1] for n in row)
            for name in row:
                self.at[name] = (round(x, 1), round(y, 1))
                x += sizes[name][0] + GAP_X + gap
            for name in row:
                self.below[name] = y + height
                if name not in self.boxes:
                    sizes[name] = (4, height)
            y += height + GAP_Y
        self.height = y - GAP_Y
        self.sizes = sizes

    def svg(self, x: float, y: float, depth: int = 0) -> list[str]:
        out = []
        for name, box in sorted(self.boxes.items()):
            left, top = x + self.at[name][0], y + self.at[name][1]
            width, height = box.size
            out.append(
                f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="6" '
                f'class="{"sub" if depth else "room"}"/>'
            )
            baseline = top + PAD + 9
            out.append(f'<text x="{left + PAD:g}" y="{baseline:g}" class="name">{box.title}</text>')
            for n, line in enumerate(box.lines, 1):
                out.append(
                    f'<text x="{left + PAD:g}" y="{baseline + n * LINE:g}">{escape(line)}</text>'
                )
            if box.inner:
                shift = (width - box.inner.width) / 2
                out += box.inner.svg(left + shift, top + box.head + PAD, depth + 1)
        return out + [self._arrow(x, y, path) for _, path in sorted(self.paths.items())]

    def _arrow(self, x: float, y: float, path: list[str]) -> str:
        def end(name: str, bottom: bool) -> Point:
            (left, top), (width, height) = self.at[name], self.sizes[name]
            return x + left + width / 2, y + top + (height if bottom else 0)

        def side(name: str, right: bool) -> Point:
            (left, top), (width, height) = self.at[name], self.sizes[name]
            return x + left + (width if right else 0), y + top + height / 2

        first, last = path[0], path[-1]
        if self.at[first][1] == self.at[last][1]:  # they import each other
            right = self.at[first][0] < self.at[last][0]
            (x0, y0), (x1, y1) = side(first, right), side(last, not right)
            shift = -5 if right else 5
            return f'<path d="M{x0:g},{y0 + shift:g} L{x1:g},{y1 + shift:g}" class="arrow"/>'
        start = end(first, True)
        here = start[0], y + self.below[first]
        d = f"M{start[0]:g},{start[1]:g} L{here[0]:g},{here[1]:g}"
        for name in path[1:]:
            there = end(name, False)
            half = (here[1] + there[1]) / 2
            d += f" C{here[0]:g},{half:g} {there[0]:g},{half:g} {there[0]:g},{there[1]:g}"
            if name != last:
                here = end(name, True)
                d += f" L{here[0]:g},{here[1]:g}"
        return f'<path d="{d}" class="arrow"/>'


def room_of(module: str) -> str:
    """The room that a module is in; "" for the modules beside the rooms."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and f"tfanet.{parts[1]}" in packages() else ""


def sub_room_of(module: str) -> str:
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and ".".join(parts[:3]) in packages() else ""


def files_in(package: str, letters: int = LETTERS) -> list[str]:
    """Names of a package's modules, in lines of so many letters."""
    names = [m.rpartition(".")[2] for m in modules() if m.rpartition(".")[0] == package]
    names = [n for n in names if f"{package}.{n}" not in packages() and not n.startswith("__")]
    return textwrap.wrap(", ".join(names), letters)


def room(name: str) -> Box:
    package = f"tfanet.{name}"
    subs = [p.rpartition(".")[2] for p in packages() if p.rpartition(".")[0] == package]
    title = f"{name}/"
    if not subs:
        return Box(title, files_in(package))
    edges = {
        (sub_room_of(found.importer), sub_room_of(found.module))
        for found in all_imports()
        if room_of(found.importer) == room_of(found.module) == name
    }
    edges = {(a, b) for a, b in edges if a and b and a != b}
    boxes = {sub: Box(f"{sub}/", files_in(f"{package}.{sub}")) for sub in subs}
    inner = Layout(boxes, edges)
    letters = max(LETTERS, int(inner.width / CHARACTER))
    return Box(title, files_in(package, letters), inner)


def picture() -> str:
    """The whole file."""
    rooms = {name: room(name) for name in sorted({room_of(m) for m in modules()} - {""})}
    edges = {(room_of(found.importer), room_of(found.module)) for found in all_imports()}
    layout = Layout(rooms, {(a, b) for a, b in edges if a and b and a != b})
    width, height = layout.width + 2 * PAD, layout.height + 2 * PAD
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}">',
            "<title>The packages of tfanet; arrows lead to what is imported</title>",
            "<!-- Made by tools/architecture.py. Do not edit. -->",
            "<defs>",
            '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#456"/></marker>',
            "</defs>",
            "<style>",
            "text { font: 11px monospace; fill: #234 }",
            ".name { font-weight: bold; font-size: 13px }",
            ".room { fill: #f4f6f8; stroke: #456 } .sub { fill: #fff; stroke: #9ab }",
            ".arrow { fill: none; stroke: #456; marker-end: url(#head) }",
            "</style>",
            f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
            *layout.svg(PAD, PAD),
            "</svg>",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    drawn = picture()
    if not parser.parse_args().check:
        PICTURE.write_text(drawn, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != drawn:
        raise SystemExit(
            f"{PICTURE.relative_to(ROOT)} is not what the imports say: run "
            "`python tools/architecture.py`, and look at which arrow is new"
        )


if __name__ == "__main__":
    main()
