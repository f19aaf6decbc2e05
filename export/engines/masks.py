"""Masks of low precision beside those of a bundle's graphs: of an engine, or of typed graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

from tfanet.errors import GateError, MissingDependencyError
from tfanet.export.compare import (
    MAX_ROUNDED_SHARE,
    Case,
    compare_logits,
    make_cases,
    run_case,
)
from tfanet.plugins import ort_library_path
from tfanet.runtime.backends.choose import GraphRunner, Options, open_graphs
from tfanet.runtime.backends.engine import EngineError
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import Bundle

__all__ = ["bundle_cases", "compare_engine", "compare_masks"]


def bundle_cases(bundle: Bundle) -> list[Case]:
    """The cases that a bundle's graphs take."""
    manifest = bundle.manifest
    return make_cases(manifest.text, manifest.preprocessing.size, manifest.dynamic_batch)


def compare_engine(bundle: Bundle, built: Bundle, name: str) -> dict[str, Any]:
    """The engine's masks against those of the bundle's graphs where it can run, else why not."""
    try:
        running = open_graphs(built, name, Options())
    except (MissingDependencyError, EngineError) as error:
        return {"ran": False, "reason": str(error)}
    try:
        low, high = running.batches
        cases = [case for case in bundle_cases(bundle) if low <= case.image.shape[0] <= high]
        facts = compare_masks(bundle, cases, name, running.text, running.image)
    finally:
        running.close()
    return {"ran": True, "device": running.device, **facts}


def compare_masks(
    bundle: Bundle, cases: list[Case], label: str, text: GraphRunner, image: GraphRunner
) -> dict[str, Any]:
    """Masks of two graphs of low precision, or engines, against those of the bundle's graphs.

    Raises GateError where more than 1 % of the pixels change.
    """
    library = ort_library_path()
    text_reference, image_reference = (
        open_session(bundle.file(name), library, content=partial(bundle.read, name))
        for name in GRAPHS
    )
    threshold = bundle.manifest.postprocessing.logit_threshold
    rows = [
        compare_logits(
            case,
            label,
            run_case(text_reference, image_reference, case),
            run_case(text, image, case),
            threshold,
        )
        for case in cases
    ]
    changed, pixels = (sum(row[key] for row in rows) for key in ("pixels_changed", "pixels"))
    if changed > MAX_ROUNDED_SHARE * pixels:
        raise GateError(
            f"{label}: {changed} of {pixels} pixels change side, the limit is "
            f"{MAX_ROUNDED_SHARE:.0%}: keep more in FP32 (--keep PATTERN), or take another "
            "precision"
        )
    return {
        "max_rel_error": max((row["max_rel_error"] for row in rows), default=None),
        "pixels_changed": changed,
        "pixels": pixels,
    }
