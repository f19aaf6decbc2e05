"""tfanet::SS2D and tfanet::SS2DScan in standard operators and one tfanet::SelectiveScan.

SS2D is a projection of the map and, behind it, SS2DScan: where the projection is to be quantised it
is a layer of its own, and the scan stays fused. So each operator is a few nodes around the next.

The same nodes are the bodies of the model-local functions of these names, where shapes are those of
whatever operands come, and what `split_ss2d` and `expand_ss2d` put in a node's place, where they
are known.

Shapes in the comments: b batch, E channels, R rank, N states, L = H W.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from tfanet.plugins.graph.bodies import Nodes, all_graphs
from tfanet.plugins.operands import DIRECTIONS, DOMAIN, SELECTIVE_SCAN, SS2D, SS2D_SCAN

__all__ = [
    "is_ss2d",
    "is_whole_ss2d",
    "replace_ss2d",
    "ss2d_body",
    "ss2d_scan_body",
]

_COLUMNS_FIRST = [0, 1, 3, 2]


@dataclass(frozen=True)
class _Prepared:
    """Names of SS2DScan's operands in the shapes that the parts take, and of shapes.

    u (b, E, H, W), rows (b, 4 (R + 2N), H, W), dt_proj (4E, R, 1), bias (4E), A (4E, N), D (4E);
    split is [R, N, N], dt_shape [0, 4R, -1], size [b, E, H, W] and turned [b, E, W, H].
    """

    u: str
    rows: str
    dt_proj: str
    bias: str
    A: str
    D: str
    split: str
    dt_shape: str
    size: str
    turned: str


def is_ss2d(node: NodeProto) -> bool:
    """Whether a node is a 2-D scan, with its projection or without."""
    return is_whole_ss2d(node) or (node.op_type == SS2D_SCAN.op_type and node.domain == DOMAIN)


def is_whole_ss2d(node: NodeProto) -> bool:
    return node.op_type == SS2D.op_type and node.domain == DOMAIN


def _project(f: Nodes, u: str, maps: str, weights: Sequence[str], flat: Sequence[str]) -> str:
    """Appends the projection of `maps`, which are u in the weights' type, and an SS2DScan.

    weights: A and D. flat: x_proj (4 (R + 2N), E, 1, 1), dt_weight (4E, R), dt_bias (4E).
    """
    x_proj, dt_weight, dt_bias = flat
    rows = f("Conv", maps, x_proj, name="x_proj")
    operands = (u, rows, dt_weight, dt_bias, *weights)
    return f(SS2D_SCAN.op_type, *operands, name="scan", domain=DOMAIN)


def _flatten(f: Nodes, x_proj: str, dt_weight: str, dt_bias: str) -> list[str]:
    """Appends what brings these weights into the shapes that `_project` takes."""
    return [
        f("Unsqueeze", f("Flatten", x_proj, axis=2), f.constant([2, 3])),
        f("Flatten", dt_weight, axis=2),
        f("Reshape", dt_bias, f.constant([-1])),
    ]


def _compose(f: Nodes, x: _Prepared) -> str:
    """Appends cross-scan, delta's product, one scan and cross-merge; returns y (b, E, H, W)."""
    flat, one = f.constant([0, 0, -1]), f.constant([1])
    backwards = (f.constant([-1]), f.constant([np.iinfo(np.int64).min]))

    def reverse(sequence: str) -> str:
        return f("Slice", sequence, *backwards, f.constant([2]), f.constant([-1]))

    def turn(maps: str) -> str:
        return f("Transpose", maps, perm=_COLUMNS_FIRST)

    def four(value: str) -> list[str]:
        parts = [f"{value}_part_{k}" for k in range(DIRECTIONS)]
        f("Split", value, out=parts, axis=1, num_outputs=DIRECTIONS)
        return parts

    # Each of the four is (b, R + 2N, H, W).
    orders = [f("Reshape", turn(m) if k % 2 else m, flat) for k, m in enumerate(four(x.rows))]
    orders[2:] = [reverse(order) for order in orders[2:]]
    projected = f("Concat", *(f("Unsqueeze", order, one) for order in orders), axis=1)
    dt, B, C = (f"{projected}_{name}" for name in ("dt", "B", "C"))
    f("Split", projected, x.split, out=[dt, B, C], axis=2)  # (b, 4, R or N, L)
    dt = f("Reshape", dt, x.dt_shape)
    delta = f("Conv", dt, x.dt_proj, name="dt_proj", group=DIRECTIONS)  # (b, 4E, L)

    row, column = f("Reshape", x.u, flat), f("Reshape", turn(x.u), flat)
    sequences = f("Concat", row, column, reverse(row), reverse(column), axis=1)
    operands = (sequences, delta, x.A, B, C, x.D, x.bias)
    y = f(SELECTIVE_SCAN.op_type, *operands, name="scan", domain=DOMAIN, delta_softplus=1)
    y0, y1, y2, y3 = four(y)
    by_rows = f("Reshape", f("Add", y0, reverse(y2)), x.size)
    by_columns = f("Reshape", f("Add", y1, reverse(y3)), x.turned)
    return f("Add", by_rows, turn(by_columns))


