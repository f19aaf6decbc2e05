"""The modules `tensorrt` and `tensorrt.plugin` as far as plugins compiled ahead of time need them.

TensorRT's own libraries are not on every machine. Here its enumerations and expressions of sizes
are stood in for; `tensorrt.plugin` is the real one where the package `tensorrt_bindings` is
installed (its Python files need no library), else a small copy of its documented surface. `build`
makes the calls that TensorRT makes when it builds an engine, in its order.
"""

from __future__ import annotations

import enum
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args, get_origin

import numpy as np

PLUGIN = "tfanet::SelectiveScan"


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT8, INT32, FP8 = range(6)


class TensorFormat(enum.Enum):
    LINEAR, CHW2, HWC = range(3)


class DimensionOperation(enum.Enum):
    SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = range(9)


_COMPUTE: dict[DimensionOperation, Callable[[int, int], int]] = {
    DimensionOperation.SUM: lambda a, b: a + b,
    DimensionOperation.PROD: lambda a, b: a * b,
    DimensionOperation.MAX: max,
    DimensionOperation.MIN: min,
    DimensionOperation.SUB: lambda a, b: a - b,
    DimensionOperation.EQUAL: lambda a, b: int(a == b),
    DimensionOperation.LESS: lambda a, b: int(a < b),
    DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class IDimensionExpr:
    """A constant, a named size that is not known yet, or an operation on two expressions."""

    def __init__(self, value: int | str | tuple[DimensionOperation, Any, Any]) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        assert isinstance(self.value, int), "not a constant"
        return self.value

    def at(self, sizes: Mapping[str, int]) -> int:
        if isinstance(self.value, int):
            return self.value
        if isinstance(self.value, str):
            return sizes[self.value]
        operation, first, second = self.value
        return _COMPUTE[operation](first.at(sizes), second.at(sizes))


class IExprBuilder:
    """Folds what is constant, as TensorRT does."""

    def constant(self, value: int) -> IDimensionExpr:
        assert value >= 0, "TensorRT takes -1 for an open size"
        return IDimensionExpr(value)

    def operation(self, operation: DimensionOperation, first: Any, second: Any) -> IDimensionExpr:
        if first.is_constant() and second.is_constant():
            return IDimensionExpr(_COMPUTE[operation](first.value, second.value))
        return IDimensionExpr((operation, first, second))


class _Registry:
    def __init__(self) -> None:
        self.creators: dict[str, Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[f"{namespace}::{creator.name}"] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert version == "1"
        return self.creators[f"{namespace}::{name}"]


class _Logger:
    WARNING = 2

    def log(self, severity: int, text: str) -> None:
        pass


class _List(list[Any]):
    """DimsExprs(n), and n symbolic arguments of a kernel."""

    nbSymExprs = 0

    def __init__(self, values: Any = ()) -> None:
        super().__init__([None] * values if isinstance(values, int) else values)


def _enumeration(*names: str) -> type[enum.Enum]:
    return enum.Enum("Enumeration", names)  # type: ignore[return-value]


def _base() -> ModuleType:
    trt = ModuleType("tensorrt")
    registry = _Registry()
    empty = (
        "IPluginV3 IPluginV3QuickCore IPluginV3QuickBuild IPluginV3QuickAOTBuild "
        "IPluginV3QuickRuntime IPluginCreatorV3Quick ISymExpr ITensor"
    )
    fields = "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 INT64 CHAR UNKNOWN"
    trt.__dict__.update(
        {name: type(name, (), {}) for name in empty.split()},
        __path__=[],
        __version__="11.1.0",
        DataType=DataType,
        float32=DataType.FLOAT,
        int32=DataType.INT32,
        TensorFormat=TensorFormat,
        DimensionOperation=DimensionOperation,
        IDimensionExpr=IDimensionExpr,
        IExprBuilder=IExprBuilder,
        Logger=_Logger,
        DimsExprs=_List,
        Dims=type("Dims", (tuple,), {"MAX_DIMS": 8}),
        PluginTensorDesc=type("PluginTensorDesc", (SimpleNamespace,), {}),
        DynamicPluginTensorDesc=type("DynamicPluginTensorDesc", (SimpleNamespace,), {}),
        PluginField=lambda name, data, kind: SimpleNamespace(name=name, data=data, type=kind),
        PluginFieldCollection=list,
        PluginFieldType=_enumeration(*fields.split()),
        PluginArgType=_enumeration("INT"),
        PluginArgDataType=_enumeration("INT8", "INT16", "INT32"),
        QuickPluginCreationRequest=_enumeration(
            "UNKNOWN", "PREFER_JIT", "PREFER_AOT", "STRICT_JIT", "STRICT_AOT"
        ),
        TensorRTPhase=_enumeration("BUILD", "RUNTIME"),
        get_plugin_registry=lambda: registry,
    )
    return trt


# --- The documented surface of tensorrt.plugin --------------------------------------------------


class SymInt32:
    """A symbolic 32-bit integer; the builder is set while TensorRT asks for shapes or kernels."""

    builder: IExprBuilder | None = None

    def __init__(self, value: Any = None) -> None:
        if isinstance(value, int) and SymInt32.builder is not None:
            value = SymInt32.builder.constant(value)
        self.expr = value.expr if isinstance(value, SymInt32) else value

    def _operation(self, operation: DimensionOperation, other: Any) -> Any:
        if SymInt32.builder is None:
            return type(self)()  # outside of a shape calculation nothing is known
        other = other if isinstance(other, SymInt32) else SymInt32(other)
        return type(self)(SymInt32.builder.operation(operation, self.expr, other.expr))

    def __add__(self, other: Any) -> Any:
        return self._operation(DimensionOperation.SUM, other)

    def __sub__(self, other: Any) -> Any:
        return self._operation(DimensionOperation.SUB, other)

    def __mul__(self, other: Any) -> Any:
        return self._operation(DimensionOperation.PROD, other)

    def __floordiv__(self, other: Any) -> Any:
        return self._operation(DimensionOperation.FLOOR_DIV, other)

    def __eq__(self, other: object) -> Any:
        return self._operation(DimensionOperation.EQUAL, other)

    def __lt__(self, other: Any) -> Any:
        return self._operation(DimensionOperation.LESS, other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_constant(self) -> bool:
        return self.expr.is_constant()

    def constant_value(self) -> int:
        return self.expr.get_constant_value()


class ShapeExpr(SymInt32):
    """The size of one dimension."""


class SymIntExprs(_List):
    @classmethod
    def from_tuple(cls, values: Any) -> SymIntExprs:
        return cls([v if isinstance(v, SymInt32) else SymInt32(v) for v in values])


class TensorDesc:
    def __init__(self, dtype: Any, shape_expr: list[ShapeExpr]) -> None:
        self.dtype, self.shape_expr = dtype, shape_expr

    def like(self) -> TensorDesc:
        return TensorDesc(self.dtype, list(self.shape_expr))


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self, *values: Any) -> None:
        for name, value in zip(self.NAMES, values, strict=True):
            setattr(self, name, SymInt32(value))


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str) -> None:
        self.io_types, self.layouts = io_types.split(", "), layouts


@dataclass
class _Defined:
    names: list[str] = field(default_factory=list)
    describe: Any = None
    tune: Any = None
    aot: Any = None


class _Plugins:
    """The decorators, with the checks of signatures that TensorRT documents."""

    def __init__(self) -> None:
        self.defined: dict[str, _Defined] = {}

    def register(self, plugin: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            if plugin in self.defined:
                raise ValueError(f"there is a definition of {plugin}")
            signature = inspect.signature(function)
            kinds = [p.annotation for p in signature.parameters.values()]
            assert kinds == [TensorDesc] * (len(kinds) - 1) + [int]
            assert all(p.default is p.empty for p in signature.parameters.values())
            assert signature.return_annotation is TensorDesc
            self.defined[plugin] = _Defined(list(signature.parameters), function)
            return function

        return decorate

    def autotune(self, plugin: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            signature, known = inspect.signature(function), self.defined[plugin]
            assert list(signature.parameters) == [*known.names[:-1], "outputs"]
            assert get_origin(signature.return_annotation) is list
            assert get_args(signature.return_annotation) == (AutoTuneCombination,)
            known.tune = function
            return function

        return decorate

    def aot_impl(self, plugin: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            signature, known = inspect.signature(function), self.defined[plugin]
            assert list(signature.parameters) == [*known.names, "outputs", "tactic"]
            kinds = get_args(signature.return_annotation)
            assert [set(get_args(k)) for k in kinds[:2]] == [{str, bytes}, {str, bytes}]
            assert kinds[2:] == (KernelLaunchParams, SymIntExprs)
            known.aot = function
            return function

        return decorate


def _surface() -> ModuleType:
    plugin = ModuleType("tensorrt.plugin")
    plugins = _Plugins()
    plugin.__dict__.update(
        stub=plugins,
        register=plugins.register,
        autotune=plugins.autotune,
        aot_impl=plugins.aot_impl,
        TensorDesc=TensorDesc,
        ShapeExpr=ShapeExpr,
        SymInt32=SymInt32,
        SymIntExprs=SymIntExprs,
        KernelLaunchParams=KernelLaunchParams,
        AutoTuneCombination=AutoTuneCombination,
        cdiv=lambda first, second: first._operation(DimensionOperation.CEIL_DIV, second),
    )
    return plugin


def _real(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tensorrt.plugin"] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # invalid escapes in its comments
        spec.loader.exec_module(module)
    return module


def real_plugin_folder() -> Path | None:
    """Where NVIDIA's `tensorrt.plugin` is installed, None where it is not."""
    spec = importlib.util.find_spec("tensorrt_bindings")  # finds, does not load
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((p for place in places if (p := Path(place) / "plugin").is_dir()), None)


@contextmanager
def installed(real: bool) -> Iterator[ModuleType]:
    """`import tensorrt.plugin` gives the stand-in, or the real module over stood-in libraries."""
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "tensorrt"}
    for name in before:
        del sys.modules[name]
    trt = sys.modules["tensorrt"] = _base()
    try:
        folder = real_plugin_folder() if real else None
        trt.plugin = _real(folder) if folder else _surface()  # type: ignore[attr-defined]
        sys.modules["tensorrt.plugin"] = trt.plugin  # type: ignore[attr-defined]
        yield trt
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "tensorrt"]:
            del sys.modules[name]
        sys.modules.update(before)


@dataclass(frozen=True)
class Built:
    """What TensorRT keeps of a plugin: types of a combination, y, and the kernel."""

    types: list[DataType]
    y_type: DataType
    y_shape: list[IDimensionExpr]
    name: str
    ptx: bytes
    launch: list[IDimensionExpr]
    scalars: list[IDimensionExpr]


def build(
    trt: ModuleType, types: list[DataType], shapes: list[list[int | str]], softplus: int
) -> Built:
    """The calls of an engine's build; a size is a number or the name of an open one."""
    exprs = [[IDimensionExpr(size) for size in shape] for shape in shapes]
    if hasattr(trt.plugin, "stub"):
        return _build_stub(trt.plugin.stub.defined[PLUGIN], types, exprs, softplus)
    return _build_real(trt, types, exprs, softplus)


def _build_stub(defined: _Defined, types: Any, exprs: Any, softplus: int) -> Built:
    unknown = [TensorDesc(t, [ShapeExpr() for _ in e]) for t, e in zip(types, exprs, strict=True)]
    y_type = defined.describe(*unknown, delta_softplus=softplus).dtype
    SymInt32.builder = IExprBuilder()
    try:
        tensors = [
            TensorDesc(t, [ShapeExpr(v) for v in e]) for t, e in zip(types, exprs, strict=True)
        ]
        y = defined.describe(*tensors, delta_softplus=softplus)
        (combination,) = defined.tune(*tensors, (y,))
        codes = {"FP32": DataType.FLOAT, "FP16": DataType.HALF, "BF16": DataType.BF16}
        name, ptx, launch, scalars = defined.aot(*tensors, softplus, (y,), 0)
    finally:
        SymInt32.builder = None
    assert combination.layouts == "LINEAR"
    return Built(
        [codes[c] for c in combination.io_types],
        y_type,
        [v.expr for v in y.shape_expr],
        name,
        ptx,
        [getattr(launch, n).expr for n in KernelLaunchParams.NAMES],
        [v.expr for v in scalars],
    )


def _build_real(trt: Any, types: Any, exprs: Any, softplus: int) -> Built:
    creator = trt.get_plugin_registry().get_creator("SelectiveScan", "1", "tfanet")
    attribute = trt.PluginField(
        "delta_softplus", np.array([softplus], np.int32), trt.PluginFieldType.INT32
    )
    plugin = creator.create_plugin(
        "SelectiveScan",
        "tfanet",
        [attribute],
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    builder, count = IExprBuilder(), len(types)
    (y_type,) = plugin.get_output_data_types(types, [len(e) for e in exprs])
    (y_shape,) = plugin.get_output_shapes([_List(e) for e in exprs], [], builder)

    def tensor(kind: DataType, expressions: Any) -> Any:
        dims = trt.Dims(e.value if isinstance(e.value, int) else -1 for e in expressions)
        linear = TensorFormat.LINEAR
        return trt.DynamicPluginTensorDesc(
            desc=trt.PluginTensorDesc(dims=dims, type=kind, format=linear, scale=1.0)
        )

    tensors = [tensor(t, e) for t, e in zip([*types, y_type], [*exprs, y_shape], strict=True)]
    offered = plugin.get_supported_format_combinations(tensors, count)
    assert all(d.format == TensorFormat.LINEAR for d in offered)
    plugin.configure_plugin(tensors[:count], tensors[count:])
    assert plugin.get_valid_tactics() == []
    plugin.set_tactic(0)
    launch, scalars = SimpleNamespace(), _List(4)
    plugin.get_launch_params(exprs, tensors, count, launch, scalars, builder)
    assert scalars.nbSymExprs == len(scalars)
    name, ptx = plugin.clone().get_kernel(
        [t.desc for t in tensors[:count]], [t.desc for t in tensors[count:]]
    )
    return Built(
        [d.type for d in offered],
        y_type,
        list(y_shape),
        name,
        ptx,
        [getattr(launch, n).expr for n in KernelLaunchParams.NAMES],
        [s.expr for s in scalars],
    )
