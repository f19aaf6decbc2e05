"""How much each layer alone, quantised, moves the mask logits.

A model with a switch for every layer is opened once; with one switch on, one layer computes from
rounded values. That is one run for each layer and picture, and no session for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tfanet.calibration.accept.accuracy import logits
from tfanet.calibration.graph.index import GraphIndex, replace_nodes
from tfanet.calibration.graph.layers import QUANTISED, Layer
from tfanet.calibration.graph.prepared import PreparedBundle
from tfanet.calibration.graph.session import Inputs, mask_logits, open_model
from tfanet.calibration.ranges import Calibration
from tfanet.calibration.rewrite.qdq import quantize
from tfanet.progress import Progress
from tfanet.runtime.bundle.graphs import GRAPHS

__all__ = ["SWITCHES", "measure_sensitivity", "switched"]

SWITCHES = "switches"


def measure_sensitivity(
    prepared: PreparedBundle,
    calibration: Calibration,
    inputs: Inputs,
    *,
    count: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Relative change of the logits, ||z_q - z|| / ||z|| over `count` pictures, by layer name.

    Args:
        prepared: with the calibration's channels moved. inputs: at least `count` pictures.
    """
    pictures = list(itertools.islice(inputs(), count))
    exact = list(logits(prepared.models, lambda: pictures))
    power = sum(float((z.astype(np.float64) ** 2).sum()) for z in exact) or 1.0
    layers = {
        name: [layer for layer in prepared.layers[name] if layer.placement == QUANTISED]
        for name in GRAPHS
    }
    total = sum(map(len, layers.values()))
    result: dict[str, float] = {}
    for name in GRAPHS:
        model, amax = prepared.models[name], calibration.graphs[name].amax
        quantized = quantize(model, layers[name], amax, grid=calibration.grid)
        models = {**prepared.models, name: switched(model, quantized, layers[name])}
        sessions = {graph: open_model(models[graph]) for graph in GRAPHS}
        for index, layer in enumerate(layers[name]):
            on = {name: {SWITCHES: np.arange(len(layers[name])) == index}}
            error = 0.0
            for pair, z in zip(pictures, exact, strict=True):
                moved = mask_logits(sessions, pair, on)
                error += float(((moved.astype(np.float64) - z) ** 2).sum())
            result[layer.name] = float(np.sqrt(error / power))
            if progress is not None:
                progress("measuring sensitivity", len(result), total)
    return result


def switched(model: ModelProto, quantized: ModelProto, layers: Sequence[Layer]) -> ModelProto:
    """Both in one, with an input `switches`, (len(layers),) bool: layer i is quantised where set.

    Args:
        quantized: `model` with all of `layers` quantised; it is changed, and returned.
    """
    graph = quantized.graph
    before = {node.name: node for node in model.graph.node if node.name}
    index = GraphIndex(model)
    weights = {layer.weight for layer in layers}
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(layers)]))
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in weights)
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
    replace_nodes(quantized, nodes)
    return quantized


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
