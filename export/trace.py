"""`export_graph`: any PyTorch module as one ONNX graph, its selective scans as single nodes."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from tfanet.errors import InputError, check_choice
from tfanet.export.simplify import simplify
from tfanet.plugins import custom_translation_table
from tfanet.plugins.graph.attach import KINDS

__all__ = [
    "EXAMPLE_BATCH",
    "IR_VERSION",
    "OPSETS",
    "check_options",
    "export_graph",
    "graph_interface",
]

OPSETS = range(18, 24)
IR_VERSION = 10  # what ONNX Runtime 1.20, the oldest that we support, reads
# A batch of 1 would be taken for a constant.
EXAMPLE_BATCH = 3


def check_options(function: str, opset: int) -> None:
    """Raises InputError for a scan function or an opset that there is not."""
    check_choice("function", function, KINDS)
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}: choose {OPSETS[0]} to {OPSETS[-1]}")


def graph_interface(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    """Name, dtype and shape of a graph's inputs or outputs; an open axis is its name."""
    described = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        described.append({"name": value.name, "dtype": dtype, "shape": shape})
    return described


def export_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: tuple[Any, ...] | None,
    opset: int,
) -> ModelProto:
    """A module as one ONNX graph: bare scan nodes, simplified, nodes named by module, no paths.

    Args:
        example: the forward's positional arguments. shapes: per argument, its open axes.
        opset: one of OPSETS.
    """
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=opset,
            custom_translation_table=custom_translation_table(),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        simplify(program.model)
    model = program.model_proto
    model.ir_version = IR_VERSION
    _name_by_module(model)
    _strip(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own internals from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _name_by_module(model: ModelProto) -> None:
    """Name nodes "fusion.1.block.text_proj/conv1d_15": the module that they come from, and the op.

    Errors, calibrations and precision tables name nodes; a reader should know the place.
    """
    for node in model.graph.node:
        facts = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""
        if module and not module.startswith("_"):
            node.name = f"{module}/{node.name.removeprefix('node_')}"


def _strip(model: ModelProto) -> None:
    """Remove stack traces and notes: they hold this machine's paths, and differ between runs."""
    del model.metadata_props[:]
    model.doc_string = ""
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: GraphProto) -> None:
    graph.doc_string = ""
    # A weight tells its type and shape itself: where both do, other tools change only one.
    weights = {tensor.name for tensor in graph.initializer}
    noted = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(noted)
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)
