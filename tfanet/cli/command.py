"""`main`: reads the command line, runs one verb, and gives the exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from tfanet import __version__
from tfanet.cli import (
    calibrate,
    data,
    demo,
    deploy,
    engine,
    export,
    help,
    inspect,
    onnx,
    predict,
    push,
    train,
    web,
)
from tfanet.cli.json_output import error_json, result_json
from tfanet.cli.logs import DEFAULTS, logging_of
from tfanet.cli.parser import Parser, UsageError
from tfanet.cli.progress import showing_progress
from tfanet.errors import TfanetError, is_storage, plain

__all__ = ["build_parser", "main"]

log = logging.getLogger("tfanet")


def build_parser() -> Parser:
    parser = Parser(
        prog="tfanet",
        description="Take a selective-scan vision model from PyTorch to production.",
        epilog="`tfanet help VERB` says more of each, `tfanet help errors` of exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"tfanet {__version__}")
    parser.set_defaults(json=False, **DEFAULTS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    groups = (
        *(demo, export, engine, predict, deploy, web, onnx, calibrate, inspect, train, data, push),
        help,
    )
    for group in groups:
        group.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser().parse_args(argv)
    except UsageError as error:
        return _fail(error, str(error), 1, as_json="--json" in argv, prog=error.prog)
    try:
        with logging_of(args, argv), showing_progress(quiet=args.quiet):
            try:
                result, text = args.run(args)
            except BaseException as error:
                log.info("%s", _causes(error))
                log.debug("the verb ended so:", exc_info=True)
                raise
        # Files must not steer a terminal.
        shown = result_json(result) if args.json else "\n".join(map(plain, text.split("\n")))
        return _show(shown)
    except TfanetError as error:
        return _fail(error, str(error), error.exit_code, as_json=args.json)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install {args.package}"
        return _fail(error, message, 3, as_json=args.json)
    except OSError as error:
        return _fail(error, str(error), 3 if is_storage(error) else 1, as_json=args.json)
    except MemoryError as error:
        message = "memory is full: close other programs, or take a smaller --batch or picture"
        return _fail(error, message, 3, as_json=args.json)
    except KeyboardInterrupt as error:
        return _fail(error, "interrupted", 130, as_json=args.json)


def _show(text: str) -> int:
    """Print a result; names of files may hold what the terminal's encoding has no form for."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # The reader has seen enough, as in `| head`: no error, and nothing more to be flushed.
        _leave_output()
    except OSError:
        _leave_output()  # else Python tries once more at its end, and says so
        raise
    return 0


def _leave_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(
    error: BaseException, message: str, code: int, *, as_json: bool, prog: str = "tfanet"
) -> int:
    message = plain(" ".join(message.split()))
    if as_json:
        _show(error_json(error, message, code))
    print(f"{prog}: error: {message}", file=sys.stderr)
    return code


def _causes(error: BaseException) -> str:
    """An error and what led to it, the nearest first."""
    told = []
    cause: BaseException | None = error
    while cause is not None:
        told.append(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        cause = cause.__cause__ or cause.__context__
    return ", because of ".join(told)
