"""A disk that is full or may not be written to ends in one line and exit code 3."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tfanet.cli import main

SHAPES = ("data", "make-shapes", "--train", "3", "--val", "0", "--testA", "0", "--testB", "0")


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses longer files, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(capsys, tmp_path):
    place = tmp_path / "shapes"
    assert main([*SHAPES, "--output", str(place)]) == 0
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    capsys.readouterr()
    with no_file_above(3000):
        assert main([*SHAPES, "--seed", "1", "--output", str(place), "--overwrite"]) == 3
        told = capsys.readouterr().err.splitlines()
        assert main([*SHAPES, "--output", str(tmp_path / "new")]) == 3
    assert told[-1].startswith("tfanet: error: ") and "File too large" in told[-1]
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_result_that_cannot_be_printed(options):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tfanet", "help", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_a_folder_that_may_not_be_written_to(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    place = str(tmp_path / "new")
    for argv in (
        [*SHAPES, "--output", place],
        ["export", "--preset", "tfanet-tiny", "--output", place],
        ["demo", "--output", place],
    ):
        assert main(argv) == 3
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"nothing may be written into {tmp_path}" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(capsys, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert main([*SHAPES, "--output", str(tmp_path / "new")]) == 3
    finally:
        tmp_path.chmod(0o700)
    assert "nothing may be written into" in capsys.readouterr().err


def test_progress_that_nobody_reads_stops_no_work(tmp_path):
    """`tfanet ... 2>&1 >result | head -0`: standard error is closed before it is written to."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tfanet", *SHAPES, "--output", "shapes"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    assert done.returncode == 0 and (tmp_path / "shapes/shapes/instances.json").is_file()
