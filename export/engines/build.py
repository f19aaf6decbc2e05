"""`build_engine`: an engine file for TensorRT or TensorRT-RTX from an ONNX graph.

One builder serves both libraries. The build runs in a child process (`worker`), because their
parsers are known to abort on graphs that they cannot take: then a crash becomes one line of error,
and the user's process loses nothing. Engines are strongly typed: precision is decided in the graph
(`tfanet.export.engines.precision`). The files are raw plans, which trtexec reads; what is known of
them stands in the manifest.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir
from onnx import ModelProto

from tfanet.errors import GateError, InputError, MissingDependencyError, StorageError, check_choice
from tfanet.export.simplify import simplify
from tfanet.files import move
from tfanet.plugins import attach, trt_library_path
from tfanet.plugins.graph.attach import (
    attach_by_length,
    count_scan_nodes,
    expand_ss2d,
    scan_nodes,
)
from tfanet.plugins.tensorrt import FORMS, plugin_graph
from tfanet.progress import Progress, Stages
from tfanet.runtime.backends.engine import MODULES, load_module
from tfanet.runtime.bundle.write import check_folder, check_output, new_folder
from tfanet.worker import worker_command, worker_environment

__all__ = ["COMPUTE", "EngineOptions", "Profile", "build_engine", "engine_graph"]


# Compute capabilities that TensorRT-RTX has targets for.
COMPUTE = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# An engine holds the weights once, plus code; a build also keeps its temporary files.
_DISK_FACTOR = 3
_HARDWARE = (("tensorrt", "same-compute"), ("tensorrt", "ampere-plus"))
_FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "refit": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
    "tf32": "TF32",
    "editable_cache": "EDITABLE_TIMING_CACHE",
}


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


@dataclass(frozen=True)
class EngineOptions:
    """How a builder works; precision is no option of it, the graph decides that.

    Attributes:
        compute: capabilities such as "8.9" to compile for (tensorrt-rtx); none gives an engine for
            8.0 and later. timing_cache: a file that carries tactic timings from build to build
            (tensorrt); editable_cache: it can be edited, to choose tactics by hand.
        timeout: seconds for one engine.
        level: 0 (fast build) to 5 (most tactics tried); None is the library's own. tf32: products
            of FP32 may round their factors to TF32. hardware: "same-compute" or "ampere-plus", more
            GPUs than the one that it is built on (tensorrt). version_compatible: later versions
            may load it; it then carries code for the CPU, which must be allowed by name.
        refit: weights can be replaced. strip_weights: the plan holds none until it is refitted.
        weight_streaming: weights may stay in host memory.
        inspect: a directory that gets what the library says of each layer, as JSON; needs a GPU.
        plugin: "aot" or "library", what runs the scans (tensorrt), see
            `tfanet.plugins.tensorrt`; None is standard operators.
    """

    compute: Sequence[str] = ()
    timing_cache: str | Path | None = None
    editable_cache: bool = False
    timeout: float = 1800.0
    level: int | None = None
    tf32: bool = False
    hardware: str | None = None
    version_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    inspect: str | Path | None = None
    plugin: str | None = None

    def check(self, target: str) -> None:
        """Raises InputError for a value that is unknown, or not this target's."""
        check_choice("target", target, MODULES)
        unknown = [c for c in self.compute if c not in COMPUTE]
        if unknown:
            raise InputError(f"compute capability {unknown[0]!r} is unknown: {', '.join(COMPUTE)}")
        if target == "tensorrt" and self.compute:
            raise InputError(
                "compute capabilities can be chosen for tensorrt-rtx only: tensorrt builds for the "
                "GPU of this machine"
            )
        if target == "tensorrt-rtx" and self.timing_cache is not None:
            raise InputError("tensorrt-rtx has no timing cache: it tunes when the engine is loaded")
        if self.plugin is not None:
            check_choice("plugin", self.plugin, FORMS)
        if target == "tensorrt-rtx" and self.plugin is not None:
            raise InputError("tensorrt-rtx has no plugins: leave --plugin out")
        if self.editable_cache and self.timing_cache is None:
            raise InputError("an editable cache was asked for: name its file (--timing-cache FILE)")
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"level is {self.level}: the builder has 0 to 5")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"timeout is {self.timeout}: give seconds, above 0")
        if self.timing_cache is not None:
            check_output(self.timing_cache, overwrite=True)
        if self.inspect is not None:
            check_folder(self.inspect)
        if self.hardware is not None and (target, self.hardware) not in _HARDWARE:
            raise InputError(
                f"hardware is {self.hardware!r}: tensorrt has same-compute and ampere-plus, for "
                "tensorrt-rtx choose the compute capabilities instead"
            )

    def flags(self) -> list[str]:
        """Names of the builder's flags."""
        return [flag for name, flag in _FLAGS.items() if getattr(self, name)]


