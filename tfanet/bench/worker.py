"""The process of one candidate of `tfanet.bench`: JSON lines in, JSON lines out.

Runs as `python -m tfanet.bench.worker JOB`. {"warmup": n} opens the candidate and answers with its
facts or {"error"}; {"run"} times each call once; {"memory"} tells the largest memory so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.errors import InputError, MissingDependencyError, TfanetError
from tfanet.runtime.bundle.graphs import GRAPHS, image_feed, random_tokens
from tfanet.runtime.bundle.read import Bundle
from tfanet.worker import peak_bytes, worker_job

Calls = dict[str, Callable[[], Any]]


def _inputs(bundle: Bundle, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, token ids of ten words and the word mask."""
    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, manifest.text, min(10, manifest.text.length - 2))
    ids, mask = (np.repeat(array, batch, 0) for array in tokens)
    picture = rng.standard_normal((batch, 3, *manifest.preprocessing.size))
    return picture.astype(np.float32), ids, mask


def _runtime_calls(bundle: Bundle, job: dict[str, Any]) -> tuple[Calls, dict[str, Any]]:
    from tfanet.runtime.predictor import Predictor

    name, _, body = job["name"].partition(", ")
    predictor = Predictor(
        bundle.path,
        backend=name,
        threads=job["threads"],
        op_library=None if body else "auto",
        cache_size=0,
    )
    info = predictor.info()
    if not body and name == "onnxruntime-cpu" and info["op_library"] is None:
        raise MissingDependencyError("our operator library is not built: `make native`")
    sentence = predictor.encode_text("the red circle left of the star")
    calls: Calls = {"text": lambda: predictor.encode_text("the red circle left of the star")}
    low, high = info["batches"]
    for batch in job["batches"]:
        if low <= batch <= high:
            image = _inputs(bundle, batch)[0]

            def segment(image: np.ndarray = image) -> np.ndarray:
                return predictor.predict_tensors(image, sentence)

            calls[f"image, batch {batch}"] = segment
    files: tuple[str, ...] = GRAPHS
    if info["engine"] is not None:
        record = next(e for e in bundle.manifest.engines if e["name"] == info["engine"])
        files = tuple(record["files"].values())
    size = sum(bundle.manifest.files[file]["size"] for file in files)
    return calls, {"device": info["device"] or "cpu", "file_bytes": size}


def _torch_calls(bundle: Bundle, job: dict[str, Any]) -> tuple[Calls, dict[str, Any]]:
    try:
        import torch

        from tfanet.model.checkpoint import family_of, load_model
    except ImportError as error:
        raise MissingDependencyError(f"{error}: pip install 'tfanet[export]'") from error
    source = bundle.manifest.model
    if job["checkpoint"] is None and source["source"] != "preset":
        raise InputError("the bundle was made from a checkpoint: name it (--checkpoint FILE)")
    torch.set_num_threads(job["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(job["checkpoint"] or source["preset"]).to(device).eval()
    family, text, segment = family_of(model), model.encode_text, model.segment
    if job["name"] == "pytorch-compile":
        text, segment = torch.compile(text), torch.compile(segment)

    def call(function: Callable[..., Any], *values: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                result = function(*values)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    def moved(*arrays: np.ndarray) -> list[Any]:
        return [torch.from_numpy(array).to(device) for array in arrays]

    _, ids, _ = moved(*_inputs(bundle, 1))
    calls: Calls = {"text": call(text, ids)}
    for batch in job["batches"]:
        image, ids, mask = moved(*_inputs(bundle, batch))
        with torch.inference_mode():
            features = dict(zip(family.text_outputs, model.encode_text(ids), strict=True))
        feed = image_feed(family.image_inputs, image, features, mask)
        calls[f"image, batch {batch}"] = call(segment, *feed.values())
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return calls, {"device": name, "file_bytes": size}


def _memory() -> dict[str, Any]:
    """Peak of this process, and what it holds on the GPU."""
    return {"peak_bytes": peak_bytes(), "gpu_bytes": _gpu_bytes()}


def _gpu_bytes() -> int | None:
    """GPU memory in use: of all processes, so a difference to the start is what counts."""
    from tfanet.runtime.backends.device import DeviceError, check, cudart

    try:
        runtime = cudart()
        check(runtime.cudaGetDeviceCount())
        free, total = check(runtime.cudaMemGetInfo())
    except (MissingDependencyError, DeviceError):
        return None
    return total - free


def main() -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    job = worker_job()
    before = _gpu_bytes()
    calls: Calls = {}
    for line in sys.stdin:
        message = json.loads(line)
        if "warmup" in message:
            start = time.perf_counter()
            make = _torch_calls if job["name"].startswith("pytorch") else _runtime_calls
            try:
                calls, answer = make(Bundle.open(Path(job["bundle"])), job)
                for _ in range(message["warmup"]):
                    for call in calls.values():
                        call()
                answer["open_seconds"] = time.perf_counter() - start
            except TfanetError as error:
                answer = {"error": str(error)}
            except Exception as error:  # a library's own: one line of it
                words = str(error).strip().splitlines() or ["no message"]
                answer = {"error": f"{type(error).__name__}: {words[0]}"}
        elif "run" in message:
            answer = {"milliseconds": {}}
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                answer["milliseconds"][name] = 1e3 * (time.perf_counter() - start)
        else:
            answer = _memory()
            if before is not None and answer["gpu_bytes"] is not None:
                answer["gpu_bytes"] -= before
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
