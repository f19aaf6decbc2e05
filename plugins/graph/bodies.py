"""The two bodies of the model-local ONNX function tfanet::SelectiveScan, in standard operators.

Both compute, for every channel of a group and every state n,

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = sum_n C_t h_t + D u_t,    y *= silu(z)

with dt = delta + delta_bias, through softplus where the pattern says so. L is cut into K chunks of
T steps. Inside a chunk the recurrence starts from zero; what a chunk hands to the next one is
exp(A sum(dt)) times what it was handed plus its own last h. Nothing is ever divided by a decay, so
strong decay loses nothing.

Shapes in the comments: b batch, G groups, e = dim / G channels of a group, N states. The N axis is
left out of every shape where all nodes of the model have N = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tfanet.plugins.operands import DOMAIN, SELECTIVE_SCAN

__all__ = [
    "Nodes",
    "Pattern",
    "all_graphs",
    "build_function",
    "softplus",
]

# Steps of a chunk of the parallel body: log2(16) passes over the whole data, the rest over 1/16.
PARALLEL_CHUNK = 16


@dataclass(frozen=True)
class Pattern:
    """What all nodes of one model share, hence what one function body computes.

    The fields named like optional operands say that nodes have these, `delta_softplus` that the
    flag is set. `compute` is the TensorProto type of the arithmetic, `casts` says that operands may
    come in another type, `single_state` that N = 1 everywhere; `max_length` bounds L (parallel body
    only), `one_length` says that L is that everywhere.
    """

    D: bool = False
    z: bool = False
    delta_bias: bool = False
    delta_softplus: bool = False
    compute: int = TensorProto.FLOAT
    casts: bool = False
    single_state: bool = False
    max_length: int = 0
    one_length: bool = False

    def inputs(self) -> list[str]:
        """Names of the inputs of a node, without gaps: z comes with D and delta_bias."""
        names = list(SELECTIVE_SCAN.inputs)
        while SELECTIVE_SCAN[names[-1]].optional and not getattr(self, names[-1]):
            names.pop()
        return names


class Nodes:
    """A growing list of nodes; a call appends one and returns the name of its first output."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[NodeProto] = []
        self._prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __call__(self, op: str, *inputs: str, out: Sequence[str] = (), **attributes: Any) -> str:
        names = list(out) or [f"{self._prefix}{op}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def graph(
        self, name: str, inputs: Sequence[str], outputs: Mapping[str, int], elem: int
    ) -> GraphProto:
        """These nodes as the body of a Scan; sizes come from the Scan's own operands.

        The rank of each output is told: ONNX Runtime before 1.24 wants to know it, and can't infer
        it without optimisation where an operand's shape is computed.
        """
        taken = [helper.make_tensor_value_info(n, elem, None) for n in inputs]
        made = [helper.make_tensor_value_info(n, elem, [None] * r) for n, r in outputs.items()]
        return helper.make_graph(self.nodes, name, taken, made)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_graphs(inner) if inner.node else ()


def softplus(f: Nodes, x: str, dtype: np.dtype[Any], engine: bool) -> str:
    """max(x, 0) + log(1 + exp(-|x|)), where the rounding of 1 + exp is put back to first order.

    ONNX Runtime's Softplus takes twice the time and has no double; an `engine` has a good one.
    """
    if engine and dtype == np.float32:
        return f("Softplus", x)
    one = f.constant(1, dtype)
    small = f("Exp", f("Neg", f("Abs", x)))
    rounded = f("Add", small, one)
    lost = f("Sub", small, f("Sub", rounded, one))
    logarithm = f("Add", f("Log", rounded), f("Div", lost, rounded))
    return f("Add", f("Relu", x), logarithm)


