"""Every verb's help: defaults, units and examples; slips are answered with what was meant."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tfanet import errors
from tfanet.cli import build_parser, main
from tfanet.cli.help import CLASSES, EXIT_CODES
from tfanet.cli.parser import UsageError, verbs_of

# What a number counts, or what kind of number it is.
UNITS = {
    *("CALLS", "PICTURES", "PROCESSES", "SAMPLES", "SECONDS", "STEPS", "THREADS", "TIMES", "WORDS"),
    *("FACTOR", "N", "NORM", "PIXELS", "RATE", "SHARE"),
}


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every parser of a verb that can run."""
    if parser.get_default("run") is not None:
        yield parser
    for verb in verbs_of(parser).values():
        yield from leaves(verb)


PARSER = build_parser()
LEAVES = {leaf.prog.removeprefix("tfanet "): leaf for leaf in leaves(PARSER)}
EVERY_VERB = pytest.mark.parametrize("verb", LEAVES)


def options(verb: str) -> list[argparse.Action]:
    return [action for action in LEAVES[verb]._actions if action.option_strings]


def with_values(verb: str) -> list[argparse.Action]:
    return [action for action in options(verb) if action.nargs != 0]


def test_every_verb_is_among_the_leaves():
    assert {name.split()[0] for name in LEAVES} == set(verbs_of(PARSER))
    assert {"calibrate", "calibrate diff", "data make-shapes", "train"} <= set(LEAVES)


@EVERY_VERB
def test_examples_stand_at_the_end_and_can_be_typed(verb):
    head, *examples = (LEAVES[verb].epilog or "").split("\n  ")
    assert head == "examples:" and examples
    for example in examples:
        program, *argv = shlex.split(example.partition(" > ")[0])
        args = PARSER.parse_args(argv)
        assert program == "tfanet" and args.run is LEAVES[verb].get_default("run")
    assert LEAVES[verb].format_help().rstrip().endswith(examples[-1])


@EVERY_VERB
def test_what_an_option_does_when_it_is_not_given_is_told(verb):
    parser = LEAVES[verb]
    required = {
        a for g in parser._mutually_exclusive_groups if g.required for a in g._group_actions
    }
    for action in with_values(verb):
        assert action.help
        if not action.required and action not in required:
            shown = parser._get_formatter()._expand_help(action)
            assert "default" in shown, f"{action.option_strings[0]}: {action.help}"
        if isinstance(action.default, (int, float)):
            assert str(action.default) in shown, f"{action.option_strings[0]}: {action.help}"


@EVERY_VERB
def test_every_number_has_a_unit(verb):
    for action in with_values(verb):
        if action.type in (int, float) or isinstance(action.default, (int, float)):
            assert action.metavar in UNITS, f"{action.option_strings[0]} of {action.metavar}"


@EVERY_VERB
def test_every_verb_takes_what_all_take(verb):
    flags = {flag for action in options(verb) for flag in action.option_strings}
    assert flags >= {"--help", "--json", "--verbose", "-v", "--quiet", "-q", "--log-file"}


def slips(flag: str) -> Iterator[str]:
    yield flag[:-1]
    yield flag[:3] + flag[4] + flag[3] + flag[5:]
    yield f"--{flag.removeprefix('--').replace('-', '_')}"


@EVERY_VERB
def test_a_slip_in_an_option_is_no_abbreviation_and_is_answered_with_the_option(verb):
    flags = [flag for a in options(verb) for flag in a.option_strings if len(flag) > 5]
    for flag, slip in [(known, slip) for known in flags for slip in slips(known)]:
        if slip in flags:
            continue
        for argv in ([slip], [f"{slip}=1"]):
            with pytest.raises(UsageError) as told:
                PARSER.parse_args([*verb.split(), *argv])
            message = str(told.value)
            assert f"there is no option {slip}" in message and "did you mean --" in message
            assert f"see tfanet {verb.split()[0]}" in message
        close = [f for f in flags if f.startswith(slip) or f == flag]
        (suggested,) = re.findall(r"did you mean (.*)\?\)", message)
        assert set(suggested.split(" or ")) & set(close), message


