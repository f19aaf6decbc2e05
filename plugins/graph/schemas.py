"""The ONNX operators tfanet::SelectiveScan, SS2D and SS2DScan, version 1: their schemas.

Importing this module registers the schemas with onnx, once per process, so that the checker and
strict shape inference know the operators.
"""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

from tfanet.plugins.operands import (
    DOMAIN,
    OPERATORS,
    SELECTIVE_SCAN,
    SS2D,
    SS2D_SCAN,
    VERSION,
    Operator,
    derived_sizes,
)

__all__ = ["schema"]

_DOC = """
Selective state-space scan of Mamba with a real, diagonal A:

    delta' = softplus(delta + delta_bias)          (softplus where delta_softplus is 1)
    h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,   h_{-1} = 0
    y_t = sum_n C_t h_t + D u_t,                    y *= z sigmoid(z)

Channel c reads B and C of group c / (dim / G). The state is float32, or double for double inputs.
"""
_SS2D_DOC = """
VMamba's selective scan of a map u in four directions k: rows, columns, rows reversed, columns
reversed.

    (dt_k, B_k, C_k) = x_proj_weight[k] u          at every pixel
    y = sum_k SelectiveScan(u, dt_weight[k] dt_k, A_k, B_k, C_k, D_k, dt_bias[k]), with softplus,

along direction k, put back in place. Projections and state are in the type of the weights.
"""
_SS2D_SCAN_DOC = """
SS2D behind its projection, which is given: rows hold (dt_k, B_k, C_k) of the directions k = 0, 1, 2
and 3 at every pixel, so that SS2D is a 1x1 convolution of u with x_proj_weight and this operator.
"""
_DOCS = {SELECTIVE_SCAN: _DOC, SS2D: _SS2D_DOC, SS2D_SCAN: _SS2D_SCAN_DOC}
# What the element types T and W are, by operator.
_T_AND_W = {
    SELECTIVE_SCAN: (
        "type of the sequences and of the result",
        "type of the weights A, D and delta_bias",
    ),
    SS2D: ("type of the map and of the result", "type of the weights and of the arithmetic"),
    SS2D_SCAN: ("type of the map and of the result", "type of the weights and of the arithmetic"),
}
_FLAGS = {"delta_softplus": "1: delta + delta_bias goes through softplus"}
# Names of element types in ONNX, where they differ from PyTorch's.
_ONNX_TYPES = {"float32": "float", "float64": "double"}


def _infer(context: Any, operator: Operator) -> None:
    """y has u's element type and shape; ranks and sizes are checked."""
    sizes: dict[str, tuple[int, str]] = {}
    named: dict[str, str] = {}
    element: dict[str, tuple[int, str]] = {}
    for index, operand in enumerate(operator.operands):
        name, axes = operand.name, operand.axes
        proto = context.get_input_type(index) if index < context.get_num_inputs() else None
        if proto is None or not proto.HasField("tensor_type"):
            continue
        tensor = proto.tensor_type
        if tensor.elem_type:
            role = "weight" if operand.weight else "sequence"
            known, owner = element.setdefault(role, (tensor.elem_type, name))
            if known != tensor.elem_type:
                raise InferenceError(
                    f"{operator.op_type}: input {name} is "
                    f"{TensorProto.DataType.Name(tensor.elem_type)} but input {owner} is "
                    f"{TensorProto.DataType.Name(known)}; cast one of them"
                )
        if not tensor.HasField("shape"):
            continue
        dims = tensor.shape.dim
        if len(dims) != len(axes):
            raise InferenceError(
                f"{operator.op_type}: input {name} has rank {len(dims)}, expected {len(axes)}: "
                f"({', '.join(axes)})"
            )
        for axis, dim in zip(axes, dims, strict=True):
            if dim.HasField("dim_value"):
                size = dim.dim_value
                known, owner = sizes.setdefault(axis, (size, name))
                if known != size:
                    raise InferenceError(
                        f"{operator.op_type}: {axis} is {size} in input {name} but {known} in "
                        f"input {owner}; {name} must have the shape ({', '.join(axes)})"
                    )
            elif dim.dim_param:
                named.setdefault(axis, dim.dim_param)
    output = TypeProto()
    output.tensor_type.elem_type = element["sequence"][0] if "sequence" in element else 0
    for axis in operator["u"].axes:
        entry = output.tensor_type.shape.dim.add()
        if axis in sizes:
            entry.dim_value = sizes[axis][0]
        elif axis in named:
            entry.dim_param = named[axis]
    context.set_output_type(0, output)
    _check_sizes(operator, {axis: size for axis, (size, _) in sizes.items()})


def _check_sizes(operator: Operator, sizes: dict[str, int]) -> None:
    if "G" in sizes and "dim" in sizes and (not sizes["G"] or sizes["dim"] % sizes["G"]):
        raise InferenceError(
            f"{operator.op_type}: dim {sizes['dim']} is not a multiple of G {sizes['G']}"
        )
    for axis, size in derived_sizes(sizes).items():
        if sizes.get(axis, size) != size:
            raise InferenceError(f"{operator.op_type}: {axis} is {sizes[axis]}, expected {size}")


def schema(operator: Operator) -> OpSchema:
    """The registered schema of an operator, one of `OPERATORS`."""
    if not defs.has(operator.op_type, VERSION, DOMAIN):
        defs.register_schema(_schema(operator))
    return defs.get_schema(operator.op_type, VERSION, DOMAIN)


def _schema(operator: Operator) -> OpSchema:
    option = OpSchema.FormalParameterOption

    def in_words(axes: tuple[str, ...]) -> str:
        return f"shape ({', '.join(axes)})"

    def tensors(types: tuple[str, ...]) -> list[str]:
        return [f"tensor({_ONNX_TYPES.get(name, name)})" for name in types]

    t, w = _T_AND_W[operator]
    new = OpSchema(
        operator.op_type,
        DOMAIN,
        VERSION,
        _DOCS[operator],
        inputs=[
            OpSchema.FormalParameter(
                operand.name,
                "W" if operand.weight else "T",
                in_words(operand.axes),
                param_option=option.Optional if operand.optional else option.Single,
            )
            for operand in operator.operands
        ],
        outputs=[OpSchema.FormalParameter("y", "T", in_words(operator["u"].axes))],
        type_constraints=[
            ("T", tensors(operator.onnx_types), t),
            ("W", tensors(operator.onnx_weight_types), w),
        ],
        attributes=[
            OpSchema.Attribute(flag, _int_attribute(flag, 0), _FLAGS[flag])
            for flag in operator.flags
        ],
    )
    new.set_type_and_shape_inference_function(lambda context: _infer(context, operator))
    return new


def _int_attribute(name: str, value: int) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.INT, i=value)


for _operator in OPERATORS:
    schema(_operator)