def _prepare(f: Nodes, names: Sequence[str], u: str) -> _Prepared:
    """Appends what brings the operands into shape: a runtime folds it where they are constant."""
    _, rows, dt_weight, dt_bias, A, D = names
    rank, states = f("Shape", dt_weight, start=1), f("Shape", A, start=1)
    ranks = f("Mul", rank, f.constant([DIRECTIONS]))
    size = f("Shape", u)
    return _Prepared(
        u=u,
        rows=rows,
        dt_proj=f("Unsqueeze", dt_weight, f.constant([2])),
        bias=dt_bias,
        A=A,
        D=D,
        split=f("Concat", rank, states, states, axis=0),
        dt_shape=f("Concat", f.constant([0]), ranks, f.constant([-1]), axis=0),
        size=size,
        turned=f("Gather", size, f.constant(_COLUMNS_FIRST)),
    )


def ss2d_body(casts: bool) -> Nodes:
    """The nodes of the function SS2D, from `SS2D.inputs` to y.

    `casts`: the map comes in another type than the weights, which is the one to compute in.
    """
    f = Nodes()
    maps = f("CastLike", "u", "A") if casts else "u"
    _project(f, "u", maps, ("A", "D"), _flatten(f, *SS2D.inputs[1:4]))
    f.nodes[-1].output[0] = "y"
    return f


def ss2d_scan_body(casts: bool) -> Nodes:
    """The nodes of the function SS2DScan, from `SS2D_SCAN.inputs` to y; `casts` as above."""
    f = Nodes()
    u = f("CastLike", "u", "A") if casts else "u"
    y = _compose(f, _prepare(f, SS2D_SCAN.inputs, u))
    f("CastLike", y, "u", out=["y"]) if casts else f("Identity", y, out=["y"])
    return f


def replace_ss2d(model: ModelProto, types: Mapping[str, TypeProto], keep_scan: bool) -> None:
    """Puts the parts in the place of every 2-D scan of the main graph, in place.

    Constant weights get the shapes that the parts take; `types` of values tell the other shapes.
    New nodes are named after the node, "block.op/ss2d_3.x_proj", and their values' types noted.
    With `keep_scan` the parts are projections and SS2DScan nodes, which stay.
    """
    known = dict(types)
    _replace(model, known, whole=True)
    if not keep_scan:
        _replace(model, known, whole=False)


