"""`write_report`: where a bundle differs from PyTorch, as parity.json and a page with pictures."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import onnx
import torch
from onnx import ModelProto, helper
from PIL import Image
from torch import nn

from tfanet.errors import InputError, MissingDependencyError
from tfanet.evaluation.metrics import iou
from tfanet.export.compare import Case, case_feed, run_case
from tfanet.export.engines.build import load_graph
from tfanet.export.engines.typed import typed_graphs
from tfanet.export.parity.check import bundle_backends, load_reference
from tfanet.export.parity.choices import choices_of, chosen, in_words, recorded
from tfanet.model.checkpoint import family_of
from tfanet.model.family import Choice
from tfanet.plugins import ort_library_path
from tfanet.progress import Progress
from tfanet.runtime.backends.engine import EngineError
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, names_of
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.bundle.write import check_folder
from tfanet.runtime.overlay import overlay
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor, plane_to_mask
from tfanet.runtime.tokenizer import tokenizer_of

__all__ = ["check_report", "stages_of", "write_report"]

FIGURES, PAGE = "parity.json", "report.html"

# log10 of |z - z_torch| / max|z_torch|, pixel by pixel; smaller errors go into the first bin.
BINS = np.arange(-8, 0.5, 0.5)
THUMBNAIL = 320  # pixels of a picture's longer side on the page


@dataclass(frozen=True)
class _Sample:
    sentence: str
    picture: Image.Image
    case: Case


@dataclass(frozen=True)
class _Reference:
    logits: list[np.ndarray]  # of each sample, (h, w)
    stages: list[dict[str, np.ndarray]]
    choices: tuple[Choice, ...]
    made: list[list[dict[str, Any]]]  # of these, for each sample


def write_report(
    bundle: str | Path,
    output: str | Path,
    pictures: Sequence[tuple[str | Path, str]],
    *,
    checkpoint: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run pictures through every backend that can run here, and write down how they differ.

    Args:
        output: a directory, which gets parity.json and report.html. pictures: files and sentences.
        checkpoint: the weights, where the bundle's preset does not hold them.
        overwrite: replace a report that is there.

    Returns:
        The content of parity.json: model, pictures; backends: for each name and picture the largest
        relative error of the logits, changed pixels and the IoU with PyTorch's mask (in percent),
        and a histogram of errors; stages: for the graphs, and for each engine of lower precision
        its graphs with the same rounding, the largest relative error behind each part of the
        model; skipped: backends that cannot run here, and why. Where the model chooses, a picture
        has choices: for each what `chosen` gives of PyTorch, and turned: which of those graphs
        took another option.

    Raises:
        InputError: without pictures, for a bad one, and as `load_reference` and `check_report` do.
    """
    output = check_report(output, overwrite=overwrite)
    if not pictures:
        raise InputError("no picture was given: name some with their sentences")
    opened = Bundle.open(bundle)
    model = load_reference(opened, checkpoint)
    samples = [_prepare(opened, path, sentence) for path, sentence in pictures]
    reference = _reference(model, samples)
    del model
    output.mkdir(parents=True, exist_ok=True)

    backends: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    masks: dict[str, list[np.ndarray]] = {}
    candidates = bundle_backends(opened)
    for index, (name, backend) in enumerate(candidates.items()):
        try:
            running = backend.open()
        except (MissingDependencyError, EngineError) as error:
            skipped[name] = str(error)
            continue
        logits = [run_case(running.text, running.image, s.case)[0, 0] for s in samples]
        running.close()
        del running
        backends[name], masks[name] = _differences(opened, samples, reference, logits)
        if progress is not None:
            progress(f"running {name}", index + 1, len(candidates))
    stages, choices = _compare_stages(opened, samples, reference, progress)
    report = {
        "bundle": opened.path.name,
        "model": opened.manifest.model["preset"],
        "pictures": [
            {"file": sample.case.name, "sentence": sample.sentence, "choices": made}
            for sample, made in zip(samples, choices, strict=True)
        ],
        "bins": BINS.tolist(),
        "backends": backends,
        "stages": stages,
        "skipped": skipped,
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (output / FIGURES).write_text(text, encoding="utf-8")
    torch_masks = [_mask(opened, s, z) for s, z in zip(samples, reference.logits, strict=True)]
    page = _page(report, samples, {"PyTorch": torch_masks, **masks})
    (output / PAGE).write_text(page, encoding="utf-8")
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


def stages_of(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are compared: parts, and those that it chooses by."""
    patterns = (*family_of(model).parts, *(choice.scores for choice in choices_of(model)))
    return [
        name
        for name, _ in model.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _prepare(bundle: Bundle, path: str | Path, sentence: str) -> _Sample:
    picture = load_image(path)
    ids, mask = tokenizer_of(bundle)(sentence)
    image = picture_to_tensor(picture, bundle.manifest.preprocessing)[None]
    return _Sample(sentence, picture, Case(Path(path).name, image, ids, mask))


def _reference(model: nn.Module, samples: list[_Sample]) -> _Reference:
    """PyTorch's logits, what its parts give and what it chose, for each sample."""
    logits, stages, names = [], [], stages_of(model)
    for sample in samples:
        found: dict[str, np.ndarray] = {}
        with recorded(model, names, found), torch.no_grad():
            values = (sample.case.image, sample.case.token_ids, sample.case.word_mask)
            z = model(*map(torch.from_numpy, values))
        logits.append(z[0, 0].numpy())
        stages.append(found)
    choices = choices_of(model)
    made = [chosen(choices, found) for found in stages]
    return _Reference(logits, stages, choices, made)


def _mask(bundle: Bundle, sample: _Sample, logits: np.ndarray) -> np.ndarray:
    size = (sample.picture.height, sample.picture.width)
    manifest = bundle.manifest
    return plane_to_mask(logits, size, manifest.preprocessing, manifest.postprocessing)[0]


def _differences(
    bundle: Bundle, samples: list[_Sample], reference: _Reference, logits: list[np.ndarray]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """One backend's entry of the report, and its masks."""
    rows, masks = [], []
    counts = np.zeros(len(BINS), np.int64)
    for sample, expected, got in zip(samples, reference.logits, logits, strict=True):
        mask, wanted = _mask(bundle, sample, got), _mask(bundle, sample, expected)
        error = np.abs(got - expected) / np.abs(expected).max()
        logs = np.log10(np.maximum(error, 10.0 ** BINS[0]))
        counts += np.bincount(np.digitize(logs, BINS).ravel() - 1, minlength=len(BINS))
        rows.append(
            {
                "max_rel_error": float(error.max()),
                "pixels_changed": int((mask != wanted).sum()),
                "pixels": mask.size,
                "iou": 100 * iou(mask, wanted),
            }
        )
        masks.append(mask)
    return {"pictures": rows, "histogram": counts.tolist()}, masks


def _compare_stages(
    bundle: Bundle, samples: list[_Sample], reference: _Reference, progress: Progress | None
) -> tuple[dict[str, dict[str, float]], list[list[dict[str, Any]]]]:
    """For each variant of the image graph, the largest relative error behind each stage.

    Also what PyTorch chose for each sample, with the variants where it turned.
    """
    variants: dict[str, Callable[[], dict[str, ModelProto]]] = {
        "onnxruntime": lambda: {n: load_graph(bundle.file(n), bundle.read(n)) for n in GRAPHS}
    }
    for record in bundle.manifest.engines:
        if record["precision"] in ("fp16", "bf16"):
            variants[f"{record['name']} (rounding emulated)"] = lambda record=record: (  # type: ignore[misc]
                typed_graphs(bundle, record, emulate=True)
            )
    errors = {}
    choices = [[{**one, "turned": []} for one in made] for made in reference.made]
    for index, (name, make) in enumerate(variants.items()):
        errors[name], turned = _errors_by_stage(make(), samples, reference)
        for sample, at in turned:
            choices[sample][at]["turned"].append(name)
        if progress is not None:
            progress(f"stages of {name}", index + 1, len(variants))
    return errors, choices


def _errors_by_stage(
    graphs: dict[str, ModelProto], samples: list[_Sample], reference: _Reference
) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """The largest relative error behind each stage; choices unlike PyTorch's: sample, place."""
    shapes = {name: value.shape[1:] for name, value in reference.stages[0].items()}
    places = _places(graphs[IMAGE], shapes)
    for value in places.values():
        graphs[IMAGE].graph.output.append(helper.make_empty_tensor_value_info(value))
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for name in GRAPHS:
            path = Path(folder) / name
            path.write_bytes(graphs.pop(name).SerializeToString())
            sessions.append(open_session(path, ort_library_path()))
            path.unlink()
    largest = dict.fromkeys([*places, "mask_logit"], 0.0)
    # Of one option a graph has no scores.
    at_places = [i for i, choice in enumerate(reference.choices) if choice.scores in places]
    turned = []
    for index, (sample, stages, logits) in enumerate(
        zip(samples, reference.stages, reference.logits, strict=True)
    ):
        case = sample.case
        taken = names_of(sessions[1].get_inputs())
        feed = case_feed(sessions[0], taken, case)
        got = sessions[1].run(["mask_logit", *places.values()], feed)
        pairs = {"mask_logit": (got[0][0, 0], logits)}
        pairs |= {n: (value, stages[n]) for n, value in zip(places, got[1:], strict=True)}
        for name, (value, wanted) in pairs.items():
            error = float(np.abs(value - wanted).max() / np.abs(wanted).max())
            largest[name] = max(largest[name], error)
        scores = dict(zip(places, got[1:], strict=True))
        made = chosen([reference.choices[i] for i in at_places], scores)
        turned += [
            (index, i)
            for i, one in zip(at_places, made, strict=True)
            if one["chosen"] != reference.made[index][i]["chosen"]
        ]
    return largest, turned


def _places(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The tensor in the graph that a module's output became, by name, where there is one.

    Nodes are named by the module that they come from: it is the last of them whose value has the
    output's shape, but for the batch.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    sizes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        for value in (*typed.graph.value_info, *typed.graph.output)
    }
    places = {}
    for stage, shape in shapes.items():
        inside = (f"{stage}/", f"{stage}.")
        made = [
            value
            for node in model.graph.node
            if node.name.startswith(inside)
            for value in node.output
            if sizes.get(value) == shape
        ]
        if made:
            places[stage] = made[-1]
    return places


def _page(
    report: dict[str, Any], samples: list[_Sample], masks: dict[str, list[np.ndarray]]
) -> str:
    rows = []
    for index, sample in enumerate(samples):
        pictures = [
            (name, _png(overlay(sample.picture, found[index]))) for name, found in masks.items()
        ]
        facts = report["pictures"][index]
        rows.append((facts, [("picture", _png(sample.picture)), *pictures]))
    source = (resources.files("tfanet.export.parity") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source)
    return page.render(report=report, rows=rows, in_words=in_words)


def _png(picture: Image.Image) -> str:
    """A data URL of a picture, made small."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
