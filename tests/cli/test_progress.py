"""Progress and logs: one position that never goes back, few lines where there is no terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfanet.cli import main
from tfanet.cli.progress import Display, progress_line, showing_progress
from tfanet.errors import InputError
from tfanet.progress import WHOLE, Positioned, Progress, Stages


class Recorder:
    """A `Positioned` that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, float]] = []

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        self.at(stage, done, total, done / max(total, 1))

    def at(self, stage: str, done: int, total: int, position: float) -> None:
        self.seen.append((stage, done, total, position))


# A job: told steps, or stages with their shares, which are jobs.
jobs = st.recursive(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
    lambda inner: st.tuples(
        st.just("stages"), st.lists(st.tuples(st.floats(0, 1), inner), max_size=4)
    ),
    max_leaves=12,
)


def work(job: object, progress: Progress | None) -> None:
    if isinstance(job, list):
        for done, total in job:
            progress and progress("step", done, total)
        return
    stages = Stages(progress)
    for share, inner in job[1]:  # type: ignore[index]
        work(inner, stages.next("stage", share))
    stages.end()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs)
def test_one_position_over_all_stages_never_goes_back(job):
    recorder, plain = Recorder(), []
    whole = ("stages", [(0.5, job), (1.0, job)])
    work(whole, recorder)
    work(whole, lambda *told: plain.append(told))
    work(whole, None)
    positions = [position for *_, position in recorder.seen]
    assert all(a <= b for a, b in pairwise(positions)) and positions[-1] == 1
    assert all(0 <= position <= 1 for position in positions)
    assert [round(WHOLE * position) for position in positions] == [done for _, done, _ in plain]
    assert {total for *_, total in plain} == {WHOLE}


def test_stages_share_what_is_left():
    recorder = Recorder()
    stages = Stages(recorder)
    stages.next("a", 0.2)("half", 5, 10)
    stages.next("b", 0.5)
    stages.next("c")("all", 3, 3)
    stages.end()
    assert [(stage, done) for stage, done, *_ in recorder.seen] == [
        *(("a", 0), ("half", 5), ("b", 0), ("c", 0), ("all", 3), ("done", 0))
    ]
    places = [position for *_, position in recorder.seen]
    assert places == pytest.approx([0, 0.1, 0.2, 0.6, 1, 1])


