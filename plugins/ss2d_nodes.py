"""tfanet::SS2D in standard operators and one tfanet::SelectiveScan: the parts that it fuses.

The same nodes are the body of the model-local function tfanet::SS2D, where shapes are those of
whatever operands come, and what `replace_ss2d` puts in a node's place, where they are known.

Shapes in the comments: b batch, E channels, R rank, N states, L = H W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from .function_nodes import DOMAIN, OP_TYPE, Nodes, all_graphs
from .native import DIRECTIONS

__all__ = [
    "SS2D_INPUTS",
    "SS2D_OP_TYPE",
    "is_ss2d",
    "replace_ss2d",
    "ss2d_body",
]

SS2D_OP_TYPE = "SS2D"
SS2D_INPUTS = ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
_COLUMNS_FIRST = [0, 1, 3, 2]


@dataclass(frozen=True)
class _Prepared:
    """Names of values: the operands in the shapes that the parts take, and shapes.

    u (b, E, H, W), x_proj (4 (R + 2N), E, 1, 1), dt_proj (4E, R, 1), bias (4E), A (4E, N), D (4E);
    split is [R, N, N], dt_shape [0, 4R, -1], rows [b, E, H, W] and columns [b, E, W, H].
    """

    u: str
    x_proj: str
    dt_proj: str
    bias: str
    A: str
    D: str
    split: str
    dt_shape: str
    rows: str
    columns: str


def is_ss2d(node: NodeProto) -> bool:
    return node.op_type == SS2D_OP_TYPE and node.domain == DOMAIN


def _compose(f: Nodes, x: _Prepared) -> str:
    """Appends projections, cross-scan, one scan and cross-merge; returns y (b, E, H, W)."""
    flat, one = f.constant([0, 0, -1]), f.constant([1])
    backwards = (f.constant([-1]), f.constant([np.iinfo(np.int64).min]))

    def reverse(sequence: str) -> str:
        return f("Slice", sequence, *backwards, f.constant([2]), f.constant([-1]))

    def turn(maps: str) -> str:
        return f("Transpose", maps, perm=_COLUMNS_FIRST)

    def four(value: str) -> list[str]:
        parts = [f"{value}_{k}" for k in range(DIRECTIONS)]
        f("Split", value, out=parts, axis=1, num_outputs=DIRECTIONS)
        return parts

    rows = four(f("Conv", x.u, x.x_proj, name="x_proj"))  # each (b, R + 2N, H, W)
    orders = [f("Reshape", turn(m) if k % 2 else m, flat) for k, m in enumerate(rows)]
    orders[2:] = [reverse(order) for order in orders[2:]]
    projected = f("Concat", *(f("Unsqueeze", order, one) for order in orders), axis=1)
    dt, B, C = (f"{projected}_{name}" for name in ("dt", "B", "C"))
    f("Split", projected, x.split, out=[dt, B, C], axis=2)  # (b, 4, R or N, L)
    dt = f("Reshape", dt, x.dt_shape)
    delta = f("Conv", dt, x.dt_proj, name="dt_proj", group=DIRECTIONS)  # (b, 4E, L)

    row, column = f("Reshape", x.u, flat), f("Reshape", turn(x.u), flat)
    sequences = f("Concat", row, column, reverse(row), reverse(column), axis=1)
    operands = (sequences, delta, x.A, B, C, x.D, x.bias)
    y = f(OP_TYPE, *operands, name="scan", domain=DOMAIN, delta_softplus=1)
    y0, y1, y2, y3 = four(y)
    by_rows = f("Reshape", f("Add", y0, reverse(y2)), x.rows)
    by_columns = f("Reshape", f("Add", y1, reverse(y3)), x.columns)
    return f("Add", by_rows, turn(by_columns))


def _prepare(f: Nodes, names: Sequence[str], u: str) -> _Prepared:
    """Appends what brings the operands into shape: a runtime folds it where they are constant."""
    _, x_proj, dt_weight, dt_bias, A, D = names
    rank, states = f("Shape", dt_weight, start=2), f("Shape", A, start=1)
    rows = f("Mul", rank, f.constant([DIRECTIONS]))
    size = f("Shape", u)
    return _Prepared(
        u=u,
        x_proj=f("Unsqueeze", f("Flatten", x_proj, axis=2), f.constant([2, 3])),
        dt_proj=f("Unsqueeze", f("Flatten", dt_weight, axis=2), f.constant([2])),
        bias=f("Reshape", dt_bias, f.constant([-1])),
        A=A,
        D=D,
        split=f("Concat", rank, states, states, axis=0),
        dt_shape=f("Concat", f.constant([0]), rows, f.constant([-1]), axis=0),
        rows=size,
        columns=f("Gather", size, f.constant(_COLUMNS_FIRST)),
    )


def ss2d_body(casts: bool) -> Nodes:
    """The nodes of the function, from `SS2D_INPUTS` to y.

    `casts`: the map comes in another type than the weights, which is the one to compute in.
    """
    f = Nodes()
    u = f("CastLike", "u", "A") if casts else "u"
    y = _compose(f, _prepare(f, SS2D_INPUTS, u))
    f("CastLike", y, "u", out=["y"]) if casts else f("Identity", y, out=["y"])
    return f


def replace_ss2d(model: ModelProto, types: Mapping[str, TypeProto]) -> None:
    """Puts the parts in the place of every SS2D node of the main graph, in place.

    Constant weights get the shapes that the parts take; `types` of values tell the other shapes.
    New nodes are named after the node, "block.op/ss2d_3.x_proj", and their values' types noted.
    """
    graph, types = model.graph, dict(types)
    constants = _Constants(graph, types)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not is_ss2d(node):
            nodes.append(node)
            continue
        f = Nodes(f"{node.output[0]}_")
        kind, computed = (types[node.input[i]].tensor_type.elem_type for i in (0, 4))
        u = node.input[0] if kind == computed else f("Cast", node.input[0], to=computed)
        y = _compose(f, constants.prepare(f, node, u) or _prepare(f, node.input, u))
        if kind == computed:
            f.nodes[-1].output[0] = node.output[0]
        else:
            f("Cast", y, out=[node.output[0]], to=kind)
        for index, new in enumerate(f.nodes):
            new.name = f"{node.name}.{new.name or f'{new.op_type.lower()}_{index}'}"
        graph.value_info.extend(_inferred(model, node, f.nodes, types))
        nodes += constants.lift(f.nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    for field in (graph.initializer, graph.value_info):
        kept = [value for value in field if value.name not in constants.made]
        del field[:]
        field.extend(kept)
    graph.initializer.extend(constants.made.values())


class _Constants:
    """The constants of a graph whose SS2D nodes are replaced."""

    def __init__(self, graph: GraphProto, types: dict[str, TypeProto]) -> None:
        self.types = types
        self.known = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[str, TensorProto] = {}
        self.lifted: dict[tuple[int, bytes], str] = {}
        self.others = {  # read by more than the inputs that change their shape
            name
            for inner in all_graphs(graph)
            for node in inner.node
            for index, name in enumerate(node.input)
            if inner is not graph or not is_ss2d(node) or index not in (1, 2, 3)
        }

    def prepare(self, f: Nodes, node: NodeProto, u: str) -> _Prepared | None:
        """The operands where the weights are constants, H and W known; else None."""
        _, x_proj, dt_weight, dt_bias, A, D = node.input
        size = [dim.dim_value for dim in self.types[node.input[0]].tensor_type.shape.dim[2:]]
        if not all(size) or not all(name in self.known for name in node.input[1:5]):
            return None
        _, inner, rank = self.known[dt_weight].dims
        states, rows = self.known[A].dims[1], self.known[x_proj].dims[1]
        return _Prepared(
            u=u,
            x_proj=self._reshaped(x_proj, DIRECTIONS * rows, inner, 1, 1),
            dt_proj=self._reshaped(dt_weight, DIRECTIONS * inner, rank, 1),
            bias=self._reshaped(dt_bias, DIRECTIONS * inner),
            A=A,
            D=D,
            split=f.constant([rank, states, states]),
            dt_shape=f.constant([0, DIRECTIONS * rank, -1]),
            rows=f.constant([0, 0, *size]),
            columns=f.constant([0, 0, *size[::-1]]),
        )

    def _reshaped(self, name: str, *shape: int) -> str:
        target = f"{name}_flat" if name in self.others else name
        if target not in self.made:
            tensor = TensorProto()
            tensor.CopyFrom(self.known[name])
            tensor.name = target
            del tensor.dims[:]
            tensor.dims.extend(shape)
            self.made[target] = tensor
            self.types[target] = helper.make_tensor_type_proto(tensor.data_type, shape)
        return target

    def lift(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """Without the Constant nodes, which become constants of the graph, equal ones one."""
        names: dict[str, str] = {}
        for node in nodes:
            if node.op_type == "Constant":
                tensor = node.attribute[0].t
                key = (tensor.dims[0], tensor.raw_data)
                names[node.output[0]] = self.lifted.setdefault(
                    key, f"ss2d_constant_{len(self.lifted)}"
                )
                tensor.name = names[node.output[0]]
                self.made.setdefault(tensor.name, tensor)
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)
        return [node for node in nodes if node.op_type != "Constant"]


def _inferred(
    model: ModelProto, node: NodeProto, nodes: list[NodeProto], types: Mapping[str, TypeProto]
) -> list[ValueInfoProto]:
    """Types of the values that the nodes make, constants and the last one left out."""
    made = {name for n in nodes for name in n.output}
    read = {name for n in nodes for name in n.input} - made
    constants = {n.output[0] for n in nodes if n.op_type == "Constant"}
    inputs = [helper.make_value_info(name, types[name]) for name in sorted(read)]
    output = helper.make_value_info(node.output[0], types[node.input[0]])
    part = helper.make_model(
        helper.make_graph(nodes, "ss2d", inputs, [output]), opset_imports=model.opset_import
    )
    values = onnx.shape_inference.infer_shapes(part, data_prop=True).graph.value_info
    return [value for value in values if value.name not in constants]
