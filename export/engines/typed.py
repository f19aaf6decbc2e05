"""A bundle's graphs in an engine's precision: what would overflow is measured, and stays FP32."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from tfanet.errors import InputError
from tfanet.export.compare import Case, case_feed
from tfanet.export.engines.build import load_graph
from tfanet.export.engines.magnitudes import measure_magnitudes
from tfanet.export.engines.masks import bundle_cases, compare_masks
from tfanet.export.engines.precision import Kept, cast_graph
from tfanet.plugins import ort_library_path
from tfanet.runtime import Predictor
from tfanet.runtime.backends.session import open_session
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT, image_feed
from tfanet.runtime.bundle.read import Bundle

__all__ = ["make_typed_graphs", "sample_feeds", "typed_graphs"]


def make_typed_graphs(
    bundle: Bundle, precision: str, keep: list[str], samples: Sequence[tuple[Path, str]]
) -> tuple[dict[str, ModelProto], dict[str, Any]]:
    """Both graphs in `precision`, and what the manifest says of them."""
    graphs = {name: load_graph(bundle.file(name), bundle.read(name)) for name in GRAPHS}
    if precision == "fp32":
        return graphs, {"keep": [], "kept": {}, "typed_graph": None, "range_samples": 0}
    cases = bundle_cases(bundle)
    library = ort_library_path()
    patterns = {name: [p for p in keep if _fits(p, graphs[name])] for name in GRAPHS}
    unused = [p for p in keep if not any(p in found for found in patterns.values())]
    if unused:
        middle = graphs[IMAGE].graph.node[len(graphs[IMAGE].graph.node) // 2]
        raise InputError(f"no node's name fits {unused[0]!r}: names are such as {middle.name!r}")
    typed: dict[str, ModelProto] = {}
    rounded: dict[str, ModelProto] = {}
    kept: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        feeds = sample_feeds(bundle, samples) if samples else _case_feeds(bundle, cases)
        for name in GRAPHS:
            ranges = measure_magnitudes(graphs[name], feeds[name], library=library, folder=folder)
            options: dict[str, Any] = {"keep": patterns[name], "ranges": ranges}
            typed[name], table = cast_graph(graphs[name], precision, **options)
            rounded[name], _ = cast_graph(graphs[name], precision, emulate=True, **options)
            kept[name] = _summary(table)
        sessions = []
        for name in GRAPHS:
            path = folder / name
            path.write_bytes(rounded[name].SerializeToString())
            sessions.append(open_session(path, library))
            path.unlink()
        rows = compare_masks(bundle, cases, f"graphs in {precision}", *sessions)
    return typed, {"keep": keep, "kept": kept, "typed_graph": rows, "range_samples": len(samples)}


def typed_graphs(
    bundle: Bundle, record: Mapping[str, Any], *, emulate: bool = False
) -> dict[str, ModelProto]:
    """Both graphs in an engine's precision, as they were when it was built.

    Args:
        record: the engine's. emulate: in FP32 with its rounding, for ONNX Runtime on any machine.
    """
    graphs = {}
    for name in GRAPHS:
        graphs[name] = load_graph(bundle.file(name), bundle.read(name))
        if record["rest"] != "fp32":
            by_range = [row["node"] for row in record["kept"][name] if "node" in row]
            keep = [p for p in record["keep"] if _fits(p, graphs[name])]
            keep += map(glob.escape, by_range)
            graphs[name], _ = cast_graph(graphs[name], record["rest"], keep=keep, emulate=emulate)
    return graphs


def sample_feeds(
    bundle: Bundle, samples: Sequence[tuple[Path, str]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Inputs of both graphs, by name, for pictures and their sentences."""
    predictor = Predictor(bundle.path, backend="onnxruntime-cpu")
    taken = bundle.manifest.interface.image_inputs
    text, image = [], []
    for path, sentence in samples:
        encoded = predictor.encode_text(sentence)
        text.append({"token_ids": predictor.tokenize(sentence)[0]})
        picture = predictor.preprocess(path)[0][None]
        image.append(image_feed(taken, picture, encoded.features, encoded.mask))
    return {TEXT: text, IMAGE: image}


def _case_feeds(bundle: Bundle, cases: list[Case]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Inputs of both graphs from the cases of the parity check."""
    session = open_session(bundle.file(TEXT), None, content=partial(bundle.read, TEXT))
    taken = bundle.manifest.interface.image_inputs
    return {
        TEXT: [{"token_ids": case.token_ids} for case in cases],
        IMAGE: [case_feed(session, taken, case) for case in cases],
    }


def _fits(pattern: str, model: ModelProto) -> bool:
    return any(fnmatchcase(node.name, pattern) for node in model.graph.node)


def _summary(table: list[Kept]) -> list[dict[str, Any]]:
    """Rows of one reason and operator together; those with a value, one by one."""
    counts: dict[tuple[str, str], int] = {}
    single = []
    for row in table:
        if row.value is None:
            counts[row.why, row.op] = counts.get((row.why, row.op), 0) + 1
        else:
            value = float(f"{min(row.value, 1e38):.3g}")
            single.append({"op": row.op, "why": row.why, "node": row.node, "value": value})
    return [{"op": op, "why": why, "nodes": n} for (why, op), n in counts.items()] + single