class _Body:
    """The parts that both bodies share: operands, cutting into chunks, and the output's tail."""

    def __init__(self, pattern: Pattern, engine: bool) -> None:
        self.pattern = pattern
        self.f = f = Nodes()
        self.dtype = helper.tensor_dtype_to_np_dtype(pattern.compute)
        self.u = self._operand("u")
        dt = self._operand("delta")
        if pattern.delta_bias:
            dt = f("Add", dt, f("Unsqueeze", self._operand("delta_bias"), f.constant([1])))
        self.dt = softplus(f, dt, self.dtype, engine) if pattern.delta_softplus else dt
        self.batch_groups = f("Shape", "B", start=0, end=2)
        self.groups = f("Shape", "B", start=1, end=2)
        self.length = f("Shape", "u", start=2, end=3)

    def _operand(self, name: str) -> str:
        return self.f("Cast", name, to=self.pattern.compute) if self.pattern.casts else name

    def join(self, *parts: str) -> str:
        """A shape out of 1-D pieces."""
        return self.f("Concat", *parts, axis=0)

    def cut(self, steps: str) -> None:
        """Sets the number of chunks of `steps` steps, and the zeros that fill the last chunk."""
        f = self.f
        filled = f("Sub", f("Add", self.length, steps), f.constant([1]))
        self.steps, self.chunks = steps, f("Div", filled, steps)
        missing = f("Sub", f("Mul", self.chunks, steps), self.length)
        self._fill = {rank: self.join(f.constant([0] * (2 * rank - 1)), missing) for rank in (3, 4)}

    def per_channel(self, x: str) -> str:
        """(b, dim, L) -> (b, G, e, 1, K, T)."""
        return self._chunked(x, 3, [-1] if self.pattern.single_state else [-1, 1])

    def per_state(self, name: str) -> str:
        """Input B or C, (b, G, N, L) -> (b, G, 1, N, K, T)."""
        return self._chunked(self._operand(name), 4, [1] if self.pattern.single_state else [1, -1])

    def _chunked(self, x: str, rank: int, middle: list[int]) -> str:
        f = self.f
        shape = self.join(self.batch_groups, f.constant(middle), self.chunks, self.steps)
        return f("Reshape", f("Pad", x, self._fill[rank]), shape)

    def decay_rate(self, inner_axes: int) -> str:
        """Input A, (dim, N) -> (G, e, N) and `inner_axes` axes of 1."""
        f = self.f
        states = [] if self.pattern.single_state else [f("Shape", "A", start=1, end=2)]
        ones = f.constant([1] * inner_axes)
        shape = self.join(self.groups, f.constant([-1]), *states, ones)
        return f("Reshape", self._operand("A"), shape)

    def sum_states(self, f: Nodes, x: str, axis: int) -> str:
        if self.pattern.single_state:
            return x
        return f("ReduceSum", x, f.constant([axis]), keepdims=0)

    def finish(self, y: str, opset: int, name: str) -> FunctionProto:
        """(b, G, e, K, T) -> y (b, dim, L), with D u, silu(z) and the outer type."""
        f, pattern = self.f, self.pattern
        y = f("Reshape", y, self.join(f("Shape", "u", start=0, end=2), f.constant([-1])))
        y = f("Slice", y, f.constant([0]), self.length, f.constant([2]))
        if pattern.D:
            skip = f("Mul", self.u, f("Unsqueeze", self._operand("D"), f.constant([1])))
            y = f("Add", y, skip)
        if pattern.z:
            z = self._operand("z")
            if pattern.compute == TensorProto.DOUBLE:
                # ONNX Runtime before 1.22 fuses z * Sigmoid(z) into a kernel without a double.
                silu = f("Div", z, f("Add", f("Exp", f("Neg", z)), f.constant(1, self.dtype)))
            else:
                silu = f("Mul", z, f("Sigmoid", z))
            y = f("Mul", y, silu)
        f(
            "CastLike" if pattern.casts else "Identity",
            *([y, "u"] if pattern.casts else [y]),
            out=["y"],
        )
        flags = [helper.make_attribute(f, int(getattr(pattern, f))) for f in SELECTIVE_SCAN.flags]
        return helper.make_function(
            DOMAIN,
            name,
            inputs=pattern.inputs(),
            outputs=["y"],
            nodes=f.nodes,
            opset_imports=[helper.make_opsetid("", opset)],
            attribute_protos=flags,
        )


def build_function(
    kind: str, pattern: Pattern, opset: int, name: str = SELECTIVE_SCAN.op_type
) -> FunctionProto:
    """The function `name` for nodes of `pattern`, valid from opset 18 on.

    `kind` is "sequential" (three ONNX Scans, any L) or "parallel" (no control flow, L up to
    `pattern.max_length`).
    """
    body = _Body(pattern, engine=kind == "parallel")
    y = _sequential(body) if kind == "sequential" else _parallel(body)
    return body.finish(y, opset, name)