@pytest.mark.parametrize("verb", sorted(verbs_of(PARSER)))
def test_a_slip_in_a_verb_is_answered_with_the_verb(capsys, verb):
    for slip in (verb[:-1], verb[1] + verb[0] + verb[2:] if len(verb) > 4 else verb + verb[-1]):
        assert main([slip]) == 1
        told = capsys.readouterr().err
        assert f"there is no verb {slip!r}" in told and told.count("\n") == 1
        assert f"did you mean {verb}" in told or f" or {verb}?" in told


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        ("data make-shape --output x", "make-shapes"),
        ("info --preset tfanet-tinny", "tfanet-tiny"),
        ("info --preset CrossVLT-tiny", "crossvlt-tiny"),
        ("help exprot", "export"),
        ("help error", "errors"),
    ],
)
def test_a_slip_in_a_value_is_answered_with_the_value(capsys, argv, meant):
    assert main(argv.split()) == 1
    assert f"(did you mean {meant}" in capsys.readouterr().err


def test_suggestions_of_values_that_need_more_than_the_command_line(tmp_path):
    from hand_made import image_model, write_bundle

    from tfanet.calibration.grid import grid_of
    from tfanet.data import DataError, ReferDataset
    from tfanet.runtime import Predictor

    bundle = write_bundle(tmp_path / "b", image_model())
    with pytest.raises(errors.InputError, match=r"\(did you mean onnxruntime-cpu"):
        Predictor(bundle, backend="onnxrutime-cpu")
    with pytest.raises(errors.InputError, match=r"\(did you mean int8"):
        grid_of("int")
    with pytest.raises(DataError, match=r"\(did you mean refcocog"):
        ReferDataset(tmp_path, "refcocg")


@pytest.mark.parametrize(
    ("word", "known", "told"),
    [
        ("fp61", ["fp32", "fp16"], " (did you mean fp16?)"),
        ("TensorRT", ["tensorrt", "tensorrt-rtx"], " (did you mean tensorrt or tensorrt-rtx?)"),
        ("--log_file", ["--log-file"], " (did you mean --log-file?)"),
        ("zebra", ["tensorrt"], ""),
        ("", ["tensorrt"], ""),
        ("--", ["--log-file"], ""),
        ("x\x1b[2J", ["x\x1b[2K"], " (did you mean x\\x1b[2K?)"),
    ],
)
def test_suggestion(word, known, told):
    assert errors.suggestion(word, known) == told


def test_help_of_errors_has_every_code_and_class(capsys):
    assert main(["help", "errors"]) == 0
    told = capsys.readouterr().out
    for code, kind, _ in EXIT_CODES:
        assert f"{code} {kind}" in told
    known = [getattr(errors, name) for name in errors.__all__ if name in CLASSES]
    assert {one.exit_code for one in known} | {0, 130} == {code for code, *_ in EXIT_CODES}
    assert {one.__name__ for one in known} >= {"InputError", "GateError", "StorageError"}


def test_help_lists_verbs_and_shows_one(capsys):
    assert main(["help"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == list(verbs_of(PARSER))
    assert all(len(line.split()) > 3 for line in told.splitlines())
    assert main(["help", "calibrate", "diff"]) == 0
    assert capsys.readouterr().out == LEAVES["calibrate diff"].format_help()


needs_shtab = pytest.mark.skipif(
    importlib.util.find_spec("shtab") is None, reason="shtab is not installed"
)


@needs_shtab
def test_bash_completes_verbs_options_and_files(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "my bundle").mkdir()

    def completed(line: str) -> list[str]:
        code = f"""
source completion.bash
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE={line!r}
COMP_POINT=${{#COMP_LINE}}
$(complete -p tfanet | sed 's/.*-F \\([^ ]*\\) .*/\\1/') tfanet "${{COMP_WORDS[-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(
            ["bash", "--norc", "-c", code], cwd=tmp_path, capture_output=True, text=True
        )
        return done.stdout.split("\n")[:-1]

    assert set(completed("tfanet ex")) == {"export"}
    assert set(completed("tfanet data m")) == {"make-shapes"}
    assert {"--output", "--overwrite"} <= set(completed("tfanet export --o"))
    assert completed("tfanet verify --bundle my") == ["my bundle"]


@needs_shtab
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_its_completion(capsys, tmp_path):
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_tfanet").write_text(capsys.readouterr().out)
    subprocess.run(["zsh", "-n", tmp_path / "_tfanet"], check=True)


def test_completion_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 3
    assert "pip install 'tfanet[completion]'" in capsys.readouterr().err
    assert main(["completion", "fish"]) == 1
    assert "choose from bash, zsh" in capsys.readouterr().err
