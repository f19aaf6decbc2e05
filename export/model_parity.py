"""A user's model as an ONNX file beside PyTorch, on every way to run it here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfanet.errors import GateError, MissingDependencyError
from tfanet.export.factory import reason
from tfanet.export.parity import MAX_REL_ERROR
from tfanet.plugins import ort_library_path
from tfanet.runtime.session import open_session

__all__ = ["ModelCase", "check_file", "compare_original", "to_array"]

# Of the model's own code, whose sums may be in another order, in float32 and in 16 bits.
MAX_OWN_ERROR, MAX_HALF_ERROR = 1e-3, 5e-2


@dataclass(frozen=True)
class ModelCase:
    """Inputs to compare on, and PyTorch's outputs."""

    name: str
    values: tuple[Tensor, ...]
    expected: tuple[np.ndarray, ...]


def check_file(
    path: Path, cases: Sequence[ModelCase], outputs: Sequence[str]
) -> tuple[Path | None, dict[str, Any]]:
    """Compare a file with PyTorch, with our library and without.

    Returns:
        our library, where it is built; and max_rel_error, its limit, cases (name, backend,
        max_rel_error) and what was skipped, why.

    Raises:
        GateError: where a result is off by more than the limit, not finite, or fails.
        MissingDependencyError: where nothing here can run the file.
    """
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    library = None
    try:
        library = ort_library_path()
    except MissingDependencyError as error:
        skipped["onnxruntime, our library"] = str(error)
    ways = {"onnxruntime, our library": library} if library is not None else {}
    for backend, loaded in {**ways, "onnxruntime, function body": None}.items():
        try:
            session = open_session(path, loaded)
        except MissingDependencyError as error:
            skipped[backend] = str(error).replace(str(path), "the file")
            continue
        for case in cases:
            feeds = zip(session.get_inputs(), case.values, strict=True)
            try:
                got = session.run(list(outputs), {i.name: v.numpy() for i, v in feeds})
            except Exception as error:  # what ONNX Runtime raises has no common base
                raise GateError(
                    f"parity failed: {backend} can't run the graph on {case.name}: "
                    f"{reason(error)}; the model's code may have fixed a size that was to stay open"
                ) from error
            errors = map(_error, got, case.expected)
            results.append(
                {"name": case.name, "backend": backend, "max_rel_error": max(errors, default=0.0)}
            )
    if not results:
        raise MissingDependencyError("; ".join(skipped.values()))
    for result in results:
        if not result["max_rel_error"] <= MAX_REL_ERROR:
            raise GateError(
                f"parity failed: {result['backend']}, {result['name']}: largest relative error "
                f"{result['max_rel_error']:.1e} (limit {MAX_REL_ERROR:.0e}): the graph does not "
                "compute what the model does in PyTorch; nothing was written"
            )
    worst = max(result["max_rel_error"] for result in results)
    return library, {
        "max_rel_error": worst,
        "limit": MAX_REL_ERROR,
        "cases": results,
        "skipped": skipped,
    }


def compare_original(
    original: Mapping[str, Tensor] | str, outputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The model's own code beside our operator; `original` says why where it can't be compared.

    Raises:
        GateError: where they differ by more than MAX_OWN_ERROR: then a name that the model uses
            stands for something else than the operator that was put in its place.
    """
    if isinstance(original, str):
        return {"compared": False, "reason": original}
    pairs = zip(outputs.values(), original.values(), strict=True)
    worst = max(_error(to_array(ours), to_array(own)) for ours, own in pairs)
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in outputs.values())
    if not worst <= (MAX_HALF_ERROR if half else MAX_OWN_ERROR):
        raise GateError(
            f"the model's own code and our operator differ by {worst:.1e}: an entry point of its "
            "own does not mean what its name says; call tfanet.plugins.selective_scan there"
        )
    return {"compared": True, "max_rel_error": worst}


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    """max|got - expected| / max|expected|; infinite where a number is not finite."""
    if got.shape != expected.shape:
        return float("inf")
    if not got.size:
        return 0.0
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    error = np.abs(got - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(f"{error:.1e}") if np.isfinite(error) else float("inf")


def to_array(value: Tensor) -> np.ndarray:
    """NumPy has no bfloat16: such a tensor becomes float32."""
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
