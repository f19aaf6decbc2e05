"""`bench`: latency, throughput and memory of a bundle on every backend, beside PyTorch.

Each candidate lives in a process of its own (`tfanet.bench.worker`), so that its memory is its own.
All are started and warmed up first; then they take turns, one call each, so that whatever else the
machine does falls on all of them alike.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.doctor import machine
from tfanet.errors import InputError, MissingDependencyError, suggestion
from tfanet.progress import Progress, Stages
from tfanet.runtime.backends.choose import BACKENDS
from tfanet.runtime.backends.session import thread_count
from tfanet.runtime.bundle.read import Bundle
from tfanet.worker import worker_command, worker_environment

__all__ = ["BASELINE", "bench"]


BASELINE = "pytorch-eager"
_TORCH = (BASELINE, "pytorch-compile")
_BODY = "onnxruntime-cpu, function body"


@dataclass
class _Candidate:
    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any] = field(default_factory=dict)
    milliseconds: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, **message: Any) -> dict[str, Any]:
        """The worker's answer to a message; {"error"} where it has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last line says why
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"its process ended with code {self.process.wait()}"}
        return json.loads(line)


def bench(
    bundle: str | Path,
    *,
    backends: Sequence[str] | None = None,
    batches: Sequence[int] = (1,),
    runs: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time both graphs of a bundle on every backend that can run here.

    Args:
        backends: names as of `Predictor`, "pytorch-eager", "pytorch-compile", or
            "onnxruntime-cpu, function body"; by default all of them. Those that cannot run here are
            listed with the reason.
        batches: pictures that run together, for the throughput. runs: timed calls of each.
        warmup: calls before those. threads: of a run on the CPU; None takes all cores that
            this process may use.
        checkpoint: the weights, for PyTorch, where the bundle's preset does not hold them.

    Returns:
        machine, runs, threads; candidates: for each name its device and, by graph ("text", and
        "image" at each batch), p50, p95 and p99 in milliseconds; images_per_second by batch;
        ratio, the p50 of PyTorch eager over its own, of the image graph at the first batch;
        open_seconds (to the end of the warm-up), peak_bytes (of the process), gpu_bytes,
        file_bytes; skipped: name and reason.

    Raises:
        InputError: for an unknown backend, or counts below 1. MissingDependencyError: where none
            can run.
    """
    opened = Bundle.open(bundle)
    for name, value in (("runs", runs), ("warmup", warmup), *(("batch", b) for b in batches)):
        if value < 1:
            raise InputError(f"{name} is {value}: give 1 or more")
    known = [*_TORCH, *(engine["name"] for engine in opened.manifest.engines), *BACKENDS, _BODY]
    names = list(backends or known)
    for name in names:
        if name not in known:
            like = suggestion(name, known)
            raise InputError(f"backend is {name!r}: choose from {', '.join(known)}{like}")
    if backends is None and opened.manifest.engines:
        names = [name for name in names if name not in ("tensorrt", "tensorrt-rtx")]
    job = {
        "bundle": str(opened.path),
        "batches": list(batches),
        "threads": thread_count(threads),
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }
    running: list[_Candidate] = []
    skipped: dict[str, str] = {}
    started: list[_Candidate] = []
    stages = Stages(progress)
    starting = stages.next("starting", 0.3)
    try:
        for index, name in enumerate(names):
            candidate = _start(name, job)
            started.append(candidate)
            answer = candidate.ask(warmup=warmup)
            if "error" in answer:
                skipped[name] = answer["error"]
            else:
                candidate.facts = answer
                running.append(candidate)
            starting(f"starting {name}", index + 1, len(names))
        if not running:
            raise MissingDependencyError(
                "nothing can run here: " + "; ".join(f"{k}: {v}" for k, v in skipped.items())
            )
        timing = stages.next("timing")
        for run in range(runs):
            for candidate in running:
                for call, value in candidate.ask(run=True)["milliseconds"].items():
                    candidate.milliseconds.setdefault(call, []).append(value)
            timing("timing", run + 1, runs)
        results = {candidate.name: _result(candidate, list(batches)) for candidate in running}
    finally:
        for candidate in started:
            candidate.process.kill()
            candidate.process.communicate()
    base = results.get(BASELINE)
    for result in results.values():
        call = f"image, batch {batches[0]}"
        own = result["latency"].get(call)
        result["ratio"] = own and base and base["latency"][call]["p50"] / own["p50"]
    return {
        "machine": machine(),
        "runs": runs,
        "threads": job["threads"],
        "candidates": results,
        "skipped": skipped,
    }


def _start(name: str, job: dict[str, Any]) -> _Candidate:
    process = subprocess.Popen(
        worker_command("tfanet.bench.worker", {**job, "name": name}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=worker_environment(OMP_NUM_THREADS=str(job["threads"])),
    )
    return _Candidate(name, process)


def _result(candidate: _Candidate, batches: list[int]) -> dict[str, Any]:
    latency = {
        call: {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
        for call, values in candidate.milliseconds.items()
    }
    throughput = {
        str(batch): 1e3 * batch / latency[f"image, batch {batch}"]["p50"]
        for batch in batches
        if f"image, batch {batch}" in latency
    }
    memory = candidate.ask(memory=True)
    return {**candidate.facts, **memory, "latency": latency, "images_per_second": throughput}