def _replace(model: ModelProto, types: dict[str, TypeProto], whole: bool) -> None:
    """One step, of SS2D nodes (`whole`) or of SS2DScan nodes; adds to `types`."""
    graph = model.graph
    constants = _Constants(graph, types)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not is_ss2d(node) or is_whole_ss2d(node) != whole:
            nodes.append(node)
            continue
        u, y, step = node.input[0], node.output[0], "weights_" if whole else ""
        f = Nodes(f"{y}_{step}")
        kind, computed = (types[node.input[i]].tensor_type.elem_type for i in (0, 4))
        cast = kind != computed
        maps = f("Cast", u, to=computed) if cast else u
        if whole:
            flat = constants.flatten(node) or _flatten(f, *node.input[1:4])
            _project(f, u, maps, node.input[4:], flat)
        else:
            result = _compose(f, constants.prepare(f, node, maps) or _prepare(f, node.input, maps))
            if cast:
                f("Cast", result, to=kind)
        f.nodes[-1].output[0] = y
        prefix = node.name.removesuffix(".scan")
        for index, new in enumerate(f.nodes):
            new.name = f"{prefix}.{new.name or f'{step}{new.op_type.lower()}_{index}'}"
        noted = _inferred(model, node, f.nodes, types)
        types.update((value.name, value.type) for value in noted)
        graph.value_info.extend(noted)
        nodes += constants.lift(f.nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    for field, changed in (
        (graph.initializer, constants.made),
        (graph.value_info, {*constants.made, *constants.retyped}),
    ):
        kept = [value for value in field if value.name not in changed]
        del field[:]
        field.extend(kept)
    graph.initializer.extend(constants.made.values())


class _Constants:
    """The constants of a graph whose 2-D scans are replaced."""

    def __init__(self, graph: GraphProto, types: dict[str, TypeProto]) -> None:
        self.types = types
        self.known = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[str, TensorProto] = {}
        self.retyped: set[str] = set()
        self.others = {  # read by more than the inputs that change their shape
            name
            for inner in all_graphs(graph)
            for node in inner.node
            for index, name in enumerate(node.input)
            if inner is not graph or not is_ss2d(node) or index not in (1, 2, 3)
        }
        reads = Counter(name for inner in all_graphs(graph) for n in inner.node for name in n.input)
        self.stored = {  # weights that are kept in 8 bits, by what comes out of the conversion
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "DequantizeLinear"
            and node.input[0] in self.known
            and reads[node.input[0]] == 1
            and node.output[0] not in self.others
        }
        self.others -= set(self.stored.values())

    def flatten(self, node: NodeProto) -> list[str] | None:
        """The weights of an SS2D as `_project` takes them, where they are constants; else None."""
        if not all(name in self.known for name in node.input[1:4]):
            return None
        _, x_proj, dt_weight, dt_bias, _, _ = node.input
        _, channels, rank = self.known[dt_weight].dims
        rows = DIRECTIONS * self.known[x_proj].dims[1]
        return [
            self._reshaped(x_proj, rows, channels, 1, 1),
            self._reshaped(dt_weight, DIRECTIONS * channels, rank),
            self._reshaped(dt_bias, DIRECTIONS * channels),
        ]

    def prepare(self, f: Nodes, node: NodeProto, u: str) -> _Prepared | None:
        """The operands of an SS2DScan where dt_weight and A are constants, H and W known."""
        _, rows, dt_weight, dt_bias, A, D = node.input
        size = [dim.dim_value for dim in self.types[node.input[0]].tensor_type.shape.dim[2:]]
        stored = self.stored.get(dt_weight, dt_weight)
        if not all(size) or stored not in self.known or A not in self.known:
            return None
        rows_of_weights, rank = self.known[stored].dims
        states = self.known[A].dims[1]
        dt_proj = self._reshaped(stored, rows_of_weights, rank, 1)
        if stored != dt_weight:
            kind = self.types[A].tensor_type.elem_type
            self.types[dt_weight] = helper.make_tensor_type_proto(kind, [rows_of_weights, rank, 1])
            self.retyped.add(dt_weight)
        return _Prepared(
            u=u,
            rows=rows,
            dt_proj=dt_proj if stored == dt_weight else dt_weight,
            bias=dt_bias,
            A=A,
            D=D,
            split=f.constant([rank, states, states]),
            dt_shape=f.constant([0, DIRECTIONS * rank, -1]),
            size=f.constant([0, 0, *size]),
            turned=f.constant([0, 0, *size[::-1]]),
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
                values = "_".join(map(str, numpy_helper.to_array(tensor)))
                tensor.name = names[node.output[0]] = f"ss2d_constant_{values}"
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
