"""The numbers that a quantised value can take: INT8's are evenly spaced, FP8's are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tfanet.errors import InputError, check_choice

__all__ = ["FP8", "GRIDS", "INT8", "Grid", "grid_of"]


@dataclass(frozen=True)
class Grid:
    """A symmetric set of numbers; a value is one of them times a step.

    Attributes:
        name: as `--precision` calls it. largest: the number that a range's amax becomes.
        kind: element type of the ONNX tensors. opset: the first that quantises to it.
    """

    name: str
    largest: float
    kind: int
    opset: int

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The nearest numbers of the grid, ties to even, saturated; in the tensors' dtype."""
        clipped = np.clip(values, -self.largest, self.largest)
        if self.kind == TensorProto.INT8:
            clipped = np.rint(clipped)
        return clipped.astype(helper.tensor_dtype_to_np_dtype(self.kind))

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """`encode`, as float64."""
        return self.encode(values).astype(np.float64)

    def step(self, amax: np.ndarray | float) -> np.ndarray:
        """What a range's numbers are multiplied by, float32; 1 where the range is empty."""
        amax = np.asarray(amax, np.float32)
        step = amax / np.float32(self.largest)
        # Below this, 1 / step overflows float32.
        return np.where(step > np.finfo(np.float32).tiny, step, np.float32(1)).astype(np.float32)

    def check(self, model: ModelProto) -> None:
        """Raises InputError where the model's opset or IR version is too old for this grid."""
        opset = next((o.version for o in model.opset_import if o.domain == ""), 0)
        if opset < self.opset or (self.kind != TensorProto.INT8 and model.ir_version < 9):
            raise InputError(
                f"{self.name} needs opset {self.opset} and IR version 9, the graph has {opset} and "
                f"{model.ir_version}: export it with --opset {max(self.opset, 20)}"
            )


# Not -128, so that a value and its negative are equally exact.
INT8 = Grid("int8", 127.0, TensorProto.INT8, 13)
# E4M3 without infinities: four exponent bits, three of mantissa, 448 at most.
FP8 = Grid("fp8", 448.0, TensorProto.FLOAT8E4M3FN, 19)
GRIDS = {grid.name: grid for grid in (INT8, FP8)}


def grid_of(name: str) -> Grid:
    """The grid of a precision. Raises InputError for a name that none has."""
    check_choice("precision", name, GRIDS)
    return GRIDS[name]
