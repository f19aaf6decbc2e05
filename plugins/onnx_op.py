"""The ONNX operator tfanet::SelectiveScan, version 1: its schema and its torch.onnx translation.

Importing this module registers the schema with onnx, once per process, so that the checker and
strict shape inference know the operator. PyTorch is imported by `custom_translation_table` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

from .function_nodes import DOMAIN, INPUTS, OP_TYPE

__all__ = ["DOMAIN", "OP_TYPE", "OP_VERSION", "custom_translation_table", "schema"]

OP_VERSION = 1

_DOC = """
Selective state-space scan of Mamba with a real, diagonal A:

    delta' = softplus(delta + delta_bias)          (softplus where delta_softplus is 1)
    h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,   h_{-1} = 0
    y_t = sum_n C_t h_t + D u_t,                    y *= z sigmoid(z)

Channel c reads B and C of group c / (dim / G). The state is float32, or double for double inputs.
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


def _unify(sizes: dict[str, tuple[int, str]], axis: str, size: int, name: str) -> None:
    known, owner = sizes.setdefault(axis, (size, name))
    if known != size:
        raise InferenceError(
            f"{OP_TYPE}: {axis} is {size} in input {name} but {known} in input {owner}; "
            f"{name} must have the shape ({', '.join(_AXES[name])})"
        )


def _infer(context: Any) -> None:
    """y has u's element type and the shape (batch, dim, L); ranks and equal sizes are checked."""
    sizes: dict[str, tuple[int, str]] = {}
    named: dict[str, str] = {}
    element: dict[str, tuple[int, str]] = {}
    for index, name in enumerate(INPUTS):
        proto = context.get_input_type(index) if index < context.get_num_inputs() else None
        if proto is None or not proto.HasField("tensor_type"):
            continue
        tensor = proto.tensor_type
        if tensor.elem_type:
            role = "weight" if name in _WEIGHTS else "sequence"
            known, owner = element.setdefault(role, (tensor.elem_type, name))
            if known != tensor.elem_type:
                raise InferenceError(
                    f"{OP_TYPE}: input {name} is {TensorProto.DataType.Name(tensor.elem_type)} "
                    f"but input {owner} is {TensorProto.DataType.Name(known)}; cast one of them"
                )
        if not tensor.HasField("shape"):
            continue
        dims, axes = tensor.shape.dim, _AXES[name]
        if len(dims) != len(axes):
            raise InferenceError(
                f"{OP_TYPE}: input {name} has rank {len(dims)}, expected {len(axes)}: "
                f"({', '.join(axes)})"
            )
        for axis, dim in zip(axes, dims, strict=True):
            if dim.HasField("dim_value"):
                _unify(sizes, axis, dim.dim_value, name)
            elif dim.dim_param:
                named.setdefault(axis, dim.dim_param)
    if "G" in sizes and "dim" in sizes:
        groups, dim_size = sizes["G"][0], sizes["dim"][0]
        if groups == 0 or dim_size % groups:
            raise InferenceError(f"{OP_TYPE}: dim {dim_size} is not a multiple of G {groups}")

    output = TypeProto()
    output.tensor_type.elem_type = element["sequence"][0] if "sequence" in element else 0
    for axis in _AXES["u"]:
        entry = output.tensor_type.shape.dim.add()
        if axis in sizes:
            entry.dim_value = sizes[axis][0]
        elif axis in named:
            entry.dim_param = named[axis]
    context.set_output_type(0, output)


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
    new.set_type_and_shape_inference_function(_infer)
    defs.register_schema(new)
    return defs.get_schema(OP_TYPE, OP_VERSION, DOMAIN)


def _int_attribute(name: str, value: int) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.INT, i=value)


def custom_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(dynamo=True, custom_translation_table=...)`: one node per scan.

    The model that comes out holds bare nodes; `tfanet.plugins.function_body.attach` adds the
    function that lets runtimes without the operator library run them.
    """
    import onnxscript
    import torch

    from . import scan  # noqa: F401  (registers torch.ops.tfanet.selective_scan)

    operator = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, OP_VERSION), OP_TYPE, schema())

    def selective_scan(
        u: Any,
        delta: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any = None,
        z: Any = None,
        delta_bias: Any = None,
        delta_softplus: bool = False,
    ) -> Any:
        return operator(u, delta, A, B, C, D, delta_bias, z, delta_softplus=int(delta_softplus))

    return {torch.ops.tfanet.selective_scan.default: selective_scan}


schema()
