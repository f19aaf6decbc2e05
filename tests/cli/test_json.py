"""`--json`: every verb's result and every error is as the published schema says."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hand_made import image_model, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfanet.cli import build_parser, main
from tfanet.cli.help import EXIT_CODES
from tfanet.cli.json_output import result_json, schema
from tfanet.cli.parser import verbs_of
from tfanet.errors import GateError
from tfanet.runtime.shipped import shipped_picture

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
SCHEMA = json.loads(schema())


def leaves(parser: argparse.ArgumentParser) -> Iterator[str]:
    if parser.get_default("run") is not None:
        yield parser.prog.removeprefix("tfanet ")
    for verb in verbs_of(parser).values():
        yield from leaves(verb)


def check(name: str, value: Any) -> None:
    assert name in SCHEMA["$defs"]
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(value)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def result(capsys):
    """What a call prints, which the verb's schema describes."""

    def run(verb: str, *options: str) -> Any:
        capsys.readouterr()
        code = main([*verb.split(), *options, "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        value = json.loads(captured.out, parse_constant=refuse)
        check(verb, value)
        return value

    return run


def test_the_schema_is_one_and_knows_every_verb(capsys):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    verbs = set(leaves(build_parser()))
    assert verbs <= SCHEMA["$defs"].keys()
    assert SCHEMA["$defs"].keys() - verbs == {"error", "manifest", "engine_record", "precision"}
    assert main(["help", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_a_wrong_result_is_not_as_the_schema_says():
    for name in set(SCHEMA["$defs"]) - {"help", "data make-shapes", "calibrate diff"}:
        with pytest.raises(jsonschema.ValidationError):
            check(name, {"surprise": 1})


def test_results_without_pytorch(result, tmp_path):
    bundle = str(write_bundle(tmp_path / "b", image_model()))
    facts = result("info", "--bundle", bundle)
    assert facts["digest"] == result("verify", "--bundle", bundle)["digest"]
    result("doctor")
    result("demo", "--output", str(tmp_path / "demo"))
    pictures, given = str(shipped_picture().parent), ("--bundle", bundle, "--text", "red")
    out = ("--output", str(tmp_path / "out.png"))
    result("predict", *given, "--image", str(shipped_picture()), *out)
    out = ("--labels", str(tmp_path / "labels.json"))
    assert result("predict", *given, "--image", pictures, *out)["pictures"] == 1
    result("help")
    result("help", "export")
    assert {row["exit_code"] for row in result("help", "errors")["exit_codes"]} == {
        code for code, *_ in EXIT_CODES
    }


def test_results_of_data(result, tmp_path):
    few = ("--train", "1", "--val", "1", "--testA", "0", "--testB", "0")
    made = result("data make-shapes", "--output", str(tmp_path), *few)
    assert made["val"]["images"] == 1
    assert result("data check", "--data", str(tmp_path))["pictures"] == 2


def test_results_of_completion(result):
    pytest.importorskip("shtab", reason="shtab is not installed")
    assert "tfanet" in result("completion", "bash")["script"]


@pytest.mark.full
def test_results_of_all_that_takes_long(result, bundle, checkpoint, tmp_path, monkeypatch):
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    small = ("--train", "4", "--val", "2", "--testA", "0", "--testB", "0")
    result("data make-shapes", "--output", data, *small)
    one = ("--data", data, "--steps", "1", "--batch", "2")
    result("train", *one, "--image-size", "64", "--output", f"{out}/train")
    result("pretrain", *one, "--preset", "crossvlt-tiny", "--output", f"{out}/pretrain")
    result("info", "--preset", "tfanet-tiny")
    result("info", "--preset", "tfanet-base", "--table4")
    given = ("--bundle", str(bundle.path))
    weights = ("--checkpoint", str(checkpoint))
    result("export", *weights, "--output", f"{out}/bundle")
    result("parity", *given, *weights)
    result("evaluate", *given, "--data", data, "--limit", "1")
    runs = ("--runs", "1", "--warmup", "1", "--backends", "onnxruntime-cpu")
    result("bench", *given, *weights, *runs)
    ranges = str(tmp_path / "ranges.json")
    result("calibrate", *given, "--data", data, "--count", "2", "--output", ranges)
    result("calibrate diff", ranges, ranges)
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "zoo")
    scan = ("--model", "zoo_vmamba:micro", "--input", "1x3x32x32")
    result("onnx", *scan, "--output", str(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("argv", "kind", "code"),
    [
        (["info", "--preset", "nowhere", "--json"], "input", 1),
        (["--json"], "input", 1),
        (["fly", "--json"], "input", 1),
        (["export", "--json", "--outptu", "x"], "input", 1),
        (["verify", "--json", "--bundle", "/nowhere"], "input", 1),
    ],
)
def test_errors_are_json_too_and_one_line_beside_it(capsys, argv, kind, code):
    assert main(argv) == code
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    check("error", told)
    assert (told["error"]["kind"], told["error"]["exit_code"]) == (kind, code)
    assert captured.err.count("\n") == 1 and told["error"]["message"] in captured.err


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (GateError("the mask\x1b is\nanother"), "gate", 2),
        (ModuleNotFoundError(name="shtab"), "environment", 3),
        (OSError(28, "No space left on device"), "environment", 3),
        (FileNotFoundError(2, "No such file", "x"), "input", 1),
        (MemoryError(), "environment", 3),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_every_kind_of_error(capsys, monkeypatch, error, kind, code):
    def run(_):
        """Fail."""
        raise error

    monkeypatch.setattr("tfanet.cli.inspect.run_doctor", run)
    assert main(["doctor", "--json"]) == code
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    check("error", told)
    assert told["error"]["kind"] == kind and told["error"]["class"] == type(error).__name__
    assert captured.err.count("\n") == 1 and "\x1b" not in captured.err
    assert {code for code, *_ in EXIT_CODES} >= {code}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_what_is_not_finite_is_null_and_all_else_is_kept(value):
    def expected(one: Any) -> Any:
        if isinstance(one, (list, tuple)):
            return [expected(x) for x in one]
        if isinstance(one, dict):
            return {key: expected(x) for key, x in one.items()}
        return None if isinstance(one, float) and not math.isfinite(one) else one

    assert json.loads(result_json(value), parse_constant=refuse) == expected(value)


def test_one_vocabulary_of_precisions(tmp_path: Path):
    """Every verb's `--precision` is of the words in the schema, and its help names no other."""
    known = set(SCHEMA["$defs"]["precision"]["enum"])
    found = {}
    waiting: list[argparse.ArgumentParser] = [build_parser()]
    while waiting:
        one = waiting.pop()
        waiting += verbs_of(one).values()
        for action in one._actions:
            if action.dest == "precision":
                words = set((action.help or "").replace(",", " ").split()) | {action.default}
                found[one.prog] = {word for word in words if word[:2] in ("fp", "bf", "in")}
    assert found.keys() >= {f"tfanet {v}" for v in ("export", "engine", "train", "calibrate")}
    for named in found.values():
        assert {word for word in named if any(c.isdigit() for c in word)} <= known
