"""The ONNX operators tfanet::SelectiveScan, SS2D and SS2DScan, version 1: their schemas.

Importing this module registers the schemas with onnx, once per process, so that the checker and
strict shape inference know the operators.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

from tfanet.plugins.graph.bodies import DOMAIN, INPUTS, OP_TYPE
from tfanet.plugins.graph.ss2d import SS2D_OP_TYPE, SS2D_SCAN_OP_TYPE
from tfanet.plugins.kernels.cpu import DIRECTIONS

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "OP_VERSION",
    "schema",
    "ss2d_scan_schema",
    "ss2d_schema",
]

OP_VERSION = 1

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
_ANY_FLOAT = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"]
# What every axis stands for; equal names are equal sizes.
_AXES = {
    "u": ("batch", "dim", "L"),
    "delta": ("batch", "dim", "L"),
    "A": ("dim", "N"),
    "B": ("batch", "G", "N", "L"),
    "C": ("batch", "G", "N", "L"),
    "D": ("dim",),
    "delta_bias": ("dim",),
    "z": ("batch", "dim", "L"),
}
_WEIGHTS = ("A", "D", "delta_bias")
_SS2D_AXES = {
    "u": ("batch", "E", "H", "W"),
    "x_proj_weight": ("K", "R + 2N", "E"),
    "dt_weight": ("K", "E", "R"),
    "dt_bias": ("K", "E"),
    "A": ("4E", "N"),
    "D": ("4E",),
}
_SS2D_SCAN_AXES = {
    "u": ("batch", "E", "H", "W"),
    "rows": ("batch", "4(R + 2N)", "H", "W"),
    "dt_weight": ("4E", "R"),
    "dt_bias": ("4E",),
    "A": ("4E", "N"),
    "D": ("4E",),
}


def _infer(
    context: Any, operator: str, all_axes: dict[str, tuple[str, ...]], weights: Collection[str]
) -> dict[str, tuple[int, str]]:
    """y has u's element type and shape; ranks and equal sizes are checked. Returns known sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    named: dict[str, str] = {}
    element: dict[str, tuple[int, str]] = {}
    for index, (name, axes) in enumerate(all_axes.items()):
        proto = context.get_input_type(index) if index < context.get_num_inputs() else None
        if proto is None or not proto.HasField("tensor_type"):
            continue
        tensor = proto.tensor_type
        if tensor.elem_type:
            role = "weight" if name in weights else "sequence"
            known, owner = element.setdefault(role, (tensor.elem_type, name))
            if known != tensor.elem_type:
                raise InferenceError(
                    f"{operator}: input {name} is {TensorProto.DataType.Name(tensor.elem_type)} "
                    f"but input {owner} is {TensorProto.DataType.Name(known)}; cast one of them"
                )
        if not tensor.HasField("shape"):
            continue
        dims = tensor.shape.dim
        if len(dims) != len(axes):
            raise InferenceError(
                f"{operator}: input {name} has rank {len(dims)}, expected {len(axes)}: "
                f"({', '.join(axes)})"
            )
        for axis, dim in zip(axes, dims, strict=True):
            if dim.HasField("dim_value"):
                size = dim.dim_value
                known, owner = sizes.setdefault(axis, (size, name))
                if known != size:
                    raise InferenceError(
                        f"{operator}: {axis} is {size} in input {name} but {known} in input "
                        f"{owner}; {name} must have the shape ({', '.join(axes)})"
                    )
            elif dim.dim_param:
                named.setdefault(axis, dim.dim_param)
    output = TypeProto()
    output.tensor_type.elem_type = element["sequence"][0] if "sequence" in element else 0
    for axis in all_axes["u"]:
        entry = output.tensor_type.shape.dim.add()
        if axis in sizes:
            entry.dim_value = sizes[axis][0]
        elif axis in named:
            entry.dim_param = named[axis]
    context.set_output_type(0, output)
    return sizes


