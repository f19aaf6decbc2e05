"""What a message quotes, whoever wrote it, drives no terminal; and no file ends at a zero byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tfanet.errors import TfanetError
from tfanet.runtime import Predictor


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("more", [b"\0", b"\0garbage", b" \0{}"])
def test_nothing_hides_behind_a_zero_byte(
    name: str, more: bytes, bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    size = (bundle / name).stat().st_size + more.index(0)
    with open(bundle / name, "ab") as file:
        file.write(more)
    if name != "manifest.json":
        seal(bundle)
    with pytest.raises(TfanetError):
        Predictor(bundle, threads=1)
    with pytest.raises(Exception, match=rf"{name} is not .* \(byte {size} is zero\)") as caught:
        open_runtime(bundle)
    assert caught.value.status == "BAD_BUNDLE"


# What drives a terminal, and what turns lines around or ends them.
CONTROLS = "".join(map(chr, [*range(1, 32), *range(127, 160), 0x2028, 0x2029]))
CONTROLS += "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def test_messages_hold_no_control_characters(tmp_path: Path, open_runtime: Callable) -> None:
    """They are written as Python's repr writes them; all else stands as it is."""
    rng = random.Random(0)
    others = "aé\u2027\u202f\u2065\u206a\xa0🙂\\'\"€"
    for text in (
        CONTROLS,
        others,
        *("".join(rng.choices(CONTROLS + others, k=60)) for _ in range(50)),
    ):
        path = tmp_path / text
        with pytest.raises(Exception, match="is not a bundle directory") as caught:
            open_runtime(path)
        shown = "".join(repr(c)[1:-1] if c in CONTROLS else c for c in str(path))
        assert str(caught.value).startswith(f"{shown} is not")


def test_quoted_contents_drive_no_terminal(
    bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    hostile = "\x1b]0;owned\x07\r\n\x9b31m"
    original = json.loads((bundle / "manifest.json").read_text())
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    record = {
        "name": hostile, "target": "tensorrt", "precision": "fp16", "library": "TensorRT",
        "version": "10", "profile": {}, "compute": [], "files": {},
    }  # fmt: skip
    engines = [record, record | {"precision": hostile}]
    cases = [original | {hostile: 1}, original | {"schema_version": hostile}]
    cases += [original | {"engines": [one]} for one in engines]
    cases += [original | {"files": original["files"] | {hostile: {"size": 1, "sha256": ""}}}]
    for data in cases:
        (bundle / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(Exception, match="owned") as caught:
            open_runtime(bundle)
        assert str(caught.value).isprintable()
    tokenizer["added_tokens"][0]["content"] = hostile
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    (bundle / "manifest.json").write_text(json.dumps(original))
    seal(bundle)
    with pytest.raises(Exception, match="owned") as caught:
        open_runtime(bundle)
    assert str(caught.value).isprintable()
    with pytest.raises(Exception, match="owned") as caught:
        open_runtime(bundle, op_library=f"/no/{hostile}")
    assert str(caught.value).isprintable()
