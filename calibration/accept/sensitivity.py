"""How much each layer alone, quantised, moves the mask logits.

A model with a switch for every layer is opened once; with one switch on, one layer computes from
rounded values. That is one run for each layer and picture, and no session for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tfanet.calibration import grid as grids
from tfanet.calibration.accept.accuracy import logits
from tfanet.calibration.graph.placement import INT8, Layer
from tfanet.calibration.graph.reading import Graph
from tfanet.calibration.grid import Grid
from tfanet.calibration.measure.collect import open_model
from tfanet.calibration.measure.source import Inputs, Source
from tfanet.calibration.rewrite.qdq import quantize
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT, image_feed

__all__ = ["SWITCHES", "measure_sensitivity", "switched"]

SWITCHES = "switches"


def measure_sensitivity(
    source: Source,
    amax: Mapping[str, Mapping[str, float]],
    inputs: Inputs,
    *,
    grid: Grid = grids.INT8,
    count: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Relative change of the logits, ||z_q - z|| / ||z|| over `count` pictures, by layer name.

    Args:
        source: prepared. amax: by file and value name. inputs: at least `count` pictures.
    """

    def few() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return list(itertools.islice(inputs(), count))

    exact = list(logits(source.models, few))
    power = sum(float((z.astype(np.float64) ** 2).sum()) for z in exact) or 1.0
    layers = {
        name: [layer for layer in source.layers[name] if layer.precision == INT8] for name in GRAPHS
    }
    total = sum(map(len, layers.values()))
    result: dict[str, float] = {}
    for name in GRAPHS:
        session = open_model(switched(source.models[name], layers[name], amax[name], grid))
        other = open_model(source.models[IMAGE if name == TEXT else TEXT])
        pictures = few()
        for index, layer in enumerate(layers[name]):
            on = np.arange(len(layers[name])) == index
            error = 0.0
            for (picture, ids, mask), z in zip(pictures, exact, strict=True):
                if name == TEXT:
                    features = session.run(None, {"token_ids": ids, SWITCHES: on})
                else:
                    features = other.run(None, {"token_ids": ids})
                feed = image_feed(picture, features, mask)
                if name == TEXT:
                    got = other.run(None, feed)[0]
                else:
                    got = session.run(None, {**feed, SWITCHES: on})[0]
                error += float(((got.astype(np.float64) - z) ** 2).sum())
            result[layer.name] = float(np.sqrt(error / power))
            if progress is not None:
                progress("measuring sensitivity", len(result), total)
    return result


def switched(
    model: ModelProto,
    layers: Sequence[Layer],
    amax: Mapping[str, float],
    grid: Grid = grids.INT8,
) -> ModelProto:
    """`model` with an input `switches`, (len(layers),) bool: layer i is quantised where it is set.

    All layers must be of precision int8.
    """
    quantized = quantize(model, layers, amax, grid=grid)
    graph = quantized.graph
    before = {node.name: node for node in model.graph.node if node.name}
    index = Graph(model)
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(layers)]))
    graph.initializer.extend(
        tensor for tensor in model.graph.initializer if _is_rounded(tensor.name, layers)
    )
    switch_of: dict[tuple[str, str], str] = {}
    flags: list[NodeProto] = []
    for number, layer in enumerate(layers):
        flag = f"{SWITCHES}.{number}"
        graph.initializer.append(numpy_helper.from_array(np.array(number), f"{flag}.index"))
        flags.append(helper.make_node("Gather", [SWITCHES, f"{flag}.index"], [flag]))
        switch_of |= {(layer.node, name): flag for name in (*layer.inputs, layer.weight)}
    for number, layer in enumerate(layers):
        for reader in index.consumers[layer.output] if layer.output else ():
            for name in reader.input:
                switch_of.setdefault((reader.name, name), f"{SWITCHES}.{number}")
    nodes: list[NodeProto] = list(flags)
    for node in graph.node:
        nodes.extend(_choose(node, before.get(node.name), switch_of))
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return quantized


def _is_rounded(name: str, layers: Sequence[Layer]) -> bool:
    return any(layer.weight == name for layer in layers)


def _choose(
    node: NodeProto, before: NodeProto | None, switch_of: Mapping[tuple[str, str], str]
) -> list[NodeProto]:
    """Where nodes between the exact and the rounded form of each input that was replaced."""
    if before is None:
        return [node]
    nodes = []
    # A Relu that was written as Max has a constant more.
    for place, (exact, rounded) in enumerate(zip(before.input, node.input, strict=False)):
        if exact == rounded:
            continue
        chosen = f"{node.name}.{place}.chosen"
        flag = switch_of[node.name, exact]
        nodes.append(helper.make_node("Where", [flag, rounded, exact], [chosen], chosen))
        node.input[place] = chosen
    return [*nodes, node]


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
