"""What every graph goes through before it is written: fewer nodes, the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

__all__ = ["simplify"]

# Elements of the largest constant that is stored once where several are equal: masks and indices of
# attention windows, which are the same in every block.
SHARED = 2**18


def simplify(model: onnx_ir.Model) -> None:
    """Fold constants and shapes, drop what is unused or computed twice.

    The exporter's own `optimize` does this too, and then tries 160 rewrites on every node, which
    takes longer than the whole export and brings nothing that a runtime does not do when it loads.
    """
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, should_fold=_is_view_of_weight)
        _open_one_axis(model)
        _join_batch_norms(model)
        passes.CommonSubexpressionEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
    for last in (
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(size_limit=SHARED),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        last(model)


def _is_view_of_weight(node: onnx_ir.Node) -> bool | None:
    """A convolution's weight (out, in, 1) that is read as a matrix: stored as that, however large.

    None leaves the decision to the usual limits.
    """
    weight = node.inputs[0] if node.op_type == "Squeeze" else None
    return True if weight is not None and len(weight.uses()) == 1 else None


def _join_batch_norms(model: onnx_ir.Model) -> None:
    """BN(conv(x)) becomes a convolution with a times its weight, and b + a times its bias.

    a = gamma / sqrt(variance + eps) of each output channel, b = beta - mean a, in float64.
    """
    for norm in list(model.graph):
        source = norm.inputs[0] if norm.op_type == "BatchNormalization" else None
        conv = None if source is None else source.producer()
        if conv is None or conv.op_type != "Conv" or norm.outputs[0].is_graph_output():
            continue
        read = [v for v in (*conv.inputs[1:], *norm.inputs[1:]) if v is not None]
        arrays = [t for t in map(onnx_ir.convenience.get_const_tensor, read) if t is not None]
        weight = read[0]
        if len(arrays) < len(read) or len(weight.uses()) > 1 or len(conv.outputs[0].uses()) > 1:
            continue
        kernel, *bias, gamma, beta, mean, variance = (a.numpy().astype(np.float64) for a in arrays)
        scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        stem = str(weight.name).removesuffix(".weight")
        conv.resize_inputs(3)
        for index, name, array in (
            (1, f"{stem}.normed_weight", kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))),
            (2, f"{stem}.normed_bias", beta + (sum(bias) - mean) * scale),
        ):
            tensor = onnx_ir.tensor(array.astype(arrays[0].numpy().dtype), name=name)
            value = onnx_ir.Value(name=name, const_value=tensor)
            model.graph.register_initializer(value)
            conv.replace_input_with(index, value)
        norm.outputs[0].replace_all_uses_with(conv.outputs[0])
        model.graph.remove(norm, safe=True)


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
