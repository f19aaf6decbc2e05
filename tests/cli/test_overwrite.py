"""Nothing is destroyed: every option that names a place is in these tables, of every verb."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hand_made import image_model, write_bundle

from tfanet.cli import build_parser, main
from tfanet.cli.parser import verbs_of

PATHS = {"DIR", "FILE", "DATA", "BUNDLE"}  # metavars
READ = {
    *("after", "before", "bundle", "calibration", "checkpoint", "data", "engine_from", "image"),
    *("images", "init", "lines", "onnxruntime_web", "picture", "range_data", "vocab"),
}
# Options that write, and what never costs what was there before.
GROWS = {"log_file": "lines are added", "timing_cache": "is read, and written with more in it"}
# What is written where, by verb and option: a call that would, and a file that is in the way.
BUNDLE = "manifest.json"
WRITTEN = {
    ("export", "output"): ("export --preset tfanet-tiny --output {place}", BUNDLE),
    ("export", "inspect"): (
        "export --preset tfanet-tiny --target tensorrt-rtx --output other --inspect {place}",
        "text.engine.json",
    ),
    ("engine", "inspect"): (
        "engine --bundle bundle --target tensorrt-rtx --inspect {place}",
        "image.engine.json",
    ),
    ("parity", "report"): ("parity --bundle bundle --report {place}", "report.html"),
    ("calibrate", "output"): ("calibrate --bundle bundle --data d --output {place}", None),
    ("onnx", "output"): ("onnx --model m:f --input 1x3 --output {place}", None),
    ("data make-shapes", "output"): ("data make-shapes --output {place}", "shapes/instances.json"),
    ("train", "output"): ("train --data d --output {place}", "state.safetensors"),
    ("pretrain", "output"): (
        "pretrain --data d --preset crossvlt-tiny --output {place}",
        "model.safetensors",
    ),
    ("demo", "output"): ("demo --output {place}", "overlay.png"),
}
# Those whose own tests say what they do with what is there.
ELSEWHERE = {
    *(("predict", name) for name in ("output", "overlay", "results", "labels")),
    ("push", "dry_run"),
    *(("web", "output"), ("export", "web")),
}


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    if parser.get_default("run") is not None:
        yield parser
    for verb in verbs_of(parser).values():
        yield from leaves(verb)


def places() -> Iterator[tuple[str, str]]:
    """Every option of every verb that names a place."""
    for leaf in leaves(build_parser()):
        for action in leaf._actions:
            words = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
            if PATHS & set(words) or action.dest == "output":
                yield leaf.prog.removeprefix("tfanet "), action.dest


def test_of_every_place_it_is_known_what_becomes_of_it():
    written = {(verb, dest) for verb, dest in places() if dest not in {*READ, *GROWS}}
    assert written == {*WRITTEN, *ELSEWHERE}


@pytest.mark.parametrize("verb", dict.fromkeys(verb for verb, _ in WRITTEN))
def test_every_verb_that_writes_has_the_option(verb):
    (leaf,) = (x for x in leaves(build_parser()) if x.prog == f"tfanet {verb}")
    (overwrite,) = (a for a in leaf._actions if "--overwrite" in a.option_strings)
    assert overwrite.nargs == 0 and overwrite.help


@pytest.mark.parametrize(("verb", "option"), WRITTEN)
def test_what_is_there_stays_without_overwrite(capsys, tmp_path, monkeypatch, verb, option):
    monkeypatch.chdir(tmp_path)
    call, file = WRITTEN[verb, option]
    place = tmp_path / "place"
    write_bundle(tmp_path / "bundle", image_model())
    if file == BUNDLE:
        write_bundle(place, image_model())
    else:
        there = place / file if file else place
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("mine")
    before = content(tmp_path)
    assert main(call.format(place=place).split()) == 1
    told = capsys.readouterr().err
    assert "--overwrite" in told and "place" in told and told.count("\n") == 1
    assert content(tmp_path) == before


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("there", ["nothing", "an old one"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_shapes_interrupted_leave_what_was_there(tmp_path, there, end):
    place = tmp_path / "shapes"
    argv = ["data", "make-shapes", "--output", str(place), "--overwrite"]
    few = ["--train", "1", "--val", "0", "--testA", "0", "--testB", "0"]
    if there == "an old one":
        assert main([*argv, *few]) == 0
    before = content(tmp_path)
    working = subprocess.Popen(
        [sys.executable, "-P", "-m", "tfanet", *argv, "--train", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores it, and its children do.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert working.stderr is not None
    first = working.stderr.readline()
    assert "drawing train 1/" in first
    working.send_signal(end)
    rest = working.stderr.read().splitlines()
    code = working.wait()
    if end == signal.SIGINT:
        assert (code, rest[-1]) == (130, "tfanet: error: interrupted") and len(rest) <= 2
        assert content(tmp_path) == before
    else:
        seen = {k: v for k, v in content(tmp_path).items() if ".partial" not in k}
        assert code == -signal.SIGKILL and seen == before
        assert main([*argv, *few]) == 0  # which removes what the killed one left
    assert not any(name.endswith(".partial") for name in os.listdir(tmp_path))
    assert not place.exists() or not any(n.endswith(".partial") for n in os.listdir(place))
