"""What every verb shares: how it is added, with its examples and `--json`; tables."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tfanet.cli.logs import add_log_options
from tfanet.errors import plain

__all__ = ["SHARED", "Verbs", "add_verb", "parity_table", "table"]

Verbs = Any  # argparse keeps the type of its sub-parsers private
Result = tuple[Any, str]


# What a parsed command line holds beside the verb's own options.
SHARED = ("verb", "run", "package", "json", "verbose", "quiet", "log_file")


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], Result],
    *,
    examples: Sequence[str] = (),
    extra: str | None = "export",
) -> argparse.ArgumentParser:
    """Add a verb whose help is `run`'s docstring.

    `run` returns what `--json` prints and the text for people. `examples` are whole commands, shown
    below the options. `extra` is the part of tfanet to install when a module is missing; None of a
    verb that tfanet alone runs.
    """
    summary = inspect.cleandoc(run.__doc__ or "")
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary.splitlines()[0],
        description=summary,
        epilog="\n  ".join(["examples:", *examples]),
    )
    # A verb within a verb must not set it back: its default is the whole parser's.
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the result as JSON, an error too (`tfanet help json`)",
    )
    add_log_options(parser)
    parser.set_defaults(run=run, package=f"'tfanet[{extra}]'" if extra else "tfanet")
    return parser


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns padded to their widest cell; the first is left-aligned, the others right-aligned."""
    cells = [list(header), *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def parity_table(report: dict[str, Any]) -> str:
    """The parity report as a table, one row per backend and case, and below it what was chosen."""
    from tfanet.export.parity.choices import in_words

    def changed(case: dict[str, Any]) -> str:
        left_open = case.get("pixels_open", 0)
        return f"{case['pixels_changed']}{f' ({left_open} open in float32)' if left_open else ''}"

    rows = [
        (case["name"], case["backend"], f"{case['max_rel_error']:.1e}", changed(case))
        for case in report["cases"]
    ]
    text = table(("case", "backend", "largest relative error", "pixels changed"), rows)
    made = [
        f"{case}, chosen in PyTorch: {in_words(one)}"
        for case, pictures in report["choices"].items()
        for one in pictures
    ]
    return "\n".join([text, *([""] if made else []), *made])
