"""Parity: what a bundle computes against PyTorch, on fixed and random inputs, on every backend.

A case passes where  max|z - z_torch| / max|z_torch|  of every output z is at most 1e-4, and at
most 1 pixel in 100,000 lies on another side of the threshold. Where more do, PyTorch is run in
float64: pixels that lie no farther from the threshold than its own error in float32 are open, no
float32 arithmetic can place them, and they do not count. An engine of lower precision rounds: it
may change 1 pixel in 100.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tfanet.errors import GateError, InputError, MissingDependencyError
from tfanet.export.compare import (
    MAX_PIXEL_SHARE,
    MAX_REL_ERROR,
    MAX_ROUNDED_SHARE,
    Case,
    compare_logits,
    make_cases,
    relative_error,
    run_outputs,
)
from tfanet.export.parity.choices import choices_of, chosen, in_words, recorded
from tfanet.model.checkpoint import family_of, load_model
from tfanet.plugins import ort_library_path
from tfanet.progress import Progress
from tfanet.runtime.backends.choose import MAX_BATCH, Options, Running, open_graphs
from tfanet.runtime.backends.engine import EngineError
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.contract import Tokenization
from tfanet.runtime.bundle.graphs import IMAGE, TEXT
from tfanet.runtime.bundle.read import Bundle

__all__ = [
    "Backend",
    "bundle_backends",
    "check_bundle",
    "check_graphs",
    "file_backends",
    "load_reference",
]


@dataclass(frozen=True)
class Backend:
    """One way to run both graphs: whether it rounds to lower precision, and how to open it."""

    rounds: bool
    open: Callable[[], Running]

    @property
    def limits(self) -> tuple[float, float]:
        """Largest relative error, and share of pixels that may change."""
        return (math.inf, MAX_ROUNDED_SHARE) if self.rounds else (MAX_REL_ERROR, MAX_PIXEL_SHARE)


def file_backends(
    text: Path, image: Path, read: Callable[[str], bytes] | None = None
) -> dict[str, Backend]:
    """ONNX Runtime on two files, with our operator library and with the function body in them.

    Args:
        read: gives the checked bytes of each by its name, where it is a bundle's.
    """

    def load(path: Path, library: Path | None) -> Any:
        content = None if read is None else partial(read, path.name)
        return open_session(path, library, content=content)

    def run(find_library: Callable[[], Path | None]) -> Running:
        library = find_library()
        try:
            graphs = load(text, library), load(image, library)
        except MissingDependencyError as error:  # the folder may be one that goes away
            raise MissingDependencyError(str(error).replace(f"{image.parent}/", "")) from error
        return Running("onnxruntime-cpu", *graphs, "", (1, MAX_BATCH))

    return {
        "onnxruntime": Backend(False, lambda: run(ort_library_path)),
        "onnxruntime, function body": Backend(False, lambda: run(lambda: None)),
    }


def bundle_backends(bundle: Bundle) -> dict[str, Backend]:
    """`file_backends`, ONNX Runtime on a GPU, and the bundle's engines."""
    backends = file_backends(bundle.file(TEXT), bundle.file(IMAGE), bundle.read)

    def cuda() -> Running:
        return open_graphs(bundle, "onnxruntime-cuda", Options(op_library=ort_library_path()))

    backends["onnxruntime-cuda"] = Backend(False, cuda)
    for engine in bundle.manifest.engines:
        opener = partial(open_graphs, bundle, engine["name"], Options())
        backends[engine["name"]] = Backend(engine["precision"] != "fp32", opener)
    return backends


