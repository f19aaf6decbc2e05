"""`main`: reads the command line, runs one verb, and gives the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from tfanet import __version__
from tfanet.cli import calibrate, data, demo, deploy, engine, export, inspect, onnx, push, train
from tfanet.errors import TfanetError, plain

__all__ = ["build_parser", "main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse exits with 2, which here means a failed gate.
        print(f"{self.prog}: error: {plain(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tfanet",
        description="Take a selective-scan vision model from PyTorch to production.",
        epilog="Exit codes: 0 done, 1 your mistake, 2 a gate failed, 3 something is not installed.",
    )
    parser.add_argument("--version", action="version", version=f"tfanet {__version__}")
    parser.set_defaults(json=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for group in (demo, export, engine, deploy, onnx, calibrate, inspect, train, data, push):
        group.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = build_parser().parse_args(argv)
    warnings.showwarning = _one_line_warning
    try:
        result, text = args.run(args)
    except TfanetError as error:
        return _fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: pip install {args.package}", 3)
    except OSError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    if args.json:
        return _show(json.dumps(result, indent=2, sort_keys=True))
    return _show("\n".join(map(plain, text.split("\n"))))  # files must not steer a terminal


def _show(text: str) -> int:
    """Print a result; names of files may hold what the terminal's encoding has no form for."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # The reader has seen enough, as in `| head`: no error, and nothing more to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: object, code: int) -> int:
    print(f"tfanet: error: {plain(' '.join(str(message).split()))}", file=sys.stderr)
    return code


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"tfanet: warning: {plain(str(message))}", file=sys.stderr)
