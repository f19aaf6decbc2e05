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
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins.graph.attach import attach, expand_ss2d, rewrite_file, scan_nodes
from tfanet.plugins.graph.bodies import DOMAIN, INPUTS, OP_TYPE
from tfanet.plugins.graph.ss2d import is_ss2d, is_whole_ss2d

__all__ = ["FORMS", "plugin_graph", "register", "rewrite", "symbolic_geometry"]

FORMS = ("aot", "library")
_VERSION = "1"
_REQUIRED = 5
_WEIGHTS = ("A", "D", "delta_bias")
# Names of tensorrt.DataType: how `kernels.cuda` calls the type, and how autotune does.
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
    maps = [node for node in model.graph.node if is_ss2d(node)]
    fused = form == "library" and all(map(is_whole_ss2d, maps))
    result = attach(model if fused else expand_ss2d(model), "none")
    scans = scan_nodes(result)
    for node in scans:
        given = len(node.input) - _REQUIRED
        name, value = ("aot", 1) if form == "aot" else ("optional_inputs", (1 << given) - 1)
        node.attribute.append(helper.make_attribute(name, value))
    for node in (*scans, *filter(is_whole_ss2d, result.graph.node)):
        node.attribute.append(helper.make_attribute("plugin_namespace", DOMAIN))
        node.attribute.append(helper.make_attribute("plugin_version", _VERSION))
    return result


def rewrite(path_in: str | Path, path_out: str | Path, form: str = "library") -> None:
    """`plugin_graph` from file to file: what `trtexec --onnx=path_out` takes.

    With "library" it also needs `--dynamicPlugins=libtfanet_trt.so`, at the build and whenever the
    engine is loaded. Raises InputError where `path_in` can't be read, and as `plugin_graph` does.
    """
    rewrite_file(path_in, path_out, lambda model: plugin_graph(model, form))


def register(inputs: int = len(INPUTS), *, arch: int | None = None) -> None:
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
    if not _REQUIRED <= inputs <= len(INPUTS):
        raise InputError(f"inputs is {inputs}: a scan has {_REQUIRED} to {len(INPUTS)}")
    if "tensorrt_rtx" in sys.modules:
        raise InputError(
            "this process has loaded TensorRT-RTX, whose parser ends the process when it meets a "
            "plugin: register in a process of its own"
        )
    asked = {"inputs": inputs, "arch": arch}
    if _registered:
        if _registered != asked:
            raise InputError(
                f"{DOMAIN}::{OP_TYPE} is registered already, with {_registered}: use another "
                f"process for {asked}"
            )
        return
    trtp = _plugin_module()
    plugin_id = f"{DOMAIN}::{OP_TYPE}"
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
    from tfanet.plugins.kernels import cuda
    from tfanet.runtime.backends.device import Device

    here = int(Device.open().compute.replace(".", ""))
    return max((known for known in cuda._architectures() if known <= here), default=here)


def _functions(trtp: Any, inputs: int, arch: int) -> tuple[Callable[..., Any], ...]:
    """What `tensorrt.plugin` wants: functions with one parameter for each tensor, annotated."""
    names = INPUTS[:inputs]
    tensors = [_parameter(name, trtp.TensorDesc) for name in names]
    softplus, tactic = _parameter("delta_softplus", int), _parameter("tactic", int)
    outputs = _parameter("outputs", tuple[trtp.TensorDesc])

    def describe(*operands: Any, delta_softplus: int) -> Any:
        _types_of(operands)
        return operands[0].like()

    def tune(*arguments: Any) -> Any:
        *operands, _ = arguments
        io, weight = _types_of(operands)
        codes = [_TYPES[weight if name in _WEIGHTS else io][1] for name in (*names, "y")]
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


def _types_of(operands: Any) -> tuple[str, str]:
    """Names of the TensorRT types of sequences and weights."""
    found: dict[bool, str] = {}
    for name, operand in zip(INPUTS, operands, strict=False):
        kind = operand.dtype.name
        first = found.setdefault(name in _WEIGHTS, kind)
        if kind != first or kind not in _TYPES:
            raise InputError(
                f"{OP_TYPE}: {name} is {kind}; sequences must be FLOAT, HALF or BF16 alike, and "
                "so must be A, D and delta_bias"
            )
    return found[False], found[True]


def _kernel(trtp: Any, operands: dict[str, Any], softplus: bool, arch: int) -> Any:
    from tfanet.plugins.kernels import cuda

    states = operands["A"].shape_expr[1]
    if not states.is_constant:
        raise InputError(f"{OP_TYPE}: N is open; it must be fixed when the engine is built")
    count = states.constant_value()
    io, weight = (_TYPES[kind][0] for kind in _types_of(operands.values()))
    given = {f"has_{name}": name in operands for name in ("D", "z")}
    code, name = cuda.ptx(
        io, weight, count, has_bias="delta_bias" in operands, softplus=softplus, arch=arch, **given
    )
    batch, dim, length = operands["u"].shape_expr
    groups = operands["B"].shape_expr[1]
    grid, block, shared = symbolic_geometry(
        batch, dim, length, io, count, number=trtp.ShapeExpr, ceil_div=trtp.cdiv
    )
    launch = trtp.KernelLaunchParams(*grid, *block, shared)
    scalars = trtp.SymIntExprs.from_tuple(
        [trtp.SymInt32(size) for size in (batch, dim, length, groups)]
    )
    return name, code, launch, scalars


def symbolic_geometry(
    batch: Any,
    dim: Any,
    length: Any,
    io: str,
    states: int,
    *,
    number: Callable[[int], Any],
    ceil_div: Callable[[Any, Any], Any],
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any], int]:
    """`kernels.cuda.launch_geometry` without a branch, for sizes that are expressions.

    Expressions have +, -, *, //, < and ==, where a comparison is 1 or 0; `number` makes one of a
    constant. A loop that doubles a value while a condition holds, and never again once it fails,
    is 1 + [c(1)] + 2 [c(2)] + 4 [c(4)] + ...
    """
    from tfanet.plugins.kernels import cuda

    one = number(1)
    rows = batch * dim
    vector = 4 if io == "float32" else 8
    items = vector if states == 1 else 8
    whole = length == (length // vector) * vector
    steps = length + (one - whole) * (vector - 1)
    lanes = number(32)
    for k in _powers(32, cuda._MAX_LANES):
        lanes = lanes + (rows < -(-cuda._THREADS // k)) * (number(k * items) < steps) * k
    block_rows = one
    for k in _powers(1, cuda._MAX_ROWS):
        fits = lanes < cuda._MAX_LANES // (2 * k) + 1
        block_rows = block_rows + fits * (number(2 * k * cuda._BLOCKS - 1) < rows) * k
    return (ceil_div(rows, block_rows), 1, 1), (lanes, block_rows, 1), 0


def _powers(first: int, limit: int) -> list[int]:
    """first, 2 first, 4 first, ... below `limit`."""
    return [first << i for i in range(limit.bit_length()) if first << i < limit]