def _sequential(body: _Body) -> str:
    """Three Scans: every chunk's last h, then the carry from chunk to chunk, then y.

    Walking all chunks in step makes about sqrt(8 L) iterations on wide rows instead of L on
    narrow ones, and holds the state of K steps only, never (b, dim, N, L).
    """
    f, single, elem = body.f, body.pattern.single_state, body.pattern.compute
    # T = floor(sqrt(L / 2)) + 1 makes 2 T + K, the number of iterations, smallest.
    root = f("Sqrt", f("Mul", f("Cast", body.length, to=TensorProto.FLOAT), f.constant(0.5, "f4")))
    body.cut(f("Add", f("Cast", root, to=TensorProto.INT64), f.constant([1])))

    def time_first(x: str) -> str:
        last = 4 if single else 5
        return f("Transpose", x, perm=[last, *range(last)])

    dt = time_first(body.per_channel(body.dt))
    weight = time_first(body.per_channel(f("Mul", body.dt, body.u)))
    B, C = time_first(body.per_state("B")), time_first(body.per_state("C"))
    A = body.decay_rate(1)

    channels = f("Div", f("Shape", "A", start=0, end=1), body.groups)
    states = [] if single else [f("Shape", "A", start=1, end=2)]
    at_rest = body.join(body.batch_groups, channels, *states)
    state = 3 + len(states)  # rank of (b, G, e, N)
    zero = helper.make_tensor("zero", elem, [1], [0])
    still = f("ConstantOfShape", body.join(at_rest, body.chunks), value=zero)

    def step(prefix: str, with_output: bool) -> GraphProto:
        g = Nodes(prefix)
        h, dt_t, w_t, b_t, c_t = (f"{prefix}{n}" for n in ("h", "dt", "w", "B", "C"))
        decayed = g("Mul", g("Exp", g("Mul", dt_t, A)), h)
        after = g("Add", decayed, g("Mul", w_t, b_t), out=[f"{prefix}after"])
        if not with_output:
            return g.graph("last_state", [h, dt_t, w_t, b_t], {after: state + 1}, elem)
        y_t = body.sum_states(g, g("Mul", after, c_t), -2)
        return g.graph("output", [h, dt_t, w_t, b_t, c_t], {after: state + 1, y_t: 4}, elem)

    own = f("Scan", still, dt, weight, B, num_scan_inputs=3, body=step("own_", False))
    decay = f("Exp", f("Mul", f("ReduceSum", dt, f.constant([0]), keepdims=0), A))

    g = Nodes("carry_")
    after = g("Add", g("Mul", "carry_decay", "carry_h"), "carry_own")
    before = g("Identity", "carry_h")
    names = ["carry_h", "carry_decay", "carry_own"]
    f(
        "Scan",
        *(f("ConstantOfShape", at_rest, value=zero), decay, own),
        out=["carry_end", "carried"],
        num_scan_inputs=2,
        scan_input_axes=[-1, -1],
        scan_output_axes=[-1],
        body=g.graph("carry", names, {after: state, before: state}, elem),
    )
    f(
        "Scan",
        *("carried", dt, weight, B, C),
        out=["scan_end", "scanned"],
        num_scan_inputs=4,
        body=step("full_", True),
    )
    return f("Transpose", "scanned", perm=[1, 2, 3, 4, 0])


def _parallel(body: _Body) -> str:
    """Two levels of Hillis-Steele doubling: over the steps of each chunk, then over the chunks."""
    f, single = body.f, body.pattern.single_state
    inner = 5 if single else 6
    body.cut(f.constant([PARALLEL_CHUNK]))
    zero, one = f.constant(0, body.dtype), f.constant(1, body.dtype)

    def delayed(x: str, by: int, rank: int, fill: str) -> str:
        """x moved `by` places down the last axis, `fill` before it."""
        front = [0] * (rank - 1)
        if rank == inner or body.pattern.one_length:
            return f("Pad", x, f.constant([*front, by, *front, -by]), fill)
        # Nodes of unlike L share the body, so there may be fewer chunks than `by`: pad, then cut.
        longer = f("Pad", x, f.constant([*front, by, *front, 0]), fill)
        return f("Slice", longer, f.constant([0]), f.constant([-by]), f.constant([rank - 1]))

    def doubled(a: str, h: str, places: int, rank: int, keep_a: bool) -> tuple[str, str]:
        by = 1
        while by < places:
            h = f("Add", f("Mul", a, delayed(h, by, rank, zero)), h)
            if keep_a or 2 * by < places:
                a = f("Mul", a, delayed(a, by, rank, one))
            by *= 2
        return a, h

    dt, rank = body.per_channel(body.dt), inner
    a = f("Exp", f("Mul", dt, body.decay_rate(2)))
    h = f("Mul", body.per_channel(f("Mul", body.dt, body.u)), body.per_state("B"))
    a, h = doubled(a, h, PARALLEL_CHUNK, rank, keep_a=True)

    last, chunks = f.constant(PARALLEL_CHUNK - 1), -(-body.pattern.max_length // PARALLEL_CHUNK)
    a_end, h_end = (f("Gather", x, last, axis=rank - 1) for x in (a, h))
    _, carried = doubled(a_end, h_end, chunks, rank - 1, keep_a=False)
    before = f("Unsqueeze", delayed(carried, 1, rank - 1, zero), f.constant([-1]))
    h = f("Add", f("Mul", a, before), h)
    return body.sum_states(f, f("Mul", h, body.per_state("C")), -3)
