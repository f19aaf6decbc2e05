"""Every option of a verb reaches the function that it is for, or is refused by its name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfanet.cli import build_parser, main
from tfanet.cli.output import SHARED

# A value of each option that is no flag, other than its default.
VALUES = {
    "backend": ["x"],
    "backends": ["x"],
    "batches": ["3"],
    "bundle": ["other"],
    "calibration": ["ranges.json"],
    "calibration_split": ["testA"],
    "checkpoint": ["other.safetensors"],
    "compute": ["8.9"],
    "count": ["7"],
    "data": ["other data"],
    "dataset": ["refcoco"],
    "digest": ["abc"],
    "engine": ["x"],
    "engine_from": ["x"],
    "function": ["none"],
    "guard_count": ["7"],
    "guard_split": ["testA"],
    "hardware": ["same-compute"],
    "image_size": ["64"],
    "images": ["x"],
    "inspect": ["x"],
    "int8_target": ["onnxruntime"],
    "keep": ["x"],
    "level": ["3"],
    "max_drop": ["2"],
    "min_share": ["0.25"],
    "model": ["x:y"],
    "input": ["1x2"],
    "observer": ["minmax"],
    "opset": ["21"],
    "vocab": ["vocab.txt"],
    "output": ["other"],
    "picture": ["x.png", "words"],
    "plugin": ["aot"],
    "precision": ["bf16"],
    "preset": ["tfanet-base"],
    "profile": ["4"],
    "range_data": ["x"],
    "report": ["x"],
    "runs": ["7"],
    "seed": ["7"],
    "split": ["testA"],
    "split_by": ["google"],
    "target": ["tensorrt"],
    "threads": ["1"],
    "timeout": ["7"],
    "timing_cache": ["x"],
    "warmup": ["7"],
    "web": ["page"],
    "onnxruntime_web": ["package"],
}
# Ways to call a verb, each with what it needs.
EXPORT = ("export", "--output", "out")
CALLS = {
    "export": (*EXPORT, "--preset", "tfanet-tiny"),
    "export of an engine": (*EXPORT, "--preset", "tfanet-tiny", "--target", "tensorrt-rtx"),
    "export of a rounding engine": (
        *(*EXPORT, "--checkpoint", "a.safetensors", "--target", "tensorrt-rtx"),
        *("--precision", "fp16"),
    ),
    "int8": (*EXPORT, "--preset", "tfanet-tiny", "--precision", "int8", "--data", "data"),
    "fp8 and an engine": (
        *(*EXPORT, "--preset", "tfanet-tiny", "--precision", "fp8", "--data", "data"),
        *("--target", "tensorrt-rtx"),
    ),
    "int8 from ranges": (
        *(*EXPORT, "--preset", "tfanet-tiny", "--precision", "int8", "--calibration", "r.json"),
    ),
    "int8 from ranges and data": (
        *(*EXPORT, "--preset", "tfanet-tiny", "--precision", "int8", "--calibration", "r.json"),
        *("--data", "data"),
    ),
    "int8 from a bundle": (*(*EXPORT, "--bundle", "b", "--precision", "int8", "--data", "data"),),
    "engine": ("engine", "--bundle", "b", "--target", "tensorrt-rtx"),
    "rounding engine": (
        *("engine", "--bundle", "b", "--target", "tensorrt-rtx", "--precision", "fp16"),
    ),
    "refit": ("refit", "--bundle", "b", "--engine", "e"),
    "calibrate": ("calibrate", "--bundle", "b", "--data", "data", "--output", "r.json"),
    "onnx": ("onnx", "--model", "m:f", "--input", "1x3", "--output", "m.onnx"),
    "parity": ("parity", "--bundle", "b"),
    "parity with a report": (
        *("parity", "--bundle", "b", "--report", "r", "--picture", "a.png", "words"),
    ),
    "parity of int8": ("parity", "--bundle", "b", "--data", "data"),
    "info of a preset": ("info", "--preset", "tfanet-tiny"),
    "info of a bundle": ("info", "--bundle", "b"),
    "verify": ("verify", "--bundle", "b"),
    "bench": ("bench", "--bundle", "b"),
}


# Of one path each; of push, tests/runtime/test_hub.py; of web, tests/export/test_web_page.py.
OTHERS = {"completion", "data", "demo", "doctor", "evaluate", "help", "predict"} | {
    *("pretrain", "push", "train", "web")
}


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    (verbs,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices


def options_of(verb: str) -> dict[str, argparse.Action]:
    """The options of a verb by their keywords, but for those that choose what is printed."""
    found = {a.dest: a for a in verb_parsers()[verb]._actions if a.option_strings}
    return {name: action for name, action in found.items() if name not in ("help", *SHARED)}


def cases() -> Iterator[Any]:
    for name, call in CALLS.items():
        for option, action in options_of(call[0]).items():
            yield pytest.param(call, action, id=f"{name}: {option}")


class Done(Exception):
    """The last function of a verb was called."""


class Calls:
    """Stands in for whatever the command line calls, and notes what it is called with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        self.patch = patch

    def note(self, place: str, result: Any = None, *, last: bool = False) -> None:
        """`last`: the verb calls nothing after it, and what it prints does not matter here."""

        def called(*args: Any, **options: Any) -> Any:
            finish = options.pop("finish", None)
            options.pop("progress", None)  # a new function each time
            given = [value.name if isinstance(value, Path) else value for value in args]
            self.seen.append((place, given, options))
            if finish is not None:
                finish(Path("work"))
            if last and "fp32" not in given:  # that export is quantised in its turn
                raise Done
            return result

        self.patch.setattr(f"tfanet.{place}", called)

    def of(self, argv: tuple[str, ...]) -> list[Any] | None:
        """What was called; None where the command line refused."""
        self.seen = []
        try:
            return None if main(argv) else self.seen
        except Done:
            return self.seen
        except SystemExit:
            return None


