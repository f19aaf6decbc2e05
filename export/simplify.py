"""What every graph goes through before it is written: fewer nodes, the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

__all__ = ["simplify"]


def simplify(model: onnx_ir.Model) -> None:
    """Fold constants and shapes, drop what is unused or computed twice.

    The exporter's own `optimize` does this too, and then tries 160 rewrites on every node, which
    takes longer than the whole export and brings nothing that a runtime does not do when it loads.
    """
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model)
        _open_one_axis(model)
        passes.CommonSubexpressionEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
    for last in (
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        last(model)


def _open_one_axis(model: onnx_ir.Model) -> None:
    """Reshape to [batch, 4, 96, n], put together from the picture's shape, becomes [-1, 4, 96, n].

    One node in place of four or five, for each of the hundred views of a TFANet.
    """
    for node in model.graph:
        shape_input = node.inputs[1] if node.op_type == "Reshape" else None
        target = None if shape_input is None else shape_input.producer()
        if target is None or target.op_type != "Concat":
            continue
        parts = [_sizes(part) for part in target.inputs]
        known = sum(len(part) for part in parts if part is not None)
        made = node.outputs[0].shape
        if None in parts and (made is None or len(made) != known + parts.count(None)):
            continue  # a part that may hold more than one size
        shape = np.concatenate([[-1] if part is None else part for part in parts]).astype(np.int64)
        if (shape == -1).sum() != 1 or (shape == 0).any():
            continue
        name = f"{node.name}_shape"
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(shape, name=name))
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)


def _sizes(value: onnx_ir.Value | None) -> list[int] | None:
    """The sizes that a part of a shape holds, -1 for an open one; None where it is unknown."""
    constant = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    if constant is not None:
        return constant.numpy().reshape(-1).tolist()
    node = None if value is None else value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Shape" else None
    if node is None or source is None or source.shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(source.shape))
    return [size if isinstance(size, int) else -1 for size in source.shape[start:end]]
