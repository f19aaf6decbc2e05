"""Verbs about the command line itself: help, completion."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tfanet.cli.json_output import schema
from tfanet.cli.output import Verbs, add_verb
from tfanet.cli.parser import verbs_of
from tfanet.errors import InputError, suggestion

__all__ = ["EXIT_CODES", "add_verbs"]

# Exit code, what it means, what to do.
EXIT_CODES = (
    (0, "done", "nothing: a reader that stops, as in `| head`, is no error either"),
    (1, "input", "an option, a file or a value is wrong: the message says what was expected"),
    (2, "gate", "parity or accuracy is outside its bounds: what was made is not to be used"),
    (
        3,
        "environment",
        "a package, a library or a GPU is missing, or the disk is full or read-only",
    ),
    (130, "interrupted", "Ctrl-C was pressed: what was there before is still there"),
)
CLASSES = {
    "UsageError": "a command line that cannot be read",
    "InputError": "what was given does not fit: DataError of a dataset, BundleError of a bundle",
    "GateError": "what was computed is outside its bounds",
    "MissingDependencyError": "what is needed is not installed, built or plugged in",
    "StorageError": "nothing can be written",
    "EngineError": "an engine cannot run on this machine",
}
TOPICS = ("errors", "json")
SHELLS = ("bash", "zsh")
PATHS = ("DIR", "FILE", "DATA", "BUNDLE")  # the words for paths in the help of options


def add_verbs(verbs: Verbs) -> None:
    help_ = add_verb(
        verbs,
        "help",
        run_help,
        examples=(
            "tfanet help export",
            "tfanet help data check",
            "tfanet help errors",
            "tfanet help json",
        ),
    )
    help_.add_argument(
        "topic", nargs="*", metavar="TOPIC", help="a verb, `errors` or `json` (default: all verbs)"
    )
    completion = add_verb(
        verbs,
        "completion",
        run_completion,
        extra="completion",
        examples=(
            "tfanet completion bash > ~/.local/share/bash-completion/completions/tfanet",
            "tfanet completion zsh > ~/.zfunc/_tfanet",
        ),
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))


def run_help(args: argparse.Namespace) -> tuple[Any, str]:
    """Say what verbs there are and what each does; what exit codes mean; what `--json` prints."""
    if args.topic == ["errors"]:
        codes = [
            dict(zip(("exit_code", "kind", "meaning"), row, strict=True)) for row in EXIT_CODES
        ]
        classes = "\n".join(f"  {name}: {meaning}" for name, meaning in CLASSES.items())
        rows = [(f"{code} {kind}", meaning) for code, kind, meaning in EXIT_CODES]
        return {"exit_codes": codes, "classes": CLASSES}, f"{_list(rows)}\n\nclasses:\n{classes}"
    if args.topic == ["json"]:
        return json.loads(schema()), schema().rstrip()
    from tfanet.cli.command import build_parser  # which knows all verbs, this one too

    known = verbs_of(build_parser())
    if not args.topic:
        summaries = {name: (verb.description or "").splitlines()[0] for name, verb in known.items()}
        return {"verbs": summaries}, _list(list(summaries.items()))
    path: list[str] = []
    text = ""
    for word in args.topic:
        if word not in known:
            names = [*known, *([] if path else TOPICS)]
            raise InputError(
                f"there is no help on {' '.join([*path, word])!r}: choose from "
                f"{', '.join(names)}{suggestion(word, names)}"
            )
        path.append(word)
        text = known[word].format_help().rstrip()
        known = verbs_of(known[word])
    return {"topic": path, "help": text}, text


def _list(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {meaning}" for name, meaning in rows)


def run_completion(args: argparse.Namespace) -> tuple[Any, str]:
    """Print what completes verbs, options and files in a shell; needs the package shtab."""
    import shtab

    from tfanet.cli.command import build_parser

    parser = build_parser()
    waiting: list[argparse.ArgumentParser] = [parser]
    while waiting:
        one = waiting.pop()
        waiting += verbs_of(one).values()
        for action in one._actions:
            if action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(parser, args.shell)
    return {"shell": args.shell, "script": script}, script
