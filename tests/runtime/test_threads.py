"""Threads of a run: as many as this process has cores, on those cores, and never absurdly many."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfanet.bench.measure import bench
from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.runtime import Predictor
from tfanet.runtime.backends import session
from tfanet.runtime.backends.session import MAX_THREADS, thread_count

PICTURE = np.zeros((40, 40, 3), np.uint8)


def tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def test_threads_stay_on_the_cores_that_the_process_may_use(shared_bundle: Path) -> None:
    allowed, before = os.sched_getaffinity(0), tasks()
    one = {max(allowed)}
    os.sched_setaffinity(0, one)  # of this thread, and of those that it starts
    try:
        assert thread_count() == 1
        predictors = [Predictor(shared_bundle, threads=threads) for threads in (None, 3)]
        for predictor in predictors:
            predictor(PICTURE, "a red circle")
        started = tasks() - before
        assert len(started) >= 4  # two for each graph of the second; the first needs none
        assert all(os.sched_getaffinity(task) == one for task in started)
    finally:
        os.sched_setaffinity(0, allowed)


def test_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = Path.read_text
    shared = {0: "0,4\n", 1: "1,5\n", 4: "0,4\n", 5: "1,5\n"}

    def siblings(path: Path, *arguments: object, **named: object) -> str:
        cpu = path.parent.parent.name.removeprefix("cpu")
        if path.name != "thread_siblings_list":
            return read(path, *arguments, **named)  # type: ignore[arg-type]
        if int(cpu) not in shared:
            raise FileNotFoundError(path)
        return shared[int(cpu)]

    monkeypatch.setattr(Path, "read_text", siblings)
    for allowed, cores in (({0, 1, 4, 5}, 2), ({0, 4}, 1), ({4, 5}, 2), ({0, 7, 8}, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, found=allowed: found)
        assert session.thread_count() == cores
        assert session.thread_count(7) == 7


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 100_000, 2**31, 10**30])
def test_absurd_numbers_are_refused(threads: int, shared_bundle: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: Predictor(shared_bundle, threads=threads),
        lambda: bench(shared_bundle, threads=threads),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"threads is {threads}: give 1 to {MAX_THREADS}$"):
            call()


def test_the_verb_says_so_in_one_line(
    shared_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--image", "x.png", "--text", "a", "--output", str(tmp_path / "m.png")]
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    words[2] = str(tmp_path / "x.png")
    assert main([*words, "--bundle", str(shared_bundle), "--threads", "100000"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"tfanet: error: threads is 100000: give 1 to {MAX_THREADS}\n"


def test_the_largest_number_of_threads_runs(shared_bundle: Path) -> None:
    expected = Predictor(shared_bundle, threads=1)(PICTURE, "a red circle").logits
    found = Predictor(shared_bundle, threads=16)(PICTURE, "a red circle").logits
    np.testing.assert_array_equal(found, expected)