def check_graphs(
    model: Any,
    backends: Mapping[str, Backend],
    size: tuple[int, int],
    *,
    tokens: Tokenization | None = None,
    dynamic_batch: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare backends with the model, all that can run here.

    Args:
        model: in evaluation mode. backends: by name. size: (H, W) of the image graph. tokens: of
            the bundle; by default those of the shipped tokenizer.

    Returns:
        max_rel_error of any output, pixels_changed and pixels over all cases that do not round;
        the limits; cases: name, backend, batch, max_rel_error, pixels_changed, pixels, and
        pixels_open where that many of the changed are open in float32; choices: by the case, for
        each of its pictures, what PyTorch chose; skipped: backends that cannot run here, why.

    Raises:
        GateError: where a limit is exceeded, or a logit is not finite.
    """
    family = family_of(model)
    cases = make_cases(tokens or family.tokenization(model.config), size, dynamic_batch)
    threshold = family.postprocessing.logit_threshold
    runs = [_run_torch(model, case) for case in cases]
    choices = {case.name: made for case, (_, made) in zip(cases, runs, strict=True) if any(made)}
    left_open = cache(lambda index: _left_open(model, cases[index], runs[index][0], threshold))
    results: list[dict[str, Any]] = []
    exact: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for index, (name, backend) in enumerate(backends.items()):
        # One backend at a time: each holds the weights once more.
        try:
            running = backend.open()
        except (MissingDependencyError, EngineError) as error:
            skipped[name] = str(error)
            continue
        low, high = running.batches
        for number, (case, (wanted, _)) in enumerate(zip(cases, runs, strict=True)):
            if low <= case.image.shape[0] <= high:
                got = run_outputs(running.text, running.image, case)
                mask = wanted["mask_logit"], got["mask_logit"]
                results.append(compare_logits(case, name, *mask, threshold))
                errors = [relative_error(got[output], wanted[output]) for output in got]
                results[-1]["max_rel_error"] = max(errors)
                many = results[-1]["pixels_changed"] > MAX_PIXEL_SHARE * mask[0].size
                if many and not backend.rounds:
                    changed = (mask[0] > threshold) != (mask[1] > threshold)
                    results[-1]["pixels_open"] = int((changed & left_open(number)).sum())
                _gate(results[-1], backend, choices.get(case.name, []))
                exact += [] if backend.rounds else results[-1:]
        running.close()
        del running
        if progress is not None:
            progress(f"comparing {name} with PyTorch", index + 1, len(backends))
    if not exact:
        raise MissingDependencyError("; ".join(skipped.values()))
    return {
        "max_rel_error": max(result["max_rel_error"] for result in exact),
        "pixels_changed": sum(result["pixels_changed"] for result in exact),
        "pixels": sum(result["pixels"] for result in exact),
        "limits": {"max_rel_error": MAX_REL_ERROR, "pixel_share": MAX_PIXEL_SHARE},
        "cases": results,
        "choices": choices,
        "skipped": skipped,
    }


def check_bundle(
    bundle: str | Path, *, checkpoint: str | Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run `check_graphs` for a bundle, against its preset's weights or those of `checkpoint`.

    Raises:
        BundleError: for a bad bundle. InputError: see `load_reference`. GateError: where a limit is
            exceeded.
    """
    opened = Bundle.open(bundle)
    return check_graphs(
        load_reference(opened, checkpoint),
        bundle_backends(opened),
        opened.manifest.preprocessing.size,
        tokens=opened.manifest.text,
        dynamic_batch=opened.manifest.dynamic_batch,
        progress=progress,
    )


def load_reference(bundle: Bundle, checkpoint: str | Path | None) -> Any:
    """The model that a bundle was exported from, in PyTorch.

    Raises InputError where the bundle is quantised, where it was made from a checkpoint and none is
    given, or where the checkpoint is of another model.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path} is in {manifest.precision}, which rounds: its certificate is checked "
            "instead, give the data that it was measured on (--data FOLDER)"
        )
    if checkpoint is None and manifest.model["source"] != "preset":
        raise InputError(
            f"{bundle.path} was exported from a checkpoint: name that file to compare with it "
            "(--checkpoint FILE)"
        )
    model = load_model(checkpoint or manifest.model["preset"])
    if model.config.text_length != manifest.text.length:
        raise InputError(
            f"the checkpoint takes {model.config.text_length} tokens, the bundle "
            f"{manifest.text.length}: they are of different models"
        )
    return model


def _run_torch(
    model: nn.Module, case: Case
) -> tuple[dict[str, np.ndarray], list[list[dict[str, Any]]]]:
    """All that the model's two methods give for a case, by name; what it chose for each picture."""
    family, choices = family_of(model), choices_of(model)
    image, ids, mask = map(torch.from_numpy, (case.image, case.token_ids, case.word_mask))
    scores: dict[str, np.ndarray] = {}
    with torch.no_grad(), recorded(model, [choice.scores for choice in choices], scores):
        given = family.run_image(model, image, family.run_text(model, ids), mask)
    made = [chosen(choices, scores, sample) for sample in range(len(ids))]
    return {name: value.numpy() for name, value in given.items()}, made


def _left_open(
    model: nn.Module, case: Case, given: Mapping[str, np.ndarray], threshold: float
) -> np.ndarray:
    """Pixels of the mask logit whose side float32 cannot tell, (batch, 1, h, w) bool; see above.

    None of them where PyTorch's own error in float32 is larger than a graph's may be: then
    something else is wrong.
    """
    doubled = replace(
        case, image=case.image.astype(np.float64), word_mask=case.word_mask.astype(np.float64)
    )
    exact = _run_torch(copy.deepcopy(model).double(), doubled)[0]["mask_logit"]
    error = np.abs(given["mask_logit"] - exact).max()
    small = error <= MAX_REL_ERROR * np.abs(exact).max()
    return np.asarray(small & (np.abs(exact - threshold) <= error))


def _gate(
    case: Mapping[str, Any], backend: Backend, choices: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    error_limit, share_limit = backend.limits
    left_open = case.get("pixels_open", 0)
    share = (case["pixels_changed"] - left_open) / case["pixels"]
    if case["max_rel_error"] > error_limit or share > share_limit:
        made = "".join(f" (PyTorch chose {in_words(one)})" for one in choices)
        raise GateError(
            f"parity failed: {case['backend']}, case {case['name']!r}: largest relative "
            f"error {case['max_rel_error']:.1e} (limit {error_limit:.0e}), "
            f"{case['pixels_changed']} of {case['pixels']} pixels changed"
            f"{f', {left_open} of them open in float32' if left_open else ''} (limit "
            f"{share_limit:.0e} of all): the graph does not compute what these weights "
            f"do in PyTorch{made}"
        )