class Dataset(list[Any]):
    refs: tuple[Any, ...] = ()


def end(*_: Any, **__: Any) -> None:
    raise Done


@pytest.fixture
def calls(monkeypatch, tmp_path) -> Calls:
    monkeypatch.chdir(tmp_path)
    calls = Calls(monkeypatch)
    ranges = SimpleNamespace(precision="int8", save=end)
    opened = SimpleNamespace(manifest=SimpleNamespace(to_dict=end))
    calls.note("export.export_bundle", "exported", last=True)
    calls.note("export.engines.store.add_engine", last=True)
    calls.note("export.engines.refit.refit", last=True)
    calls.note("export.export_onnx", last=True)
    calls.note("export.parity.check.check_bundle", {"cases": [], "choices": {}})
    calls.note("export.parity.report.write_report", {"pictures": []})
    calls.note("export.web.page.prepare_page")
    calls.note("export.parity.report.check_report")
    calls.note("calibration.calibrate", ranges)
    calls.note("calibration.quantize_bundle", last=True)
    calls.note("calibration.recheck", last=True)
    calls.note("calibration.Calibration.load", ranges)
    calls.note("calibration.accept.certificate.GuardOptions.items")
    calls.note("calibration.measure.sampler.choose")
    calls.note("data.ReferDataset", Dataset([SimpleNamespace(image_path=Path("x"), sentence="y")]))
    calls.note("data.make_shapes")
    calls.note("bench.measure.bench", last=True)
    calls.note("model.cost.describe", last=True)
    calls.note("model.tfanet.table4.table4", [])
    calls.note("runtime.bundle.write.check_target")
    calls.note("runtime.bundle.write.check_output")
    calls.note("runtime.bundle.leftovers.leftovers", {"killed": [], "foreign": []})
    calls.note("runtime.bundle.read.verify", last=True)
    calls.note("runtime.bundle.read.Bundle.open", opened)
    for place in ("load_module", "Device.open"):
        monkeypatch.setattr(f"tfanet.export.engines.store.{place}", lambda *_: None)
    return calls


@pytest.mark.parametrize(("call", "action"), list(cases()))
def test_an_option_reaches_what_it_is_for_or_is_refused_by_name(capsys, calls, call, action):
    """An option that is new needs a value in VALUES, or is a flag."""
    flag = action.option_strings[-1]  # --no-x of a pair
    values = [] if action.nargs == 0 else VALUES[action.dest]
    usual = calls.of(call)
    assert usual, capsys.readouterr().err
    capsys.readouterr()
    given = calls.of((*call, flag, *values))
    if given is None:
        told = re.sub("[-_]", " ", capsys.readouterr().err)
        assert action.dest.replace("_", " ") in told or any(value in told for value in values)
    else:
        assert given != usual, f"{flag} is accepted, and changes nothing"


def test_every_verb_of_more_than_one_path_is_among_them():
    assert {call[0] for call in CALLS.values()} | OTHERS == set(verb_parsers())


@pytest.mark.parametrize("option", ["--bundle", "--no-smooth", "--overwrite", "--seed"])
def test_calibrate_diff_takes_no_option_of_calibrate(capsys, calls, option):
    values = VALUES.get(option.removeprefix("--"), [])
    assert calls.of(("calibrate", option, *values, "diff", "a", "b")) is None
    assert f"{option} measures ranges" in capsys.readouterr().err


def test_json_may_stand_before_the_verb_within_the_verb():
    parser = build_parser()
    for argv in (
        ("calibrate", "--json", "diff", "a", "b"),
        ("calibrate", "diff", "a", "b", "--json"),
    ):
        assert parser.parse_args(argv).json
    assert not parser.parse_args(("calibrate", "diff", "a", "b")).json


def test_quantised_graphs_are_those_of_the_options(calls):
    """`--no-fuse` and its like reach the export that is quantised, too."""
    for path in ("export", "int8"):
        found = {name: options for name, _, options in calls.of((*CALLS[path], "--no-fuse"))}
        assert found["export.export_bundle"]["fuse"] is False
