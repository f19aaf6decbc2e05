"""What `--json` prints: a verb's result, or why there is none."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from tfanet.errors import plain

__all__ = ["error_json", "result_json", "schema"]

KINDS = {1: "input", 2: "gate", 3: "environment", 130: "interrupted"}  # by exit code


def result_json(result: Any) -> str:
    """JSON has no NaN and no infinity: null stands for them."""
    return json.dumps(_finite(result), indent=2, sort_keys=True, allow_nan=False)


def error_json(error: BaseException, message: str, code: int) -> str:
    facts = {
        "kind": KINDS[code],
        "class": type(error).__name__,
        "exit_code": code,
        "message": plain(message),
    }
    return json.dumps({"error": facts}, indent=2)


def schema() -> str:
    """The JSON schema of every verb's result and of an error, in its `$defs`."""
    file = resources.files("tfanet.assets") / "command_line.schema.json"
    return file.read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
