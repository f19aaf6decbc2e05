"""`export_onnx`: a user's own selective-scan model to one ONNX file, compared with PyTorch."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tfanet.errors import GateError, InputError, MissingDependencyError
from tfanet.export.trace import (
    EXAMPLE_BATCH,
    IR_VERSION,
    check_options,
    export_graph,
    graph_interface,
)
from tfanet.export.user_model.diagnosis import (
    Watch,
    check_repeatable,
    explain,
    next_size,
    open_sizes,
    why_not,
)
from tfanet.export.user_model.factory import current_folder, load_factory, reason
from tfanet.export.user_model.inputs import BATCH, InputSpec, draw, parse_inputs
from tfanet.export.user_model.instructions import loading_instructions
from tfanet.export.user_model.parity import (
    Exact,
    ModelCase,
    check_file,
    compare_original,
    to_array,
)
from tfanet.plugins import attach, exportable
from tfanet.plugins.compat.standin_import import Standins
from tfanet.plugins.graph.attach import count_scan_nodes
from tfanet.plugins.operands import DOMAIN
from tfanet.progress import Progress, Stages
from tfanet.runtime.bundle.write import check_output, new_file
from tfanet.weights import load_weights

__all__ = ["export_onnx"]

SEED = 0
_LARGEST_FILE = 2**31 - 1  # of a protobuf message


class _Flat(nn.Module):
    """The user's model with positional inputs and a flat tuple of tensors as its result."""

    def __init__(self, model: nn.Module, specs: Sequence[InputSpec]) -> None:
        super().__init__()
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._names = [
            spec.name if spec.argument and (anything or spec.name in parameters) else None
            for spec in specs
        ]

    def call(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        pairs = list(zip(self._names, values, strict=True))
        positional = [value for name, value in pairs if name is None]
        return _named_tensors(self.model(*positional, **{n: v for n, v in pairs if n is not None}))

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.call(values).values())


