"""The operators SelectiveScan, SS2D and SS2DScan: their operands, in one table.

Everything that names operands takes them from here: the operators of PyTorch with their checks, the
ONNX schemas and function bodies, the arguments of the kernels, the TensorRT plugin. csrc/operands.h
says the same to C++; tests/plugins/test_operands.py compares the two. This module imports the
standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "CUDA_TYPES",
    "DIRECTIONS",
    "DOMAIN",
    "MAX_CHANNELS_CUDA",
    "MAX_STATES_CPU",
    "MAX_STATES_CUDA",
    "OPERATORS",
    "SELECTIVE_SCAN",
    "SS2D",
    "SS2D_SCAN",
    "TYPES",
    "VERSION",
    "Operand",
    "Operator",
    "derived_sizes",
]

# Of ONNX.
DOMAIN = "tfanet"
VERSION = 1
DIRECTIONS = 4  # of a 2-D scan: rows, columns, rows reversed, columns reversed
# N is from 1 to these: in the CPU kernels, and in the CUDA kernels.
MAX_STATES_CPU, MAX_STATES_CUDA = 256, 64
# Of a 2-D scan in the CUDA kernels: E and R are from 1 to this.
MAX_CHANNELS_CUDA = 2**20

# Element types, by PyTorch's names: all, in the order of the CPU kernels' codes, and those of CUDA.
TYPES = ("float32", "float64", "float16", "bfloat16")
CUDA_TYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Operand:
    """One operand. Axes of the same name, of whatever operand, have the same size.

    A weight may be of another type than u; all that are not weights are of u's type.
    """

    name: str
    axes: tuple[str, ...]
    weight: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Operator:
    """One operator. Its result y has the type and the axes of u, the first operand.

    Attributes:
        op_type: the name in ONNX, in the domain `DOMAIN`.
        operands: in the order of ONNX and of the CUDA kernels; optional ones come last.
        torch_inputs: names in the order of PyTorch and of the CPU kernels.
        flags: what is set to true or false: an argument in PyTorch, an attribute 0 or 1 in ONNX.
        onnx_types: element types that the ONNX schema allows for u and what is of its type.
        onnx_weight_types: the same for weights.
        cpu_types: what there is a kernel for in libtfanet_ort.so on the CPU: types of u and of the
            weights. (In PyTorch any mixture of `TYPES` runs: weights are converted.)
        cuda_types: the same of the CUDA kernels, in every host. Empty where there are none.
    """

    op_type: str
    operands: tuple[Operand, ...]
    torch_inputs: tuple[str, ...]
    flags: tuple[str, ...]
    onnx_types: tuple[str, ...]
    onnx_weight_types: tuple[str, ...]
    cpu_types: tuple[tuple[str, str], ...]
    cuda_types: tuple[tuple[str, str], ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names in the order of ONNX."""
        return tuple(operand.name for operand in self.operands)

    @property
    def torch_operands(self) -> tuple[Operand, ...]:
        """The operands in the order of PyTorch."""
        return tuple(self[name] for name in self.torch_inputs)

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(operand.name for operand in self.operands if operand.weight)

    @property
    def optional(self) -> tuple[str, ...]:
        return tuple(operand.name for operand in self.operands if operand.optional)

    @property
    def required(self) -> int:
        """How many operands every call has: the first ones."""
        return len(self.operands) - len(self.optional)

    def __getitem__(self, name: str) -> Operand:
        return next(operand for operand in self.operands if operand.name == name)


_SEQUENCE, _PER_GROUP = ("batch", "dim", "L"), ("batch", "G", "N", "L")

SELECTIVE_SCAN = Operator(
    op_type="SelectiveScan",
    # D and delta_bias can be given as zeros, z can't: with z last a node never has a gap in its
    # inputs, which TensorRT-RTX refuses in a node that stands for a function.
    operands=(
        Operand("u", _SEQUENCE),
        Operand("delta", _SEQUENCE),
        Operand("A", ("dim", "N"), weight=True),
        Operand("B", _PER_GROUP),
        Operand("C", _PER_GROUP),
        Operand("D", ("dim",), weight=True, optional=True),
        Operand("delta_bias", ("dim",), weight=True, optional=True),
        Operand("z", _SEQUENCE, optional=True),
    ),
    # As mamba-ssm has them.
    torch_inputs=("u", "delta", "A", "B", "C", "D", "z", "delta_bias"),
    flags=("delta_softplus",),
    onnx_types=("float16", "bfloat16", "float32", "float64"),
    onnx_weight_types=("float16", "bfloat16", "float32", "float64"),
    cpu_types=(
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
        ("float16", "float16"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
    ),
    cuda_types=(
        ("float32", "float32"),
        ("float16", "float32"),
        ("float16", "float16"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
    ),
)

_MAP = ("batch", "E", "H", "W")
SS2D = Operator(
    op_type="SS2D",
    operands=(
        Operand("u", _MAP),
        Operand("x_proj_weight", ("K", "R + 2N", "E"), weight=True),
        Operand("dt_weight", ("K", "E", "R"), weight=True),
        Operand("dt_bias", ("K", "E"), weight=True),
        Operand("A", ("4E", "N"), weight=True),
        Operand("D", ("4E",), weight=True),
    ),
    torch_inputs=("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D"),
    flags=(),
    onnx_types=("float16", "bfloat16", "float32", "float64"),
    onnx_weight_types=("float32", "float64"),
    cpu_types=(
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
    ),
    cuda_types=(("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")),
)

# SS2D behind its projection, whose result, for all directions, is the operand `rows`. ONNX only.
SS2D_SCAN = Operator(
    op_type="SS2DScan",
    operands=(
        Operand("u", _MAP),
        Operand("rows", ("batch", "4(R + 2N)", "H", "W"), weight=True),
        Operand("dt_weight", ("4E", "R"), weight=True),
        Operand("dt_bias", ("4E",), weight=True),
        Operand("A", ("4E", "N"), weight=True),
        Operand("D", ("4E",), weight=True),
    ),
    torch_inputs=(),
    flags=(),
    onnx_types=SS2D.onnx_types,
    onnx_weight_types=SS2D.onnx_weight_types,
    cpu_types=SS2D.cpu_types,
    cuda_types=(),
)

OPERATORS = (SELECTIVE_SCAN, SS2D, SS2D_SCAN)


def derived_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of axes of a 2-D scan that follow from K, E, R and N, as far as these are known."""
    derived = {"K": DIRECTIONS}
    if "E" in sizes:
        derived["4E"] = DIRECTIONS * sizes["E"]
    if "R" in sizes and "N" in sizes:
        derived["R + 2N"] = sizes["R"] + 2 * sizes["N"]
        derived["4(R + 2N)"] = DIRECTIONS * derived["R + 2N"]
    return derived
