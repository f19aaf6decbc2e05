"""What is logged, and where: warnings on standard error, more with -v, less with -q, all in a file.

Loggers below `tfanet` are used; a program that imports tfanet decides itself what becomes of them.
"""

from __future__ import annotations

import argparse
import logging
import platform
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfanet import __version__
from tfanet.cli.progress import say
from tfanet.errors import InputError, plain

__all__ = ["add_log_options", "log", "logging_of"]

log = logging.getLogger("tfanet")
# A verb within a verb must not set them back: their defaults are the whole parser's.
DEFAULTS = {"verbose": False, "quiet": False, "log_file": None}


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """`-v`, `-q` and `--log-file`, of every verb."""
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument(
        "-v", "--verbose", action="store_true", help="say more of what is done", **unset
    )
    loud.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no warnings", **unset
    )
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        help="add lines to this file: options, stages, warnings, and errors with their causes "
        "(default: none is kept)",
        **unset,
    )


@contextmanager
def logging_of(args: argparse.Namespace, argv: Sequence[str]) -> Iterator[None]:
    """Log as the options say, while the verb runs; Python's warnings, too."""
    level = logging.INFO if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    handlers: list[logging.Handler] = [_Terminal(level)]
    if args.log_file is not None:
        handlers.append(_file(args.log_file))
    before = log.level, log.propagate, warnings.showwarning
    log.setLevel(logging.DEBUG if args.log_file is not None else level)
    log.propagate = False
    warnings.showwarning = _show_warning
    for handler in handlers:
        log.addHandler(handler)
    log.info("tfanet %s, Python %s: %s", __version__, platform.python_version(), shlex.join(argv))
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.level, log.propagate, warnings.showwarning = before


class _Terminal(logging.Handler):
    """Lines on standard error; errors are printed by `main` itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            say(f"tfanet: {record.levelname.lower()}: {plain(record.getMessage())}")


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message)
        return super().formatMessage(record)


def _file(path: str) -> logging.Handler:
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise InputError(f"--log-file is {path!r}: name a file in a directory that exists")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    log.warning("%s", message)
