"""Parity: the exported graphs against PyTorch, on fixed and random inputs.

A case passes where  max|z - z_torch| / max|z_torch|  of the mask logits z is at most 1e-4, and at
most 1 pixel in 100,000 lies on another side of the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfanet.checkpoint import load_model
from tfanet.errors import GateError, InputError, MissingDependencyError
from tfanet.export.onnx_export import IMAGE_INPUTS
from tfanet.model import TFANet
from tfanet.plugins import ort_library_path
from tfanet.runtime.bundle import Bundle
from tfanet.runtime.session import open_session

__all__ = [
    "MAX_PIXEL_SHARE",
    "MAX_REL_ERROR",
    "Case",
    "check",
    "check_bundle",
    "compare",
    "make_cases",
    "run_case",
]

MAX_REL_ERROR = 1e-4
MAX_PIXEL_SHARE = 1e-5
SOS_ID, EOS_ID = 49406, 49407

Progress = Callable[[str, int, int], None]

# By name, the operator library to load; without one the function body in the file runs.
_BACKENDS: dict[str, Callable[[], Path | None]] = {
    "onnxruntime": ort_library_path,
    "onnxruntime, function body": lambda: None,
}


@dataclass(frozen=True)
class Case:
    """Inputs of both graphs."""

    name: str
    image: np.ndarray  # (batch, 3, H, W) float32
    token_ids: np.ndarray  # (batch, L) int64
    word_mask: np.ndarray  # (batch, L) float32


def check(
    model: TFANet,
    text: Path,
    image: Path,
    size: tuple[int, int],
    *,
    dynamic_batch: bool = True,
    threshold: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the two ONNX files with the model, on every backend that can run them here.

    Args:
        model: in evaluation mode. text, image: the ONNX files. size: (H, W) of the image graph.

    Returns:
        max_rel_error, pixels_changed and pixels over all cases; the limits; cases: name, backend,
        batch, max_rel_error, pixels_changed, pixels; skipped: backends that cannot run here, why.

    Raises:
        GateError: where a limit is exceeded, or a logit is not finite.
    """
    cases = make_cases(model.config.text_length, size, dynamic_batch)
    expected = [_run_torch(model, case) for case in cases]
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for index, (backend, find_library) in enumerate(_BACKENDS.items()):
        # One backend at a time: each holds the weights once more.
        try:
            library = find_library()
            sessions = open_session(text, library), open_session(image, library)
        except MissingDependencyError as error:
            skipped[backend] = str(error).replace(f"{image.parent}/", "")
            continue
        for case, logits in zip(cases, expected, strict=True):
            got = run_case(*sessions, case)
            results.append(compare(case, backend, logits, got, threshold))
        del sessions
        if progress is not None:
            progress("comparing with PyTorch", index + 1, len(_BACKENDS))
    if not results:
        raise MissingDependencyError("; ".join(skipped.values()))
    report = {
        "max_rel_error": max(result["max_rel_error"] for result in results),
        "pixels_changed": sum(result["pixels_changed"] for result in results),
        "pixels": sum(result["pixels"] for result in results),
        "limits": {"max_rel_error": MAX_REL_ERROR, "pixel_share": MAX_PIXEL_SHARE},
        "cases": results,
        "skipped": skipped,
    }
    _gate(report)
    return report


def check_bundle(
    bundle: str | Path, *, checkpoint: str | Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run `check` again for a bundle, against its preset's weights or those of `checkpoint`.

    Raises:
        BundleError: for a bad bundle. InputError: where it was made from a checkpoint and none is
            given. GateError: where a limit is exceeded.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if manifest.precision != "fp32":
        raise InputError(
            f"{opened.path} is in {manifest.precision}, which rounds: its certificate is checked "
            "instead, give the data that it was measured on (--data FOLDER)"
        )
    if checkpoint is None and manifest.model["source"] != "preset":
        raise InputError(
            f"{opened.path} was exported from a checkpoint: name that file to compare with it "
            "(--checkpoint FILE)"
        )
    model = load_model(checkpoint or manifest.model["preset"])
    if model.config.text_length != manifest.text["length"]:
        raise InputError(
            f"the checkpoint takes {model.config.text_length} tokens, the bundle "
            f"{manifest.text['length']}: they are of different models"
        )
    height, width = manifest.preprocessing["size"]
    return check(
        model,
        opened.file("text.onnx"),
        opened.file("image.onnx"),
        (height, width),
        dynamic_batch=manifest.dynamic_batch,
        threshold=manifest.threshold,
        progress=progress,
    )


def make_cases(length: int, size: tuple[int, int], dynamic_batch: bool) -> list[Case]:
    """One fixed and some random pictures of `size` (H, W), each with a random sentence."""
    rng = np.random.default_rng(0)

    def sentences(batch: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((batch, length), EOS_ID, np.int64)
        mask = np.zeros((batch, length), np.float32)
        for row in range(batch):
            words = int(rng.integers(1, length - 1))  # specials not counted
            ids[row, 0] = SOS_ID
            ids[row, 1 : words + 1] = rng.integers(0, SOS_ID, words)
            mask[row, : words + 2] = 1
        return ids, mask

    height, width = size
    waves = np.sin(np.linspace(0, 9, height))[:, None] + np.cos(np.linspace(0, 7, width))[None]
    fixed = np.stack([waves, waves[::-1], waves[:, ::-1]])[None].astype(np.float32)
    cases = [Case("fixed", fixed, *sentences(1))]
    for batch in (1, 2) if dynamic_batch else (1,):
        image = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
        cases.append(Case(f"random, batch {batch}", image, *sentences(batch)))
    return cases


def _run_torch(model: TFANet, case: Case) -> np.ndarray:
    with torch.no_grad():
        logits = model(*map(torch.from_numpy, (case.image, case.token_ids, case.word_mask)))
    return logits.numpy()


def run_case(text: Any, image: Any, case: Case) -> np.ndarray:
    """Mask logits of a case through the two sessions."""
    features = text.run(None, {"token_ids": case.token_ids})
    values = (case.image, *features, case.word_mask)
    return image.run(None, dict(zip(IMAGE_INPUTS, values, strict=True)))[0]


def compare(
    case: Case, backend: str, expected: np.ndarray, got: np.ndarray, threshold: float
) -> dict[str, Any]:
    """One row of a report. Raises GateError where a logit is not finite."""
    error = np.abs(got - expected).max() / np.abs(expected).max()
    if not np.isfinite(error):
        raise GateError(f"parity: {backend} gives logits that are not finite in case {case.name!r}")
    return {
        "name": case.name,
        "backend": backend,
        "batch": case.image.shape[0],
        "max_rel_error": float(f"{error:.1e}"),
        "pixels_changed": int(np.count_nonzero((got > threshold) != (expected > threshold))),
        "pixels": int(got.size),
    }


def _gate(report: dict[str, Any]) -> None:
    for case in report["cases"]:
        share = case["pixels_changed"] / case["pixels"]
        if case["max_rel_error"] > MAX_REL_ERROR or share > MAX_PIXEL_SHARE:
            raise GateError(
                f"parity failed: {case['backend']}, case {case['name']!r}: largest relative "
                f"error {case['max_rel_error']:.1e} (limit {MAX_REL_ERROR:.0e}), "
                f"{case['pixels_changed']} of {case['pixels']} pixels changed (limit "
                f"{MAX_PIXEL_SHARE:.0e} of them): the graph does not compute what these weights "
                "do in PyTorch"
            )
