"""Why a user's model can't be exported, in terms of its own code: what to change, and where."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tfanet.errors import InputError, MissingDependencyError
from tfanet.export.compare import relative_error
from tfanet.export.trace import EXAMPLE_BATCH
from tfanet.export.user_model.factory import reason
from tfanet.export.user_model.inputs import BATCH, InputSpec
from tfanet.export.user_model.parity import ModelCase, open_file, to_array
from tfanet.plugins import ort_library_path
from tfanet.plugins.compat.standins import in_extension

__all__ = ["Watch", "check_repeatable", "explain", "next_size", "open_sizes", "why_not"]

_NOISE = 1e-6  # below it, results of threads that add in another order
_RANDOM_NODES = ("Random", "Bernoulli", "Multinomial")
_LIBRARY = re.compile(r"[/\\](torch|tfanet|onnx\w*)[/\\]")


class Watch(TorchDispatchMode):
    """Sees what a run does: our scans, types of 16 bits, and where it draws random numbers.

    `direct`: a scan of ours, other than by a project's code through an extension.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scans = self.direct = False
        self.low: set[torch.dtype] = set()
        self.random: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = func.namespace == "tfanet"
        self.scans |= ours
        self.direct |= ours and not in_extension()
        if self.random is None and torch.Tag.nondeterministic_seeded in func.tags:
            place = _last_own(traceback.extract_stack())
            self.random = f"{func.overloadpacket}" + (f" at {place}" if place else "")
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
                self.low.add(value.dtype)
        return result


def check_repeatable(first: Mapping[str, Tensor], second: ModelCase, watch: Watch) -> None:
    """That two runs on the same input give the same. Raises InputError: no graph can equal both."""
    for value, again in zip(first.values(), second.expected, strict=True):
        array = to_array(value)
        if array.shape == again.shape and np.array_equal(array, again, equal_nan=True):
            continue
        error = relative_error(array, again)
        noise = max(_NOISE, second.facts.step if second.facts else 0)
        if not error <= noise:
            where = (
                f"it draws random numbers in evaluation mode ({watch.random})"
                if watch.random
                else "it keeps a state between calls, or draws random numbers outside PyTorch"
            )
            raise InputError(
                f"the model gives different results for the same input, by {error:.1e}: {where}, "
                "and no graph can be compared with it; make it deterministic where self.training "
                "is false"
            )