def engine_graph(model: ModelProto, plugin: str | None = None) -> ModelProto:
    """What a builder is given: every scan in standard operators, specialised for its length.

    TensorRT-RTX has no plugins, and full TensorRT needs none to run it. With a `plugin` (see
    `EngineOptions`) scans stay nodes. Shapes are folded, only the batch stays open.
    """
    typed = onnx_ir.from_proto(attach(model, "none") if plugin else attach_by_length(model))
    simplify(typed)
    graph = onnx_ir.to_proto(typed)
    return plugin_graph(graph, plugin) if plugin else graph


def build_engine(
    model: ModelProto,
    output: str | Path,
    *,
    target: str,
    profile: Profile = Profile(),
    options: EngineOptions = EngineOptions(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the plan of a strongly typed ONNX model into the file `output`.

    Args:
        model: in standard operators, see `engine_graph`. target: "tensorrt" or "tensorrt-rtx".
        profile: batch sizes, where the batch is open. options: see `EngineOptions`.
        overwrite: replace a file that is there. progress: called with (phase, step, steps).

    Returns:
        library, version, layers, types (layers by the element type that they give), seconds,
        peak_bytes and bytes.

    The file appears whole or not at all. Raises InputError for bad options, or a node that the
    library's parser refuses (named); StorageError for too little room on the disk;
    MissingDependencyError where the library is not installed; GateError where the build crashes,
    fails or takes too long.
    """
    output = Path(output).absolute()
    options.check(target)
    load_module(target)
    weight = model.ByteSize()
    output.parent.mkdir(parents=True, exist_ok=True)
    output = check_output(output, overwrite=overwrite)
    free = shutil.disk_usage(output.parent).free
    if free < _DISK_FACTOR * weight:
        raise StorageError(
            f"{output.parent} has {free / 1e6:.0f} MB free, a build of this model may need "
            f"{_DISK_FACTOR * weight / 1e6:.0f} MB: make room, or choose another --output"
        )
    with new_folder(output) as folder:
        source, part = folder / "model.onnx", folder / "plan"
        source.write_bytes(model.SerializeToString(deterministic=True))
        job = {
            "module": MODULES[target],
            "onnx": str(source),
            "output": str(part),
            "profile": asdict(profile),
            "compute": list(options.compute),
            "timing_cache": _absolute(options.timing_cache),
            "flags": options.flags(),
            "level": options.level,
            "hardware": options.hardware,
            "inspect": _absolute(options.inspect),
            "plugin": _plugin_job(model, options.plugin),
            "name": output.name,
        }
        start = time.monotonic()
        facts = _run_worker(job, options.timeout, progress)
        seconds = time.monotonic() - start
        move(part, output)
    return {"seconds": round(seconds, 1), **facts, "bytes": output.stat().st_size}


def _plugin_job(model: ModelProto, form: str | None) -> dict[str, Any] | None:
    """What the worker needs to have the plugin ready, if there is a scan to run."""
    if form is None or not count_scan_nodes(model):
        return None
    if form == "library":
        return {"form": form, "path": str(trt_library_path())}
    return {"form": form, "inputs": len(scan_nodes(model)[0].input)}


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _run_worker(job: dict[str, Any], timeout: float, progress: Progress | None) -> dict[str, Any]:
    """Runs the job in a child process; its last line is the facts or an error."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            worker_command("tfanet.export.engines.worker", job),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env=worker_environment(),
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
            kinds = {
                "input": InputError,
                "missing": MissingDependencyError,
                "storage": StorageError,
            }
            raise kinds.get(answer["kind"], GateError)(answer["error"])
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
    building = Stages(progress).next("reading the graph")
    assert child.stdout is not None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            continue  # the library's own words
        if not isinstance(message, dict):
            continue
        if "phase" in message:
            building.at(*(message[key] for key in ("phase", "step", "steps", "position")))
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


def load_graph(path: Path, content: bytes | None = None) -> ModelProto:
    """An ONNX file, checked by ONNX before any engine library sees it; 2-D scans as their parts.

    Args:
        content: the file's bytes, where they were read and compared already.
    """
    try:
        model = onnx.load(path) if content is None else onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} is no valid ONNX model: {reason}") from error
    return expand_ss2d(model)
