"""What ONNX Runtime's kernels for x86 without VNNI compute, by NumPy and in standard operators.

`vpmaddubsw` multiplies uint8 by int8 and adds two neighbouring products in 16 bits, saturated; sums
of such pairs are exact. The order is that of the inner dimension: of a convolution row, column and
channel of the kernel. Depthwise kernels multiply in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from tfanet.calibration.graph.index import GraphIndex


def multiply(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(M, K) uint8 times (K, N) int8, as (M, N) int64."""
    products = a.astype(np.int64)[:, :, None] * w.astype(np.int64)[None]
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1), (0, 0)))
    pairs = products[:, ::2] + products[:, 1::2]
    return np.clip(pairs, -(1 << 15), (1 << 15) - 1).sum(1)


def fake(x: np.ndarray, amax: float, positive: bool = False) -> np.ndarray:
    """What INT8 makes of values: the nearest of 255 (or, from 0 up, 256) evenly spaced ones."""
    if positive:
        scale = np.float32(amax) / np.float32(127) * np.float32(127 / 255)
        return np.clip(np.rint(x / scale), 0, 255) * scale
    scale = np.float32(amax) / np.float32(127)
    return np.clip(np.rint(x / scale), -128, 127) * scale


def fake_weight(w: np.ndarray, axis: int, pairs: bool = False) -> np.ndarray:
    """The same of each channel; for ONNX Runtime no two of one sign sum to over 128 steps."""
    rows = np.moveaxis(w, axis, 0)
    largest = (pair_sum(row) if pairs else float(np.abs(row).max()) for row in rows)
    rounded = [fake(row, amax) for row, amax in zip(rows, largest, strict=True)]
    return np.moveaxis(np.stack(rounded), 0, axis)


def pair_sum(row: np.ndarray) -> float:
    """The largest magnitude of an element, and of a sum of two of one sign; every pair is tried."""
    flat = row.ravel()
    same = (abs(a + b) for a, b in combinations(flat, 2) if (a > 0) == (b > 0))
    return float(max([*np.abs(flat), *same]))


def product(q: np.ndarray, *, axis: int | None = 1, raw: bool = True) -> ModelProto:
    """x (1, K) uint8 through DQ, times a stored weight (K, N)."""
    one = np.ones(q.shape[axis if axis is not None else 1], np.float32)
    weight = numpy_helper.from_array(q, "w")
    if not raw:
        weight.ClearField("raw_data")
        weight.int32_data.extend(q.ravel().tolist())
    constants = [weight, numpy_helper.from_array(one, "ws")]
    for name, value in (("xs", np.float32(1)), ("xz", np.uint8(0))):
        constants.append(numpy_helper.from_array(value, name))
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], **along),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, q.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, q.shape[1]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model, full_check=True)
    return model


def saturating(model: ModelProto) -> ModelProto:
    """A Q/DQ model in which every integer layer is written as those kernels compute it.

    It is to be run with its Q/DQ nodes as they stand.
    """
    result = ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result)
    for node in model.graph.node:
        writer.write(node)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    return result


class _Writer:
    def __init__(self, model: ModelProto) -> None:
        self.graph, self.nodes = GraphIndex(model), list[NodeProto]()
        self.written = 0

    def add(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        self.written += 1
        name = f"saturating.{self.written}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        self.written += 1
        name = f"saturating.{self.written}"
        self.graph.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def write(self, node: NodeProto) -> None:
        sources = [self.graph.producer.get(name) for name in node.input[:2]]
        integer = all(s is not None and s.op_type == "DequantizeLinear" for s in sources)
        if node.op_type not in ("Conv", "MatMul") or not integer:
            self.nodes.append(node)
            return
        activation, weight = sources
        q = self.graph.array(weight.input[0])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1:
            assert q.shape[1] == 1
            self.nodes.append(node)
            return
        zero = self.graph.array(activation.input[2])
        shift = 128 if zero.dtype == np.int8 else 0  # signed values are moved up to unsigned ones
        zero = np.float32(int(zero) + shift)
        scale = self.graph.array(activation.input[1]) * self.graph.array(weight.input[1])
        values = self.add("Cast", [activation.input[0]], to=1)
        values = self.add("Add", [values, self.constant(np.float32(shift))])
        if node.op_type == "MatMul":
            y = self.product(values, q, zero, scale, len(self.graph.shape(node.output[0])))
            self.nodes.append(helper.make_node("Identity", [y], list(node.output)))
            return
        patches = self.patches(values, node, q.shape, zero)
        w = np.moveaxis(q, 1, -1).reshape(len(q), -1).T
        y = self.product(patches, w, zero, scale, q.ndim)
        if len(node.input) > 2:
            y = self.add("Add", [y, node.input[2]])
        back = [0, q.ndim - 1, *range(1, q.ndim - 1)]
        self.nodes.append(helper.make_node("Transpose", [y], list(node.output), perm=back))

    def patches(self, values: str, node: NodeProto, shape: Sequence[int], zero: np.float32) -> str:
        """(B, H, W, kernel rows * columns * channels); outside the picture lies the zero point."""
        _, channels, *places = shape
        size = int(np.prod(shape[1:]))
        pick = np.eye(size, dtype=np.float32).reshape(size, *places, channels)
        inputs = [self.add("Sub", [values, self.constant(zero)])]
        inputs.append(self.constant(np.ascontiguousarray(np.moveaxis(pick, -1, 1))))
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        moved = self.add("Add", [self.add("Conv", inputs, **kept), self.constant(zero)])
        return self.add("Transpose", [moved], perm=[0, *range(2, len(shape)), 1])

    def product(
        self, values: str, w: np.ndarray, zero: np.float32, scale: np.ndarray, rank: int
    ) -> str:
        """(..., K) unsigned numbers times (K, N)."""
        if len(w) % 2:
            w = np.pad(w, ((0, 1), (0, 0)))
            ends = self.constant(np.array([0] * (2 * rank - 1) + [1], np.int64))
            values = self.add("Pad", [values, ends])
        w = w.astype(np.float32)
        shape = self.constant(np.array([0] * (rank - 1) + [-1, 2], np.int64))
        halves = self.add("Reshape", [values, shape])
        one, two = (
            self.add(
                "Mul",
                [
                    self.add("Gather", [halves, self.constant(np.array([i]))], axis=-1),
                    self.constant(np.ascontiguousarray(w[i::2])),
                ],
            )
            for i in (0, 1)
        )
        ends = [self.constant(np.float32(end)) for end in (-(1 << 15), (1 << 15) - 1)]
        pairs = self.add("Clip", [self.add("Add", [one, two]), *ends])
        axis = self.constant(np.array([-2]))
        total = self.add("ReduceSum", [pairs, axis], keepdims=0)
        total = self.add("Sub", [total, self.constant(zero * w.sum(0))])
        return self.add("Mul", [total, self.constant(scale.astype(np.float32))])