def open_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every open axis, by name."""
    return {name: spec.sizes[axis] for spec in specs for axis, name in spec.axes}


def next_size(size: int) -> int:
    """The next size that is divisible by what this one is, up to 32: 224 to 256, 50 to 52."""
    return size + min(size & -size, 32)


def why_not(
    path: Path,
    graph: onnx.ModelProto,
    outputs: Sequence[str],
    specs: Sequence[InputSpec],
    make_case: Callable[[dict[str, int], int], ModelCase],
    watch: Watch,
) -> str | None:
    """What in the model makes its graph compute something else; None where nothing is found.

    The graph is right at the sizes that it was exported at: then each open axis is tried alone.
    """
    kinds = {node.op_type for node in graph.graph.node}
    drawn = sorted(kind for kind in kinds if kind.startswith(_RANDOM_NODES))
    if drawn:
        place = f" ({watch.random})" if watch.random else ""
        return (
            f"the graph draws random numbers of its own ({', '.join(drawn)}), because the model "
            f"does{place}: make it deterministic where self.training is false"
        )
    as_exported = open_sizes(specs) | ({BATCH: EXAMPLE_BATCH} if _has_batch(specs) else {})
    if not as_exported or not _is_right(path, outputs, make_case(as_exported, 0)):
        return None
    fixed = []
    for name, size in as_exported.items():
        other = size - 1 if name == BATCH else next_size(size)
        if not _is_right(path, outputs, make_case({**as_exported, name: other}, 0)):
            fixed.append((name, size))
    if not fixed:
        return None
    axes = " and ".join(f"{name} at {size}" for name, size in fixed)
    how = " and ".join(_how_to_fix(name, size) for name, size in fixed)
    return (
        f"the model's code takes a size as a plain number and so fixes {axes} in the graph, which "
        f"was to stay open: give {how}, or compute it from the tensor's shape in the forward"
    )


def _has_batch(specs: Sequence[InputSpec]) -> bool:
    return BATCH in open_sizes(specs)


def _how_to_fix(name: str, size: int) -> str:
    return "--no-dynamic-batch" if name == BATCH else f"{size} in place of {name}={size}"


def _is_right(path: Path, outputs: Sequence[str], case: ModelCase) -> bool:
    """Whether the graph gives what PyTorch does, on the first way to run it here."""
    for find in (ort_library_path, lambda: None):
        try:
            session = open_file(path, find(), case.facts)
        except MissingDependencyError:
            continue
        feeds = zip(session.get_inputs(), case.values, strict=True)
        try:
            got = session.run(list(outputs), {i.name: to_array(v) for i, v in feeds})
        except Exception:  # what ONNX Runtime raises has no common base
            return False
        judged = (case.judge(index, value) for index, value in enumerate(got))
        return all(facts["max_rel_error"] <= facts["limit"] for facts in judged)
    return False


def explain(error: BaseException, specs: Sequence[InputSpec]) -> str:
    """The cause of an exporter's error in one line, in terms of the user's inputs and files."""
    operator = _operator(error)
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    fixed = re.search(
        r"static shape of (\d+) for dimension inputs\['values'\]\[(\d+)\].shape\[(\d+)", text
    )
    if fixed is not None:
        spec, axis = specs[int(fixed[2])], int(fixed[3])
        how = (
            "--no-dynamic-batch" if dict(spec.axes).get(axis) == BATCH else "a size without a name"
        )
        return (
            f"its code fixes axis {axis} of the input {spec.name!r}, which was to stay open, at "
            f"{fixed[1]}: give {how}"
        )
    place = re.search(r'call raised this error:\s+File "([^"]+)", line (\d+)', text)
    own = _last_own(traceback.extract_tb(error.__traceback__))
    own = f"{place[1]}, line {place[2]}" if place else own
    where = f" ({own})" if own else ""
    if "data-dependent" in text:
        return f"its control flow depends on values of the inputs{where}; use torch.where there"
    if operator is not None and type(error).__name__ == "DispatchError":
        return f"ONNX has no {operator}: compute it from others there"
    if operator is not None:
        return f"{operator} can't be translated to ONNX: {reason(error)}"
    return f"{reason(error)}{where}"


def _operator(error: BaseException) -> str | None:
    """The operator that the exporter was translating, its module and its line in the user's code.

    The exporter's message names a node of its own graph; the node knows where it comes from.
    """
    node: torch.fx.Node | None = None
    found: BaseException | None = error
    while found is not None:
        for frame, _ in traceback.walk_tb(found.__traceback__):
            value = frame.f_locals.get("node")
            if isinstance(value, torch.fx.Node) and value.op == "call_function":
                node = value
        found = found.__cause__
    if node is None:
        return None
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(modules[-1][0]).partition("model.")[2] if modules else ""
    kind = str(modules[-1][1]).rsplit(".", 1)[-1] if modules else ""
    lines = re.findall(r'File "([^"]+)", line (\d+)', str(node.meta.get("stack_trace") or ""))
    own = [f"{file}, line {line}" for file, line in lines if not _LIBRARY.search(file)]
    module = f"module {path or 'of the model itself'} ({kind})" if kind else ""
    facts = ", ".join(part for part in (module, own[-1] if own else "") if part)
    return f"operator for {node.target}" + (f" in {facts}" if facts else "")


def _last_own(frames: Iterable[traceback.FrameSummary]) -> str:
    """File and line of the user's code that was passed last, or nothing."""
    own = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
