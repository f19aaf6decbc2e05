"""The errors that users meet, and the exit code each one gives the command line.

Every message is one line: the offending value, what was expected, what to do next.
"""

from __future__ import annotations

__all__ = ["GateError", "InputError", "MissingDependencyError", "TfanetError"]


class TfanetError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the `tfanet` command returns."""

    exit_code = 1


class InputError(TfanetError, ValueError):
    """The user's mistake: a bad argument, file or value (exit code 1)."""

    exit_code = 1


class GateError(TfanetError, RuntimeError):
    """A parity or accuracy gate failed (exit code 2)."""

    exit_code = 2


class MissingDependencyError(TfanetError, RuntimeError):
    """The environment lacks a library, a build or a device (exit code 3)."""

    exit_code = 3