def export_onnx(
    model: nn.Module | str,
    output: str | Path,
    *,
    input: str | Sequence[str],
    function: str = "sequential",
    checkpoint: str | Path | None = None,
    dynamic_batch: bool = True,
    opset: int = 20,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export any model that uses a known selective scan, and prove that it computes the same.

    The model runs inside `tfanet.plugins.exportable()`; where mamba-ssm and its like are not
    installed, stand-ins let it load. The file is compared in ONNX Runtime with PyTorch, with our
    library and without, at two batch sizes and at sizes of open axes that the export has not seen.

    Args:
        model: a module, or "package.module:factory" of a module or of a function that makes one.
        output: the ONNX file to write.
        input: one or more of "[NAME:]1x3x224x224[:DTYPE]"; one that is named as a parameter of
            `forward` is passed by that. An axis written "height=224" stays open.
        function: the scan in standard operators: "sequential", "parallel" or "none".
        checkpoint: a .safetensors or .pth file of the weights.
        dynamic_batch: leave the first axis of every input open, as "batch".
        opset: 18 to 23. overwrite: replace a file that is there.

    Returns:
        path, size, opset, function, inputs, outputs; nodes: total and the names of the scans;
        routed: entry points that our operator stands in for; standins: packages that stand-ins of
        ours were imported for, each with the reason; parity: cases and max_rel_error;
        weights: the level of the checkpoint that they were taken from, None without one;
        original: the model's own code beside our operator, where it runs here; library: where ours
        is; loading: what to type, by runtime.

    Raises:
        InputError: for a bad option, a model that can't be found, run or exported, that holds no
            scan, draws random numbers, fixes a size, or an output that exists.
        MissingDependencyError: for a package that it needs.
        GateError: where a result differs by more than 1e-4, or the model's own code by more than
            1e-3; nothing is written then. A model that computes in 16 bits is run in float64 too:
            the graph may be twice as far from that as PyTorch's own run is, or the type's step.
    """
    check_options(function, opset)
    target = check_output(output, overwrite=overwrite)
    level = None
    specs = parse_inputs([input] if isinstance(input, str) else input, dynamic_batch)
    stages = Stages(progress)
    standins = Standins()
    try:
        module = _load(model, standins)
        if checkpoint is not None:
            level = load_weights(module, checkpoint)
        flat = _Flat(module.cpu().eval(), specs)
        stages.next("running the model", 0.3)
        first = draw([spec.resized({BATCH: 1}) for spec in specs], SEED)
        original = _run_original(flat, first)
        with exportable() as routed:
            watch = Watch()
            outputs = _run(flat, first, specs, watch)
            if not watch.scans:
                raise InputError(_no_scan(routed))
            exact = Exact.of(flat, first, watch.low) if watch.low else None
            make_case = partial(_make_case, flat, exact, specs)
            cases = [make_case(sizes, seed) for seed, sizes in enumerate(_chosen_sizes(specs))]
            check_repeatable(outputs, cases[0], watch)
            own = compare_original(original, outputs)
            stages.next("exporting", 0.6)
            graph = _trace(flat, specs, list(outputs), opset, routed)
        used = standins.used()
    finally:
        standins.remove()
    scans = [n.name or n.output[0] for n in graph.graph.node if n.domain == DOMAIN]
    graph = attach(graph, function)
    graph.ir_version = IR_VERSION
    with new_file(target, overwrite=overwrite) as part:
        _save(graph, part)
        stages.next("comparing with PyTorch")
        try:
            library, parity = check_file(part, cases, list(outputs))
        except GateError as error:
            with exportable():
                fault = why_not(part, graph, list(outputs), specs, make_case, watch)
            if fault is None:
                raise
            raise InputError(f"{fault}; nothing was written") from error
    stages.end()
    return {
        "path": str(target),
        "size": target.stat().st_size,
        "opset": opset,
        "function": function,
        "inputs": graph_interface(graph.graph.input),
        "outputs": graph_interface(graph.graph.output),
        "nodes": {"total": len(graph.graph.node), "scans": scans},
        "routed": list(routed),
        "standins": used,
        "weights": level,
        "parity": parity,
        "original": own,
        "library": None if library is None else str(library),
        "loading": loading_instructions(target, function, library, specs),
    }


def _load(model: nn.Module | str, standins: Standins) -> nn.Module:
    """The model, which may need stand-ins; a package mamba_ssm in the current folder is its own."""
    if not isinstance(model, str):
        standins.add()
        return model
    with current_folder():
        standins.add()
        try:
            with standins.loading():
                return load_factory(model)
        except (InputError, MissingDependencyError) as error:
            cause = error.__cause__
            package = str(getattr(cause, "name", None) or "").partition(".")[0]
            why = standins.reason(package)
            if isinstance(cause, ImportError) and why is not None:
                raise InputError(f"{error}; {package} is a stand-in here ({why})") from cause
            raise


def _run_original(flat: _Flat, values: Sequence[Tensor]) -> dict[str, Tensor] | str:
    """The model's own outputs, or why there are none to compare with."""
    try:
        with torch.no_grad(), Watch() as watch:
            outputs = flat.call(values)
    except Exception as error:  # most kernels want a GPU, and say so in many ways
        return reason(error)
    return "it calls our operator itself, or through a stand-in" if watch.direct else outputs


def _run(
    flat: _Flat,
    values: Sequence[Tensor],
    specs: Sequence[InputSpec],
    watch: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    try:
        with torch.no_grad(), watch or nullcontext():
            outputs = flat.call(values)
    except Exception as error:
        given = ", ".join(map(str, specs))
        hint = "" if isinstance(error, InputError) else "; check --input"
        raise InputError(f"the model fails on the input {given}: {reason(error)}{hint}") from error
    if not outputs:
        raise InputError("the model returns no tensor: give a factory of one that does")
    return outputs


def _chosen_sizes(specs: Sequence[InputSpec]) -> list[dict[str, int]]:
    """Batch 1 and 2, and every open axis at another size."""
    sizes = open_sizes(specs)
    chosen = [{BATCH: 1}, {BATCH: 2}] if BATCH in sizes else [{}]
    others = {name: next_size(size) for name, size in sizes.items() if name != BATCH}
    return [*chosen, {**chosen[0], **others}] if others else chosen


def _make_case(
    flat: _Flat, exact: Exact | None, specs: Sequence[InputSpec], sizes: dict[str, int], seed: int
) -> ModelCase:
    """Random inputs of these sizes, and what PyTorch gives for them."""
    resized = [spec.resized(sizes) for spec in specs]
    values = draw(resized, seed)
    expected = tuple(map(to_array, _run(flat, values, resized).values()))
    name = ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "as given"
    if exact is None:
        return ModelCase(name, values, expected)
    return ModelCase(name, values, expected, exact.run(values), exact.facts)


def _trace(
    flat: _Flat, specs: Sequence[InputSpec], outputs: list[str], opset: int, routed: Sequence[str]
) -> onnx.ModelProto:
    example = draw([spec.resized({BATCH: EXAMPLE_BATCH}) for spec in specs], SEED)
    shapes = (tuple(dict(spec.axes) for spec in specs),) if any(s.axes for s in specs) else None
    names = [spec.name for spec in specs]
    logging.disable(logging.CRITICAL)  # the exporter logs whole graphs before it raises
    try:
        graph = export_graph(flat, example, names, outputs, shapes, opset)
    except Exception as error:
        raise InputError(f"the model can't be exported: {explain(error, specs)}") from error
    finally:
        logging.disable(logging.NOTSET)
    if not count_scan_nodes(graph):
        raise InputError(_no_scan(routed))
    return graph


def _no_scan(routed: Sequence[str]) -> str:
    known = ", ".join(routed) if routed else "none is imported"
    return (
        f"the model holds no selective scan: no known entry point was called ({known}); call "
        "tfanet.plugins.selective_scan in it, or export it with torch.onnx"
    )


def _save(graph: onnx.ModelProto, path: Path) -> None:
    size = graph.ByteSize()
    if size > _LARGEST_FILE:
        raise InputError(
            f"the model takes {size / 1e9:.1f} GB, and one ONNX file holds at most 2.1"
        )
    path.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)


def _named_tensors(result: Any) -> dict[str, Tensor]:
    """All tensors of a model's result by name: its keys, else output, output_0, output_1, ..."""
    if isinstance(result, Tensor):
        return {"output": result}
    items = result.items() if isinstance(result, Mapping) else enumerate(pytree.tree_leaves(result))
    found: dict[str, Tensor] = {}
    for key, value in items:
        name = key if isinstance(key, str) else f"output_{key}"
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for index, leaf in enumerate(leaves):
            found[name if len(leaves) == 1 else f"{name}_{index}"] = leaf
    return found
