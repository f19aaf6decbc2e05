"""Engine files for TensorRT and TensorRT-RTX, built from the graphs of a bundle.

One builder for both libraries. The build runs in a child process (`engine_worker`), because their
parsers are known to abort on input that they dislike: a crash becomes one line, and nothing that
the user's process holds is lost. Engines are strongly typed, precision is decided in the graph
(`tfanet.export.precision`). The files are raw plans, readable by trtexec; what is known of them is
in the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir
from onnx import ModelProto

from tfanet.errors import GateError, InputError
from tfanet.export.simplify import simplify
from tfanet.plugins.function_body import attach_by_length, expand_ss2d
from tfanet.runtime.engine import MODULES, load_module

__all__ = ["COMPUTE", "Profile", "build_engine", "engine_graph"]

Progress = Callable[[str, int, int], None]

# Compute capabilities that TensorRT-RTX has targets for.
COMPUTE = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# An engine holds the weights once, plus code; a build also keeps its temporary files.
_DISK_FACTOR = 3


@dataclass(frozen=True)
class Profile:
    """Batch sizes of an engine: the smallest, the one it is tuned for, the largest."""

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                f"profile is {self.min}, {self.opt}, {self.max}: batch sizes start at 1, with "
                "min <= opt <= max"
            )

    @classmethod
    def parse(cls, text: str) -> Profile:
        """From "4" (fixed) or "1,2,4" (min, opt, max)."""
        try:
            sizes = [int(part) for part in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) == 1:
            sizes *= 3
        if len(sizes) != 3:
            raise InputError(f"profile is {text!r}: give a batch size, or min,opt,max")
        return cls(*sizes)


def engine_graph(model: ModelProto) -> ModelProto:
    """What a builder is given: every scan in standard operators, specialised for its length.

    TensorRT-RTX has no plugins, and full TensorRT needs none to run it. Shapes are folded, only
    the batch stays open.
    """
    typed = onnx_ir.from_proto(attach_by_length(model))
    simplify(typed)
    return onnx_ir.to_proto(typed)


def build_engine(
    model: ModelProto,
    output: str | Path,
    *,
    target: str,
    profile: Profile = Profile(),
    compute: Sequence[str] = (),
    timing_cache: str | Path | None = None,
    timeout: float = 1800.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the plan of a strongly typed ONNX model into the file `output`.

    Args:
        model: in standard operators, see `engine_graph`. target: "tensorrt" or "tensorrt-rtx".
        profile: batch sizes, where the batch is open. compute: capabilities such as "8.9" to
            compile for (tensorrt-rtx); none gives an engine for 8.0 and later.
        timing_cache: a file that carries tactic timings from build to build (tensorrt).
        timeout: seconds. progress: called with (phase, step, steps).

    Returns:
        library, version, layers, seconds, peak_bytes, bytes, and what was asked for.

    The file appears whole or not at all. Raises InputError for bad options, a node that the
    library's parser refuses (named), or too little room on the disk; MissingDependencyError where
    the library is not installed; GateError where the build crashes, fails or takes too long.
    """
    output = Path(output).absolute()
    _check_options(target, compute, timing_cache)
    weight = model.ByteSize()
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < _DISK_FACTOR * weight:
        raise InputError(
            f"{output.parent} has {free / 1e6:.0f} MB free, a build of this model may need "
            f"{_DISK_FACTOR * weight / 1e6:.0f} MB: make room, or choose another --output"
        )
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        source, part = Path(folder) / "model.onnx", Path(folder) / "plan"
        source.write_bytes(model.SerializeToString(deterministic=True))
        job = {
            "module": MODULES[target],
            "onnx": str(source),
            "output": str(part),
            "profile": asdict(profile),
            "compute": list(compute),
            "timing_cache": None if timing_cache is None else str(Path(timing_cache).absolute()),
        }
        start = time.monotonic()
        facts = _run_worker(job, timeout, progress)
        seconds = time.monotonic() - start
        os.chmod(part, 0o644)
        os.replace(part, output)
    return {
        "target": target,
        "profile": asdict(profile),
        "compute": list(compute),
        "seconds": round(seconds, 1),
        **facts,
        "bytes": output.stat().st_size,
    }


def _check_options(target: str, compute: Iterable[str], timing_cache: str | Path | None) -> None:
    if target not in MODULES:
        raise InputError(f"target is {target!r}: choose one of {', '.join(MODULES)}")
    unknown = [c for c in compute if c not in COMPUTE]
    if unknown:
        raise InputError(f"compute capability {unknown[0]!r} is unknown: {', '.join(COMPUTE)}")
    if target == "tensorrt" and list(compute):
        raise InputError(
            "compute capabilities can be chosen for tensorrt-rtx only: tensorrt builds for the GPU "
            "of this machine"
        )
    if target == "tensorrt-rtx" and timing_cache is not None:
        raise InputError("tensorrt-rtx has no timing cache: it tunes when the engine is loaded")
    load_module(target)


def _run_worker(job: dict[str, Any], timeout: float, progress: Progress | None) -> dict[str, Any]:
    """Runs the job in a child process; its last line is the facts or an error."""
    command = [sys.executable, "-m", "tfanet.export.engine_worker", json.dumps(job)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as child,
    ):
        timer = _Alarm(child, timeout)
        try:
            answer = _follow(child, progress)
        finally:
            timer.cancel()
            if child.poll() is None:
                child.kill()
        code = child.wait()
        if timer.rang:
            raise GateError(
                f"the engine was not built within {timeout:.0f} s: allow more (--timeout), or "
                "build on a faster machine"
            )
        if "error" in answer:
            kind = InputError if answer["kind"] == "input" else GateError
            raise kind(answer["error"])
        if "facts" not in answer:
            raise GateError(
                f"{job['module']} {_end(code)} while building: {_last_line(log) or 'no message'}; "
                "please report the model to us"
            )
        return answer["facts"]


class _Alarm:
    """Kills a child after some seconds."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        from threading import Timer

        self.rang = False

        def ring() -> None:
            self.rang = child.poll() is None
            child.kill()

        self._timer = Timer(seconds, ring)
        self._timer.start()
        self.cancel = self._timer.cancel


def _follow(child: subprocess.Popen[str], progress: Progress | None) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue  # the library's own words
        if not isinstance(message, dict):
            continue
        if "phase" in message:
            if progress is not None:
                progress(message["phase"], message["step"], message["steps"])
        else:
            answer |= message
    return answer


def _end(code: int) -> str:
    if code < 0:
        return f"crashed with {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def load_graph(path: Path) -> ModelProto:
    """An ONNX file, checked by ONNX before any engine library sees it; 2-D scans as their parts."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} is no valid ONNX model: {reason}") from error
    return expand_ss2d(model)
