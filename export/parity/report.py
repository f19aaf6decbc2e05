"""`write_report`: where a bundle differs from PyTorch, as parity.json and a page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tfanet import __version__
from tfanet.doctor import machine
from tfanet.errors import InputError, MissingDependencyError
from tfanet.evaluation.metrics import iou
from tfanet.export.compare import MAX_REL_ERROR, MAX_ROUNDED_SHARE, run_case
from tfanet.export.parity.check import bundle_backends, load_reference
from tfanet.export.parity.choices import choices_of
from tfanet.export.parity.page import Shown, render_page
from tfanet.export.parity.samples import (
    Reference,
    Sample,
    mask_of,
    median_milliseconds,
    prepare,
    run_reference,
)
from tfanet.export.parity.stages import GRAPH, Variant, compare_stages, stages_of
from tfanet.progress import Progress
from tfanet.runtime.backends.engine import EngineError
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.bundle.write import check_folder

__all__ = ["BINS", "check_report", "write_report"]

FIGURES, PAGE = "parity.json", "report.html"

# log10 of |z - z_torch| / max|z_torch|, pixel by pixel; smaller errors go into the first bin, what
# is not finite into the last.
BINS = np.arange(-8, 0.5, 0.5)
VERSIONS = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "numpy")


def write_report(
    bundle: str | Path,
    output: str | Path,
    pictures: Sequence[tuple[str | Path, str]],
    *,
    checkpoint: str | Path | None = None,
    overwrite: bool = False,
    failure: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run pictures through every backend that can run here, and write down how they differ.

    Args:
        output: a directory, which gets parity.json and report.html. pictures: files and sentences.
        checkpoint: the weights, where the bundle's preset does not hold them.
        overwrite: replace a report that is there.
        failure: why the gate refused the bundle, where it did: the verdict says so.

    Returns:
        The content of parity.json: bundle, digest, model, precision, image_size, machine, versions,
        pictures; passed, and failures: why not; limits: max_rel_error of a backend in FP32, and the
        share of pixels that one which rounds may change; torch: its milliseconds.
        backends: for each name whether it rounds, passed, its device, bytes of its files,
        milliseconds for one picture and its sentence, for each picture the largest relative error
        of the logits (None where one is not finite), changed pixels and the IoU with PyTorch's mask
        (in percent), and a histogram of errors. emulated: the same for the engines' graphs with
        their rounding, in ONNX Runtime, without what only an engine has. stages: for these and for
        the graphs, the largest relative error behind each part of the model. skipped: backends that
        cannot run here, and why. Where the model chooses, a picture has choices: for each what
        `chosen` gives of PyTorch, and turned: which of those graphs took another option.

    Raises:
        InputError: without pictures, for a bad one, and as `load_reference` and `check_report` do.
    """
    output = check_report(output, overwrite=overwrite)
    if not pictures:
        raise InputError("no picture was given: name some with their sentences")
    opened = Bundle.open(bundle)
    model = load_reference(opened, checkpoint)
    samples = [prepare(opened, path, sentence) for path, sentence in pictures]
    reference = run_reference(model, samples, stages_of(model), choices_of(model))
    del model
    output.mkdir(parents=True, exist_ok=True)

    measured: dict[str, list[np.ndarray]] = {}  # logits
    backends, skipped = _run_backends(opened, samples, reference, measured, progress)
    variants = compare_stages(opened, samples, reference, progress)
    emulated = {}
    for name, variant in variants.items():
        if name != GRAPH:
            measured[name] = variant.logits
            emulated[name] = _judged(_differences(opened, samples, reference, variant.logits), True)
    failures = [] if failure is None else [failure]
    failures += [_failure(name, facts) for name, facts in backends.items() if not facts["passed"]]
    manifest = opened.manifest
    report = {
        "bundle": opened.path.name,
        "digest": opened.digest,
        "model": manifest.model["preset"],
        "family": manifest.family,
        "precision": manifest.precision,
        "image_size": list(manifest.preprocessing.size),
        "machine": machine(),
        "versions": {"tfanet": __version__, **_versions()},
        "pictures": [
            {"file": sample.case.name, "sentence": sample.sentence, "choices": made}
            for sample, made in zip(samples, _choices(reference, variants), strict=True)
        ],
        "passed": not failures,
        "failures": failures,
        "limits": {"max_rel_error": MAX_REL_ERROR, "rounded_pixel_share": MAX_ROUNDED_SHARE},
        "torch": {"milliseconds": reference.milliseconds},
        "bins": BINS.tolist(),
        "backends": backends,
        "emulated": emulated,
        "stages": {name: variant.errors for name, variant in variants.items()},
        "skipped": skipped,
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (output / FIGURES).write_text(text, encoding="utf-8")
    shown = [
        Shown(
            sample.picture,
            {
                "PyTorch": mask_of(opened, sample, wanted),
                **{name: mask_of(opened, sample, z[i]) for name, z in measured.items()},
            },
            {name: _relative(z[i], wanted) for name, z in measured.items()},
        )
        for i, (sample, wanted) in enumerate(zip(samples, reference.logits, strict=True))
    ]
    (output / PAGE).write_text(render_page(report, shown), encoding="utf-8")
    return report


def check_report(output: str | Path, *, overwrite: bool) -> Path:
    """The directory, if a report can be written there; raises InputError where one is already."""
    folder = check_folder(output)
    for name in (FIGURES, PAGE):
        if (folder / name).exists() and not overwrite:
            raise InputError(
                f"{folder / name} exists: name another directory, or give --overwrite "
                "(overwrite=True)"
            )
    return folder


def _run_backends(
    bundle: Bundle,
    samples: list[Sample],
    reference: Reference,
    measured: dict[str, list[np.ndarray]],
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries of the backends that run, and why others do not; their logits go to `measured`."""
    backends, skipped = {}, {}
    candidates = bundle_backends(bundle)
    for index, (name, backend) in enumerate(candidates.items()):
        try:
            running = backend.open()
        except (MissingDependencyError, EngineError) as error:
            skipped[name] = str(error)
            continue
        run = partial(run_case, running.text, running.image)
        measured[name] = [run(sample.case)[0, 0] for sample in samples]
        milliseconds = median_milliseconds(partial(run, samples[0].case))
        facts = _differences(bundle, samples, reference, measured[name])
        backends[name] = {
            **_judged(facts, backend.rounds),
            "device": running.device,
            "milliseconds": milliseconds,
            "bytes": sum(bundle.manifest.files[file]["size"] for file in _files(bundle, name)),
        }
        running.close()
        del running, run
        if progress is not None:
            progress(f"running {name}", index + 1, len(candidates))
    return backends, skipped


def _files(bundle: Bundle, backend: str) -> Iterable[str]:
    for engine in bundle.manifest.engines:
        if engine["name"] == backend:
            return list(engine["files"].values())
    return GRAPHS


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _choices(reference: Reference, variants: dict[str, Variant]) -> list[list[dict[str, Any]]]:
    """What PyTorch chose for each sample, with the variants where it turned."""
    choices = [[{**one, "turned": []} for one in made] for made in reference.made]
    for name, variant in variants.items():
        for sample, at in variant.turned:
            choices[sample][at]["turned"].append(name)
    return choices


def _relative(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The relative error of each logit; infinite where it is not finite."""
    error = np.abs(got - expected) / max(float(np.abs(expected).max()), 1e-30)
    return np.where(np.isfinite(error), error, np.inf)


def _differences(
    bundle: Bundle, samples: list[Sample], reference: Reference, logits: list[np.ndarray]
) -> dict[str, Any]:
    """For each picture how logits differ from PyTorch's, and the histogram of all."""
    rows = []
    counts = np.zeros(len(BINS), np.int64)
    for sample, expected, got in zip(samples, reference.logits, logits, strict=True):
        mask, wanted = mask_of(bundle, sample, got), mask_of(bundle, sample, expected)
        error = _relative(got, expected)
        logs = np.log10(np.clip(error, 10.0 ** BINS[0], 10.0 ** BINS[-1]))
        places = np.clip(np.digitize(logs, BINS) - 1, 0, len(BINS) - 1)
        counts += np.bincount(places.ravel(), minlength=len(BINS))
        largest = float(error.max())
        rows.append(
            {
                "max_rel_error": largest if math.isfinite(largest) else None,
                "pixels_changed": int((mask != wanted).sum()),
                "pixels": mask.size,
                "iou": 100 * iou(mask, wanted),
            }
        )
    return {"pictures": rows, "histogram": counts.tolist()}


def _judged(facts: dict[str, Any], rounds: bool) -> dict[str, Any]:
    """With the verdict: FP32 is held to its error, what rounds to the pixels that it changes."""
    rows = facts["pictures"]
    errors = [row["max_rel_error"] for row in rows]
    if rounds:
        shares = [row["pixels_changed"] / row["pixels"] for row in rows]
        passed = None not in errors and max(shares) <= MAX_ROUNDED_SHARE
    else:
        passed = all(error is not None and error <= MAX_REL_ERROR for error in errors)
    return {**facts, "rounds": rounds, "passed": passed}


def _failure(name: str, facts: dict[str, Any]) -> str:
    errors = [row["max_rel_error"] for row in facts["pictures"]]
    if None in errors:
        return f"{name} gives logits that are not finite"
    if facts["rounds"]:
        worst = max(row["pixels_changed"] / row["pixels"] for row in facts["pictures"])
        return f"{name} changes {worst:.1%} of a picture's pixels (limit {MAX_ROUNDED_SHARE:.0%})"
    return f"{name} has a relative error of {max(errors):.1e} (limit {MAX_REL_ERROR:.0e})"
