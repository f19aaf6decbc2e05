"""tfanet::SelectiveScan and SS2D as plugins of TensorRT 10.9 and newer, in one of two forms.

"aot": a kernel compiled ahead of time, which TensorRT embeds in the engine: neither a library nor
Python is needed to run it. `register` defines it in the process that builds. It has SelectiveScan
only: a fused 2-D scan is its parts there.
"library": libtfanet_trt.so, for trtexec and C++; it must be loaded wherever the engine is. It has
both.

Not for TensorRT-RTX, which has no plugins and whose parser ends the process when a node resolves to
one. Importing this module imports neither TensorRT nor CUDA.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.graph.attach import attach, expand_ss2d, rewrite_file, scan_nodes
from tfanet.plugins.graph.ss2d import is_ss2d, is_whole_ss2d
from tfanet.plugins.kernels import cuda
from tfanet.plugins.kernels.geometry import scan_geometry
from tfanet.plugins.operands import DOMAIN, SELECTIVE_SCAN

__all__ = ["FORMS", "plugin_graph", "register", "rewrite", "write_plugin_graph"]

FORMS = ("aot", "library")
_VERSION = "1"  # of the plugins
# Names of tensorrt.DataType: how `operands` calls the type, and how autotune does.
_TYPES = {
    "FLOAT": ("float32", "FP32"),
    "HALF": ("float16", "FP16"),
    "BF16": ("bfloat16", "BF16"),
}
_registered: dict[str, Any] = {}


def plugin_graph(model: ModelProto, form: str) -> ModelProto:
    """A copy of `model` whose scans TensorRT's ONNX parser hands to the plugin of `form`.

    The local function goes away: the parser takes a function before a plugin of the same name, and
    the flag that turns this round (kENABLE_PLUGIN_OVERRIDE) came after 10.9 and holds for every
    operator. Nodes get the attributes that the parser looks for (plugin_namespace, plugin_version,
    and aot) and optional_inputs, whose bits say that D, delta_bias and z are there: a plugin is
    given inputs by position, so that their number alone could mean D or delta_bias. SS2D nodes stay
    with "library", whose maps may be of any supported type while the weights are float32; where a
    model has SS2DScan nodes, or with "aot", 2-D scans are their parts.

    Raises InputError for an unknown `form`, and as `tfanet.plugins.attach` does.
    """
    if form not in FORMS:
        raise InputError(f"plugin {form!r} is unknown; choose one of {', '.join(FORMS)}")
    scans_2d = [node for node in model.graph.node if is_ss2d(node)]
    fused = form == "library" and all(map(is_whole_ss2d, scans_2d))
    result = attach(model if fused else expand_ss2d(model), "none")
    scans = scan_nodes(result)
    for node in scans:
        given = len(node.input) - SELECTIVE_SCAN.required
        name, value = ("aot", 1) if form == "aot" else ("optional_inputs", (1 << given) - 1)
        node.attribute.append(helper.make_attribute(name, value))
    for node in (*scans, *filter(is_whole_ss2d, result.graph.node)):
        node.attribute.append(helper.make_attribute("plugin_namespace", DOMAIN))
        node.attribute.append(helper.make_attribute("plugin_version", _VERSION))
    return result


def write_plugin_graph(path_in: str | Path, path_out: str | Path, form: str = "library") -> None:
    """Writes `plugin_graph` of one ONNX file to another: what `trtexec --onnx=path_out` takes.

    With "library" it also needs `--dynamicPlugins=libtfanet_trt.so`, at the build and whenever the
    engine is loaded. Raises InputError where `path_in` can't be read, and as `plugin_graph` does.
    """
    rewrite_file(path_in, path_out, lambda model: plugin_graph(model, form))


def rewrite(path_in: str | Path, path_out: str | Path, form: str = "library") -> None:
    """The old name of `write_plugin_graph`."""
    warnings.warn(
        "tfanet.plugins.tensorrt.rewrite is now tfanet.plugins.tensorrt.write_plugin_graph; the "
        "old name goes in tfanet 0.3.0",
        DeprecationWarning,
        stacklevel=2,
    )
    write_plugin_graph(path_in, path_out, form)


def register(inputs: int = len(SELECTIVE_SCAN.operands), *, arch: int | None = None) -> None:
    """Define tfanet::SelectiveScan ahead of time, for networks that this process builds.

    Args:
        inputs: how many of u, delta, A, B, C, D, delta_bias, z a node has: 5 to 8. TensorRT fixes
            the number when a plugin is registered; `plugin_graph` gives all nodes of a model the
            same. arch: compute capability that the kernel is compiled for, 90 is 9.0, newer ones
            included; by default that of this machine's GPU.

    Sequences are float32, float16 or bfloat16, the weights A, D and delta_bias float32 or the same
    type; N is fixed; batch, dim, L and G may be open. A second call with the same arguments does
    nothing.

    Raises:
        InputError: for other `inputs`, a second call that differs, or a process that has loaded
            TensorRT-RTX. MissingDependencyError: without TensorRT 10.9 or newer, or what
            `tfanet.plugins.kernels.cuda` needs.
    """
    least, most = SELECTIVE_SCAN.required, len(SELECTIVE_SCAN.operands)
    if not least <= inputs <= most:
        raise InputError(f"inputs is {inputs}: a scan has {least} to {most}")
    if "tensorrt_rtx" in sys.modules:
        raise InputError(
            "this process has loaded TensorRT-RTX, whose parser ends the process when it meets a "
            "plugin: register in a process of its own"
        )
    asked = {"inputs": inputs, "arch": arch}
    if _registered:
        if _registered != asked:
            raise InputError(
                f"{DOMAIN}::{SELECTIVE_SCAN.op_type} is registered already, with {_registered}: "
                f"use another process for {asked}"
            )
        return
    trtp = _plugin_module()
    plugin_id = f"{DOMAIN}::{SELECTIVE_SCAN.op_type}"
    describe, tune, compile_kernel = _functions(trtp, inputs, arch or _this_machine())
    trtp.register(plugin_id)(describe)
    trtp.autotune(plugin_id)(tune)
    trtp.aot_impl(plugin_id)(compile_kernel)
    _registered.update(asked)


def _plugin_module() -> Any:
    try:
        import tensorrt.plugin as trtp
    except Exception as error:  # the loader raises what the operating system says
        raise MissingDependencyError(
            f"tensorrt.plugin cannot be imported ({str(error).splitlines()[0]}): pip install "
            "tensorrt"
        ) from error
    if not hasattr(trtp, "aot_impl"):
        raise MissingDependencyError(
            "this TensorRT has no plugins that are compiled ahead of time: install 10.9 or newer"
        )
    return trtp


def _this_machine() -> int:
    """The compute capability of GPU 0, or the newest before it that NVRTC knows."""
    here = cuda.compute_capability()
    return max((known for known in cuda.architectures() if known <= here), default=here)


def _functions(trtp: Any, inputs: int, arch: int) -> tuple[Callable[..., Any], ...]:
    """What `tensorrt.plugin` wants: functions with one parameter for each tensor, annotated."""
    names = SELECTIVE_SCAN.inputs[:inputs]
    tensors = [_parameter(name, trtp.TensorDesc) for name in names]
    softplus, tactic = _parameter("delta_softplus", int), _parameter("tactic", int)
    outputs = _parameter("outputs", tuple[trtp.TensorDesc])

    def describe(*operands: Any, delta_softplus: int) -> Any:
        _types_of(operands)
        return operands[0].like()

    def tune(*arguments: Any) -> Any:
        *operands, _ = arguments
        io, weight = _types_of(operands)
        codes = [
            _TYPES[weight if name in SELECTIVE_SCAN.weights else io][1] for name in (*names, "y")
        ]
        return [trtp.AutoTuneCombination(", ".join(codes), "LINEAR")]

    def compile_kernel(*arguments: Any) -> Any:
        *operands, delta_softplus, _, _ = arguments
        return _kernel(trtp, dict(zip(names, operands, strict=True)), bool(delta_softplus), arch)

    kernel = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    signatures: tuple[tuple[Any, list[Parameter], Any], ...] = (
        (describe, [*tensors, softplus], trtp.TensorDesc),
        (tune, [*tensors, outputs], list[trtp.AutoTuneCombination]),
        (compile_kernel, [*tensors, softplus, outputs, tactic], kernel),
    )
    for function, parameters, returned in signatures:
        function.__signature__ = Signature(parameters, return_annotation=returned)
    return describe, tune, compile_kernel


def _parameter(name: str, annotation: Any) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def _types_of(tensors: Any) -> tuple[str, str]:
    """Names of the TensorRT types of sequences and weights."""
    found: dict[bool, str] = {}
    for operand, tensor in zip(SELECTIVE_SCAN.operands, tensors, strict=False):
        kind = tensor.dtype.name
        first = found.setdefault(operand.weight, kind)
        if kind != first or kind not in _TYPES:
            raise InputError(
                f"{SELECTIVE_SCAN.op_type}: {operand.name} is {kind}; sequences must be FLOAT, "
                "HALF or BF16 alike, and so must be A, D and delta_bias"
            )
    return found[False], found[True]


def _kernel(trtp: Any, operands: dict[str, Any], softplus: bool, arch: int) -> Any:
    states = operands["A"].shape_expr[1]
    if not states.is_constant:
        raise InputError(
            f"{SELECTIVE_SCAN.op_type}: N is open; it must be fixed when the engine is built"
        )
    count = states.constant_value()
    io, weight = (_TYPES[kind][0] for kind in _types_of(operands.values()))
    optional = tuple(name for name in SELECTIVE_SCAN.optional if name in operands)
    code, name = cuda.ptx(io, weight, count, optional, softplus, arch)
    batch, dim, length = operands["u"].shape_expr
    groups = operands["B"].shape_expr[1]
    grid, block, shared = scan_geometry(
        batch, dim, length, io, count, number=trtp.ShapeExpr, ceil_div=trtp.cdiv
    )
    launch = trtp.KernelLaunchParams(*grid, *block, shared)
    scalars = trtp.SymIntExprs.from_tuple(
        [trtp.SymInt32(size) for size in (batch, dim, length, groups)]
    )
    return name, code, launch, scalars
