"""A user's model as an ONNX file beside PyTorch, on every way to run it here."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tfanet.errors import GateError, MissingDependencyError
from tfanet.export.compare import MAX_REL_ERROR, relative_error
from tfanet.export.user_model.bfloat16 import widened
from tfanet.export.user_model.factory import reason
from tfanet.plugins import ort_library_path
from tfanet.runtime.backends.session import open_session

__all__ = [
    "Exact",
    "ModelCase",
    "Precision",
    "check_file",
    "compare_original",
    "open_file",
    "to_array",
]

# Of the model's own code, whose sums may be in another order, in float32 and in 16 bits.
MAX_OWN_ERROR, MAX_HALF_ERROR = 1e-3, 5e-2
# Of a graph in 16 bits: so many times PyTorch's own distance from the exact result; so many of the
# type's steps where there is no exact result.
AS_NEAR, UNKNOWN = 2, 16
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class ModelCase:
    """Inputs to compare on, and PyTorch's outputs.

    A model that computes in 16 bits has `facts`, and where it can be run so the `exact` outputs.
    """

    name: str
    values: tuple[Tensor, ...]
    expected: tuple[np.ndarray, ...]
    exact: tuple[np.ndarray, ...] | None = None
    facts: Precision | None = None

    def judge(self, index: int, got: np.ndarray) -> dict[str, float]:
        """max_rel_error of an output and its limit, and PyTorch's own error where it rounds."""
        expected = self.expected[index]
        if self.facts is None or expected.dtype.kind != "f":
            return {"max_rel_error": relative_error(got, expected), "limit": MAX_REL_ERROR}
        if self.exact is None:
            return {
                "max_rel_error": relative_error(got, expected),
                "limit": UNKNOWN * self.facts.step,
            }
        own = relative_error(expected, self.exact[index])
        limit = max(AS_NEAR * own, self.facts.step)
        error = relative_error(got, self.exact[index])
        return {"max_rel_error": error, "limit": limit, "pytorch_error": own}


@dataclass(frozen=True)
class Precision:
    """The lower precision that a model computes in, its relative step, and what it is held to."""

    type: str
    step: float
    reference: str


@dataclass(frozen=True)
class Exact:
    """A copy of a model in float64, or in float32 where its code admits no other."""

    facts: Precision
    _model: nn.Module | None
    _dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, values: Sequence[Tensor], low: Collection[torch.dtype]) -> Exact:
        """The first copy that runs on `values`; `low` are the types that the model rounds to."""
        kind = max(low, key=lambda dtype: torch.finfo(dtype).eps)
        name, step = str(kind).removeprefix("torch."), float(torch.finfo(kind).eps)
        for dtype in (torch.float64, torch.float32):
            try:
                copied = copy.deepcopy(model).to(dtype)
                found = cls(Precision(name, step, str(dtype).removeprefix("torch.")), copied, dtype)
                found.run(values)
            except Exception:  # a model's own code may fix its types, and fails in many ways
                continue
            return found
        return cls(Precision(name, step, f"PyTorch in {name}"), None, torch.float32)

    def run(self, values: Sequence[Tensor]) -> tuple[np.ndarray, ...] | None:
        if self._model is None:
            return None
        cast = [v.to(self._dtype) if v.is_floating_point() else v for v in values]
        with torch.no_grad():
            return tuple(map(to_array, self._model(*cast)))


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
            session = open_file(path, loaded, cases[0].facts)
        except MissingDependencyError as error:
            skipped[backend] = str(error).replace(str(path), "the file")
            continue
        for case in cases:
            feeds = zip(session.get_inputs(), case.values, strict=True)
            try:
                got = session.run(list(outputs), {i.name: to_array(v) for i, v in feeds})
            except Exception as error:  # what ONNX Runtime raises has no common base
                raise GateError(
                    f"parity failed: {backend} can't run the graph on {case.name}: "
                    f"{reason(error)}; the model's code may have fixed a size that was to stay open"
                ) from error
            judged = [case.judge(index, value) for index, value in enumerate(got)]
            worst = max(judged, key=lambda facts: facts["max_rel_error"] / facts["limit"])
            how = ", in float32" if case.facts and case.facts.type == BFLOAT16 else ""
            results.append({"name": case.name, "backend": backend + how, **worst})
    if not results:
        raise MissingDependencyError("; ".join(skipped.values()))
    for result in results:
        off, limit = result["max_rel_error"], result["limit"]
        if not (off <= limit and math.isfinite(off)):
            raise GateError(
                f"parity failed: {result['backend']}, {result['name']}: largest relative error "
                f"{off:.1e} (limit {limit:.1e}): the graph does not compute what the model does "
                "in PyTorch; nothing was written"
            )
    facts = cases[0].facts
    return library, {
        "max_rel_error": max(result["max_rel_error"] for result in results),
        "limit": max(result["limit"] for result in results),
        "reference": "PyTorch" if facts is None else facts.reference,
        "cases": results,
        "skipped": skipped,
    }


def open_file(path: Path, library: Path | None, facts: Precision | None) -> Any:
    """A session; of a bfloat16 graph it computes in float32, for ONNX Runtime has few kernels."""
    if facts is None or facts.type != BFLOAT16:
        return open_session(path, library)
    wide = path.with_name(f"{path.name}.float32")
    try:
        wide.write_bytes(widened(onnx.load(path)).SerializeToString())
        return open_session(wide, library)
    finally:
        wide.unlink(missing_ok=True)


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
    worst = max(relative_error(to_array(ours), to_array(own)) for ours, own in pairs)
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in outputs.values())
    if not worst <= (MAX_HALF_ERROR if half else MAX_OWN_ERROR):
        raise GateError(
            f"the model's own code and our operator differ by {worst:.1e}: an entry point of its "
            "own does not mean what its name says; call tfanet.plugins.selective_scan there"
        )
    return {"compared": True, "max_rel_error": worst}


def to_array(value: Tensor) -> np.ndarray:
    """NumPy has no bfloat16: such a tensor becomes float32."""
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
