"""`Parser`: argparse without abbreviations, with suggestions, defaults and examples."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from tfanet.errors import InputError, suggestion

__all__ = ["Parser", "UsageError", "verbs_of"]


class UsageError(InputError):
    """A command line that cannot be read; `prog` is the command whose help says how."""

    def __init__(self, message: str, prog: str) -> None:
        super().__init__(f"{message} (see {prog} --help)")
        self.prog = prog


class Help(argparse.HelpFormatter):
    """Every default that is a value is told; indented lines of a description stay as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = action.nargs != 0 and isinstance(action.default, (str, int, float))
        if not told or "(default" in text or action.default == argparse.SUPPRESS:
            return text
        return f"{text} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            block if "\n  " in block else textwrap.fill(" ".join(block.split()), width)
            for block in textwrap.dedent(text).strip().split("\n\n")
        )


class Parser(argparse.ArgumentParser):
    """Options are written in full; one that is unknown is answered with those that are like it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": Help, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if args is not None:
            self._refuse_unknown(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        """Before argparse misses a required option, which is there with a slip in its name."""
        verbs = verbs_of(self)
        known = {flag for one in (self, *verbs.values()) for flag in _flags_of(one)}
        for word in args:
            if word == "--" or (verbs and not self.get_default("run") and word[:1] != "-"):
                return  # what follows is the verb's
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in known:
                self.error(f"there is no option {flag}{suggestion(flag, sorted(known))}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            what = str(action.metavar or "value").lower()
            raise argparse.ArgumentError(
                None if action.nargs == argparse.PARSER else action,
                f"there is no {what} {value!r:.80}: choose from {', '.join(names)}"
                f"{suggestion(str(value), names)}",
            )


def _flags_of(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's verbs by their names; none where it has no verbs."""
    groups = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: verb for group in groups for name, verb in group.choices.items()}
