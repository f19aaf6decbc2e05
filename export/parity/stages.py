"""Where precision is lost: the error behind each part of the model, for each kind of graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper
from torch import nn

from tfanet.export.compare import case_feed
from tfanet.export.engines.build import load_graph
from tfanet.export.engines.typed import typed_graphs
from tfanet.export.parity.choices import choices_of, chosen
from tfanet.export.parity.samples import Reference, Sample
from tfanet.model.checkpoint import family_of
from tfanet.plugins import ort_library_path
from tfanet.progress import Progress
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, names_of
from tfanet.runtime.bundle.read import Bundle

__all__ = ["GRAPH", "Variant", "compare_stages", "stages_of"]

GRAPH = "onnxruntime"  # the graphs as they are


@dataclass
class Variant:
    """The bundle's graphs, or those of an engine with its rounding.

    Attributes:
        errors: the largest relative error behind each stage. turned: choices unlike PyTorch's, as
            sample and place. logits: of each sample, (h, w).
    """

    errors: dict[str, float]
    turned: list[tuple[int, int]]
    logits: list[np.ndarray]


def stages_of(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are compared: parts, and those that it chooses by."""
    patterns = (*family_of(model).parts, *(choice.scores for choice in choices_of(model)))
    return [
        name
        for name, _ in model.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def compare_stages(
    bundle: Bundle, samples: list[Sample], reference: Reference, progress: Progress | None
) -> dict[str, Variant]:
    """The bundle's graphs, and for each engine of lower precision its graphs with that rounding."""
    variants: dict[str, Callable[[], dict[str, ModelProto]]] = {
        GRAPH: lambda: {n: load_graph(bundle.file(n), bundle.read(n)) for n in GRAPHS}
    }
    for record in bundle.manifest.engines:
        if record["precision"] in ("fp16", "bf16"):
            variants[f"{record['name']} (rounding emulated)"] = lambda record=record: (  # type: ignore[misc]
                typed_graphs(bundle, record, emulate=True)
            )
    found = {}
    for index, (name, make) in enumerate(variants.items()):
        found[name] = _run_variant(make(), samples, reference)
        if progress is not None:
            progress(f"stages of {name}", index + 1, len(variants))
    return found


def _run_variant(
    graphs: dict[str, ModelProto], samples: list[Sample], reference: Reference
) -> Variant:
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
    turned: list[tuple[int, int]] = []
    found = []
    for index, (sample, stages, logits) in enumerate(
        zip(samples, reference.stages, reference.logits, strict=True)
    ):
        case = sample.case
        taken = names_of(sessions[1].get_inputs())
        feed = case_feed(sessions[0], taken, case)
        got = sessions[1].run(["mask_logit", *places.values()], feed)
        found.append(got[0][0, 0])
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
    return Variant(largest, turned, found)


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