def test_what_an_earlier_stage_tells_late_is_not_passed_on():
    """An engine is built within the export that it ends, which tells of its own end after it."""
    recorder = Recorder()
    job = Stages(recorder)
    export = Stages(job.next("", 0.5))
    export.next("text")
    job.next("engine")("building", 1, 2)
    export.end()
    job.end()
    assert [stage for stage, *_ in recorder.seen] == [
        "text",
        "engine",
        "building",
        "done",
    ]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_a_line_comes_every_few_seconds(capsys):
    clock = Clock()
    display = Display(terminal=False, clock=clock)
    assert isinstance(display, Positioned)
    for step in range(1, 1001):
        clock.now += 0.125
        display(f"drawing \x1b[2J{step % 3}", step, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 125 // 5
    assert re.fullmatch(r"  0 %  drawing \\x1b\[2J1 1/1000, 2:05 left", lines[0])
    assert re.fullmatch(r"  4 %  drawing \\x1b\[2J2 41/1000, 8\.0/s, 2:00 left", lines[1])
    assert re.fullmatch(r"100 %  drawing \\x1b\[2J1 1000/1000, 8\.0/s", lines[-1])
    shares = [int(line[:3]) for line in lines]
    assert shares == sorted(shares)


def test_slow_steps_say_how_long_each_takes_and_a_new_stage_counts_anew(capsys):
    clock = Clock()
    display = Display(terminal=False, clock=clock)
    for stage, total, start in (("text", 4, 0.0), ("image", 8, 0.5)):
        for step in range(total + 1):
            display.at(stage, step, total, start + step / total / 2)
            clock.now += 9 if stage == "text" else 6
    told = capsys.readouterr().err
    assert "text 3/4, 9.0 s each" in told and "image 7/8, 6.0 s each" in told


def test_a_position_that_goes_back_is_not_shown(capsys):
    clock = Clock()
    display = Display(terminal=False, clock=clock)
    for done in (2, 8, 3, 9, 1):
        display("step", done, 10)
        clock.now += 6
    assert [int(x[:3]) for x in capsys.readouterr().err.splitlines()] == [20, 80, 80, 90, 90]


def test_on_a_terminal_there_is_one_bar_and_lines_come_above_it(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock()
    display = Display(terminal=True, clock=clock)
    for step in range(1, 11):
        clock.now += 1
        display("measuring", step, 10)
        if step == 5:
            display.write("a warning")
    drawn = stream.getvalue()
    assert drawn.count("\n") == 2 and "a warning\n" in drawn
    assert "measuring 6/10, 1.0/s" in drawn and "100 %|" in drawn
    shares = [int(share) for share in re.findall(r"(\d+) %\|", drawn)]
    assert shares == sorted(shares) and shares[-1] == 100


def test_an_interrupted_bar_ends_its_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(stream, "isatty", lambda: True)

    def interrupted() -> None:
        with showing_progress(quiet=False):
            progress_line()("measuring", 1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().endswith("\n")


@pytest.fixture
def verb(monkeypatch):
    """`tfanet doctor` does what is set here."""

    def does(work):
        def run(_):
            """Work."""
            work()
            return {}, "done"

        monkeypatch.setattr("tfanet.cli.inspect.run_doctor", run)

    return does


def noisy() -> None:
    show = progress_line()
    show("half", 1, 2)
    logging.getLogger("tfanet.export").info("a stage took 1 s")
    warnings.warn("this is odd", stacklevel=1)
    show("all", 2, 2)


def test_verbose_says_more_and_quiet_less(capsys, verb):
    verb(noisy)
    told = {}
    for options in ((), ("-v",), ("--quiet",)):
        assert main(["doctor", *options]) == 0
        captured = capsys.readouterr()
        assert captured.out == "done\n"
        told[options] = captured.err
    assert told["--quiet",] == ""
    assert "tfanet: warning: this is odd" in told[()] and "100 %" in told[()]
    assert "took" not in told[()]
    assert "tfanet: info: a stage took 1 s" in told["-v",]
    assert main(["doctor", "-v", "-q"]) == 1


def test_a_log_file_keeps_everything_and_grows(capsys, verb, tmp_path):
    verb(noisy)
    path = tmp_path / "log.txt"
    path.write_text("mine\n")
    assert main(["doctor", "-q", "--log-file", str(path)]) == 0
    assert capsys.readouterr().err == ""
    lines = path.read_text().splitlines()
    assert lines[0] == "mine" and all(re.match(r"\d{4}-", line) for line in lines[1:])
    for word in (f"doctor -q --log-file {path}", "a stage took", "WARNING this is odd", "100 %"):
        assert any(word in line for line in lines), word

    def fails() -> None:
        try:
            int("one\ntwo")
        except ValueError as error:
            raise InputError("no number") from error

    verb(fails)
    assert main(["doctor", "--log-file", str(path)]) == 1
    assert capsys.readouterr().err == "tfanet: error: no number\n"
    grown = path.read_text()
    assert grown.startswith("\n".join(lines))
    assert "InputError: no number, because of ValueError: invalid literal" in grown
    assert "Traceback" in grown
    for bad in (tmp_path, tmp_path / "no" / "log.txt"):
        assert main(["doctor", "--log-file", str(bad)]) == 1
        assert "name a file in a directory that exists" in capsys.readouterr().err


def test_what_a_program_logs_is_as_before_after_a_verb(capsys, verb):
    verb(noisy)
    log = logging.getLogger("tfanet")
    before = log.level, log.propagate, list(log.handlers), warnings.showwarning
    main(["doctor", "-v"])
    assert (log.level, log.propagate, log.handlers, warnings.showwarning) == before


def test_an_interrupt_is_one_line_and_its_own_exit_code(capsys, verb):
    def interrupted() -> None:
        progress_line()("half", 1, 2)
        raise KeyboardInterrupt

    verb(interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.splitlines()[1:] == ["tfanet: error: interrupted"]