def _infer_scan(context: Any) -> None:
    sizes = _infer(context, OP_TYPE, _AXES, _WEIGHTS)
    if "G" in sizes and "dim" in sizes:
        groups, dim_size = sizes["G"][0], sizes["dim"][0]
        if groups == 0 or dim_size % groups:
            raise InferenceError(f"{OP_TYPE}: dim {dim_size} is not a multiple of G {groups}")


def _infer_2d(context: Any, operator: str, all_axes: dict[str, tuple[str, ...]]) -> None:
    known = _infer(context, operator, all_axes, [*all_axes][1:])
    sizes = {axis: size for axis, (size, _) in known.items()}
    inner, rank, states = (sizes.get(axis) for axis in ("E", "R", "N"))
    expected = {"K": DIRECTIONS}
    if inner is not None:
        expected["4E"] = DIRECTIONS * inner
    if rank is not None and states is not None:
        expected["R + 2N"] = rank + 2 * states
        expected["4(R + 2N)"] = DIRECTIONS * (rank + 2 * states)
    for axis, size in expected.items():
        if sizes.get(axis, size) != size:
            raise InferenceError(f"{operator}: {axis} is {sizes[axis]}, expected {size}")


def schema() -> OpSchema:
    """The registered schema of tfanet::SelectiveScan-1; registers it on the first call."""
    if defs.has(OP_TYPE, OP_VERSION, DOMAIN):
        return defs.get_schema(OP_TYPE, OP_VERSION, DOMAIN)
    option = OpSchema.FormalParameterOption
    inputs = [
        OpSchema.FormalParameter(
            name,
            "W" if name in _WEIGHTS else "T",
            f"shape ({', '.join(axes)})",
            param_option=option.Optional if name in INPUTS[5:] else option.Single,
        )
        for name, axes in _AXES.items()
    ]
    new = OpSchema(
        OP_TYPE,
        DOMAIN,
        OP_VERSION,
        _DOC,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("y", "T", "shape (batch, dim, L)")],
        type_constraints=[
            ("T", _ANY_FLOAT, "type of the sequences and of the result"),
            ("W", _ANY_FLOAT, "type of the weights A, D and delta_bias"),
        ],
        attributes=[
            OpSchema.Attribute(
                "delta_softplus",
                _int_attribute("delta_softplus", 0),
                "1: delta + delta_bias goes through softplus",
            )
        ],
    )
    new.set_type_and_shape_inference_function(_infer_scan)
    defs.register_schema(new)
    return defs.get_schema(OP_TYPE, OP_VERSION, DOMAIN)


def ss2d_schema() -> OpSchema:
    """The registered schema of tfanet::SS2D-1; registers it on the first call."""
    return _schema_2d(SS2D_OP_TYPE, _SS2D_DOC, _SS2D_AXES)


def ss2d_scan_schema() -> OpSchema:
    """The registered schema of tfanet::SS2DScan-1; registers it on the first call."""
    return _schema_2d(SS2D_SCAN_OP_TYPE, _SS2D_SCAN_DOC, _SS2D_SCAN_AXES)


def _schema_2d(operator: str, doc: str, all_axes: dict[str, tuple[str, ...]]) -> OpSchema:
    if defs.has(operator, OP_VERSION, DOMAIN):
        return defs.get_schema(operator, OP_VERSION, DOMAIN)
    new = OpSchema(
        operator,
        DOMAIN,
        OP_VERSION,
        doc,
        inputs=[
            OpSchema.FormalParameter(
                name, "T" if name == "u" else "W", f"shape ({', '.join(axes)})"
            )
            for name, axes in all_axes.items()
        ],
        outputs=[OpSchema.FormalParameter("y", "T", "shape (batch, E, H, W)")],
        type_constraints=[
            ("T", _ANY_FLOAT, "type of the map and of the result"),
            ("W", _ANY_FLOAT[2:], "type of the weights and of the arithmetic"),
        ],
    )
    new.set_type_and_shape_inference_function(
        lambda context: _infer_2d(context, operator, all_axes)
    )
    defs.register_schema(new)
    return defs.get_schema(operator, OP_VERSION, DOMAIN)


def _int_attribute(name: str, value: int) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.INT, i=value)


schema()
ss2d_schema()
ss2d_scan_schema()
