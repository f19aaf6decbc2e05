"""The plugin that is compiled ahead of time, as TensorRT's builder calls it (tensorrt_stub.py).

The kernel itself is tested with `plugins.kernels.cuda`; here is what TensorRT is told of it: types,
shapes, order of parameters, and a launch that holds for every size within a profile.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_scans
import pytest
from onnx import ModelProto

from tfanet.errors import InputError, MissingDependencyError
from tfanet.export.engines.build import EngineOptions, build_engine, engine_graph
from tfanet.moved import REMOVAL
from tfanet.plugins import tensorrt
from tfanet.plugins.graph.attach import attach, scan_nodes
from tfanet.plugins.kernels import cuda
from tfanet.plugins.kernels.geometry import launch_geometry
from tfanet.plugins.tensorrt import plugin_graph, register

HERE = Path(__file__).resolve().parent


def load_stub() -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt_stub", HERE / "tensorrt_stub.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["tensorrt_stub"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tensorrt_stub = load_stub()
DataType, build = tensorrt_stub.DataType, tensorrt_stub.build
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
IO = {"float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16}


@pytest.fixture(params=["stub", "bindings"])
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    real = request.param == "bindings"
    if real and tensorrt_stub.real_plugin_folder() is None:
        pytest.skip("NVIDIA's tensorrt.plugin is not here: pip install tensorrt-cu13-bindings")
    monkeypatch.setattr(tensorrt, "_registered", {})
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with tensorrt_stub.installed(real) as module:
        yield module


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the compiler is asked for, in place of compiling it."""
    calls: list[dict[str, Any]] = []

    def ptx(*arguments: Any) -> tuple[bytes, str]:
        names = ("io", "weight", "states", "optional", "softplus", "arch")
        calls.append(dict(zip(names, arguments, strict=True)))
        return b"// PTX", "kernel"

    monkeypatch.setattr(cuda, "ptx", ptx)
    return calls


def shapes(inputs: int, states: int | str, **sizes: int) -> list[list[int | str]]:
    """Of the inputs; sizes that are not given are open."""
    batch, dim, length, groups = (sizes.get(n, n) for n in ("batch", "dim", "length", "groups"))
    sequence, shared = [batch, dim, length], [batch, groups, states, length]
    all_of_them = [sequence, sequence, [dim, states], shared, shared, [dim], [dim], sequence]
    return [list(shape) for shape in all_of_them[:inputs]]


def types(inputs: int, io: Any, weight: Any) -> list[Any]:
    return [weight if n in ("A", "D", "delta_bias") else io for n in NAMES[:inputs]]


@pytest.mark.parametrize("inputs", [5, 6, 7, 8])
@pytest.mark.parametrize(("io", "weight"), [("float32", "float32"), ("float16", "float32"),
                                            ("float16", "float16"), ("bfloat16", "float32"),
                                            ("bfloat16", "bfloat16")])  # fmt: skip
@pytest.mark.parametrize("states", [1, 16])
def test_what_tensorrt_is_told(
    trt: ModuleType, asked: list[Any], inputs: int, io: str, weight: str, states: int
) -> None:
    register(inputs, arch=90)
    kinds, softplus = types(inputs, IO[io], IO[weight]), inputs % 2
    built = build(trt, kinds, shapes(inputs, states), softplus)
    assert built.y_type == IO[io]
    assert built.types == [*kinds, IO[io]]
    assert (built.name, built.ptx) == ("kernel", b"// PTX")
    assert asked == [
        {
            "io": io,
            "weight": weight,
            "states": states,
            "optional": NAMES[5:inputs],
            "softplus": bool(softplus),
            "arch": 90,
        }
    ]
    rng = random.Random(inputs * states)
    lengths = (1, 3, 4, 31, 32, 33, 225, 900, 3600, 14400, 100_003)
    rows = itertools.product((1, 2, 3, 8, 64), (1, 96, 384, 1023, 1024, 8192), lengths)
    random_rows = ((rng.randint(1, 9), rng.randint(1, 9000), rng.randint(1, 9000))
                   for _ in range(500))  # fmt: skip
    for batch, dim, length in (*rows, *random_rows):
        sizes = {"batch": batch, "dim": dim, "length": length, "groups": 7}
        grid, block, shared = launch_geometry(batch, dim, length, io, states)
        assert [v.at(sizes) for v in built.launch] == [*grid, *block, shared], sizes
        assert [v.at(sizes) for v in built.scalars] == [batch, dim, length, 7]
        assert [v.at(sizes) for v in built.y_shape] == [batch, dim, length]


def test_fixed_sizes_give_constants(trt: ModuleType, asked: list[Any]) -> None:
    register(8, arch=75)
    sizes = {"batch": 2, "dim": 384, "length": 900, "groups": 4}
    built = build(trt, types(8, DataType.HALF, DataType.FLOAT), shapes(8, 1, **sizes), 1)
    grid, block, shared = launch_geometry(2, 384, 900, "float16", 1)
    assert all(v.is_constant() for v in (*built.launch, *built.scalars, *built.y_shape))
    assert [v.at({}) for v in built.launch] == [*grid, *block, shared]
    assert asked[0]["arch"] == 75


@pytest.mark.parametrize("inputs", [5, 7, 8])
def test_the_kernel_takes_what_tensorrt_passes(trt: ModuleType, inputs: int) -> None:
    """Pointers to the inputs, the four sizes, the pointer to y: the parameters of the PTX."""
    try:
        cuda.ptx("float16", "float32", 1, ("D", "delta_bias"), True, 80)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    register(inputs, arch=80)
    built = build(trt, types(inputs, DataType.HALF, DataType.FLOAT), shapes(inputs, 2), 1)
    text = built.ptx.decode()
    entries = re.findall(r"\.entry (\w+)\((.*?)\)", text, re.DOTALL)
    assert [name for name, _ in entries] == [built.name]
    sizes = re.findall(r"\.param \.([us]\d+)", entries[0][1])
    assert sizes == ["u64"] * inputs + ["u32"] * len(built.scalars) + ["u64"]
    assert ".target sm_80" in text


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([DataType.FLOAT, DataType.HALF, *[DataType.FLOAT] * 3], "delta is HALF"),
        ([*[DataType.FLOAT] * 4, DataType.BF16], "C is BF16"),
        ([DataType.INT8] * 5, "u is INT8"),
        ([*types(5, DataType.FLOAT, DataType.FLOAT), DataType.HALF], "D is HALF"),
        (types(5, DataType.FLOAT, DataType.HALF), "A is float16, expected float32"),
    ],
)
def test_types_that_no_kernel_takes(trt: ModuleType, kinds: list[Any], words: str) -> None:
    register(len(kinds), arch=80)
    with pytest.raises(InputError, match=words):
        build(trt, kinds, shapes(len(kinds), 1), 0)


def test_n_must_be_fixed(trt: ModuleType, asked: list[Any]) -> None:
    register(5, arch=80)
    with pytest.raises(InputError, match="N is open"):
        build(trt, types(5, DataType.FLOAT, DataType.FLOAT), shapes(5, "states"), 0)
    assert not asked


def test_register_refuses(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (4, 9):
        with pytest.raises(InputError, match=f"inputs is {wrong}"):
            register(wrong, arch=80)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", ModuleType("tensorrt_rtx"))
    with pytest.raises(InputError, match=r"TensorRT-RTX.*process of its own"):
        register(8, arch=80)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    register(8, arch=80)
    register(8, arch=80)  # once more is nothing new
    with pytest.raises(InputError, match="registered already"):
        register(7, arch=80)


def test_register_without_tensorrt(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trt.plugin, "aot_impl")
    with pytest.raises(MissingDependencyError, match=r"install 10\.9 or newer"):
        register(8, arch=80)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorrt"):
        register(8, arch=80)


def test_the_machines_gpu_is_the_default(
    trt: ModuleType, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "compute_capability", lambda: 125)
    monkeypatch.setattr(cuda, "architectures", lambda: (75, 80, 90, 120, 130))
    register(5)
    build(trt, types(5, DataType.FLOAT, DataType.FLOAT), shapes(5, 1), 0)
    assert asked[0]["arch"] == 120


# --- The graph that carries the node --------------------------------------------------------------


@pytest.mark.parametrize(
    "optional", [(), ("D",), ("delta_bias",), ("z",), ("D", "z"), ("D", "delta_bias", "z")]
)
@pytest.mark.parametrize("form", ["aot", "library"])
def test_plugin_graph(optional: tuple[str, ...], form: str) -> None:
    scan = onnx_scans.Scan(optional=optional)
    model = attach(onnx_scans.chain(scan, scan).model, "sequential")
    before = model.SerializeToString()
    graph = plugin_graph(model, form)
    assert model.SerializeToString() == before
    assert not graph.functions
    nodes = scan_nodes(graph)
    assert len(nodes) == 2
    for node in nodes:
        assert all(node.input)
        attributes = {a.name: a.s.decode() if a.s else a.i for a in node.attribute}
        expected: dict[str, Any] = {
            "delta_softplus": 1, "plugin_namespace": "tfanet", "plugin_version": "1"
        }  # fmt: skip
        if form == "aot":
            expected["aot"] = 1
        else:
            expected["optional_inputs"] = {5: 0, 6: 1, 7: 3, 8: 7}[len(node.input)]
        assert attributes == expected
    # Without the attributes the nodes compute the same.
    for node in nodes:
        kept = [a for a in node.attribute if a.name == "delta_softplus"]
        del node.attribute[:]
        node.attribute.extend(kept)
    chain = onnx_scans.chain(scan, scan)
    result = onnx_scans.run(attach(graph, "sequential"), chain.feeds)
    assert onnx_scans.error(result, chain.expected) < 2e-6


def test_plugin_graph_from_file_to_file(tmp_path: Path) -> None:
    model = onnx_scans.chain(onnx_scans.Scan(optional=("D",))).model
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(attach(model, "sequential"), source)
    tensorrt.write_plugin_graph(source, target)
    assert onnx.load(target) == plugin_graph(model, "library")
    target.unlink()
    new = r"tfanet\.plugins\.tensorrt\.write_plugin_graph"
    # The version stands in tfanet.moved, which plugins do not import.
    with pytest.warns(DeprecationWarning, match=rf"is now {new}; .* tfanet {re.escape(REMOVAL)}$"):
        tensorrt.rewrite(source, target)
    assert onnx.load(target) == plugin_graph(model, "library")
    source.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"in\.onnx can't be read"):
        tensorrt.write_plugin_graph(source, tmp_path / "other.onnx", "aot")
    assert {path.name for path in tmp_path.iterdir()} == {"in.onnx", "out.onnx"}


def test_plugin_graph_refuses_an_unknown_form() -> None:
    with pytest.raises(InputError, match="choose one of aot, library"):
        plugin_graph(onnx_scans.chain(onnx_scans.Scan()).model, "jit")


# --- A build, in its child process, with a TensorRT that is a stand-in ----------------------------

TENSORRT = """
import json, sys
import onnx, tensorrt_stub

_module = tensorrt_stub._base()
globals().update({k: v for k, v in vars(_module).items() if not k.startswith("__")})
__version__, __path__ = "11.1.0", []
plugin = tensorrt_stub._surface()
sys.modules["tensorrt.plugin"] = plugin
loaded, refuses = [], False
Registry = type(get_plugin_registry())
def load_library(self, path):
    loaded.append(path)
    return None if refuses else path
Registry.load_library = load_library
Registry.get_creator = lambda self, *names: None
class ILogger: pass
class IProgressMonitor: pass
class Named:
    def __init__(self, **values): self.__dict__.update(values)
class Severity: INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
ILogger.Severity = Severity
ILogger.__init__ = lambda self: None
class NetworkDefinitionCreationFlag: STRONGLY_TYPED = 1
class BuilderFlag: TF32 = 7
class Network:
    num_layers, num_inputs = 0, 1
    def get_input(self, i): return Named(name="u", shape=(-1, 8, 40))
class OnnxParser:
    def __init__(self, network, logger): self.network, self.errors = network, []
    num_errors = property(lambda self: len(self.errors))
    def get_error(self, i): return self.errors[i]
    def parse(self, content):
        model = onnx.load_from_string(content)
        for node in model.graph.node:
            if node.domain != "tfanet": continue
            values = {a.name: a.s.decode() if a.s else a.i for a in node.attribute}
            name = values["plugin_namespace"] + "::" + node.op_type
            if values.get("aot"):
                found = name in plugin.stub.defined
                found = found and len(plugin.stub.defined[name].names) == len(node.input) + 1
            else:
                found = bool(loaded)
            if not found:
                self.errors.append(Named(node_name=lambda: node.name, node=lambda: 0,
                    node_operator=lambda: node.op_type, desc=lambda: "Plugin not found"))
            self.network.nodes = getattr(self.network, "nodes", []) + [values]
        return not self.errors
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return Network()
    def create_builder_config(self):
        return Named(add_optimization_profile=lambda p: None, clear_flag=lambda f: None)
    def create_optimization_profile(self): return Named(set_shape=lambda *shapes: None)
    def build_serialized_network(self, network, config):
        told = {"nodes": network.nodes, "loaded": loaded, "defined": list(plugin.stub.defined)}
        return json.dumps(told).encode()
"""


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TENSORRT)
    (package.parent / "sitecustomize.py").write_text(
        "from tfanet.plugins.kernels import cuda\n"
        "cuda.architectures = lambda: (75, 80, 90)\n"
        "cuda.compute_capability = lambda: 80\n"
    )
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.syspath_prepend(package.parent)
    return package


def plugin_library(folder: Path, major: int) -> Path:
    """A library that says which TensorRT it is for."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    library = folder / f"libtfanet_trt_{major}.so"
    source = f"int tfanet_tensorrt_major(void) {{ return {major}; }}"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    return library


def scans() -> ModelProto:
    scan = onnx_scans.Scan(optional=("D", "delta_bias"))
    return onnx_scans.chain(scan, scan, dynamic=("batch",)).model


@pytest.mark.parametrize("form", ["aot", "library"])
def test_build_with_a_plugin(
    fake_tensorrt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    library = plugin_library(tmp_path, 11)
    monkeypatch.setattr("tfanet.export.engines.build.trt_library_path", lambda: library)
    graph = engine_graph(scans(), form)
    facts = build_engine(
        graph, tmp_path / "plan", target="tensorrt", options=EngineOptions(plugin=form)
    )
    assert (facts["library"], facts["version"]) == ("tensorrt", "11.1.0")
    told = json.loads((tmp_path / "plan").read_bytes())
    assert len(told["nodes"]) == 2
    assert told["loaded"] == ([str(library)] if form == "library" else [])
    assert told["defined"] == (["tfanet::SelectiveScan"] if form == "aot" else [])


def test_build_without_what_the_plugin_needs(
    fake_tensorrt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def options(form: str) -> dict[str, Any]:
        return {
            "output": tmp_path / "plan",
            "target": "tensorrt",
            "options": EngineOptions(plugin=form),
        }

    aot, library = (engine_graph(scans(), form) for form in ("aot", "library"))
    missing = tmp_path / "nowhere" / "libtfanet_trt.so"
    older, newer = plugin_library(tmp_path, 10), plugin_library(tmp_path, 11)
    monkeypatch.setattr("tfanet.plugins.libraries._FOLDER", missing.parent)
    with pytest.raises(MissingDependencyError, match=r"libtfanet_trt\.so has not been built"):
        build_engine(library, **options("library"))
    for path, words in ((missing, "cannot be loaded"), (older, r"for TensorRT 10, here is 11\.1")):
        monkeypatch.setattr("tfanet.export.engines.build.trt_library_path", lambda path=path: path)
        with pytest.raises(InputError, match=words):
            build_engine(library, **options("library"))
    monkeypatch.setattr("tfanet.export.engines.build.trt_library_path", lambda: newer)
    (fake_tensorrt / "__init__.py").write_text(TENSORRT + "refuses = True\n")
    with pytest.raises(InputError, match=r"refused by tensorrt.*TENSORRT_ROOT"):
        build_engine(library, **options("library"))
    (fake_tensorrt.parent / "sitecustomize.py").write_text("")  # the machine's own GPU, or none
    (fake_tensorrt / "__init__.py").write_text(
        TENSORRT + "\nfor name in ('register', 'aot_impl'): delattr(plugin, name)\n"
    )
    with pytest.raises(MissingDependencyError, match="compiled ahead of time"):
        build_engine(aot, **options("aot"))
    with pytest.raises(InputError, match=r"'.*' .SelectiveScan.: Plugin not found"):
        build_engine(library, output=tmp_path / "plan", target="tensorrt")
    assert not list(tmp_path.glob("plan*"))


def test_options_that_do_not_go_together(fake_tensorrt: Path, tmp_path: Path) -> None:
    graph = engine_graph(scans(), "aot")
    with pytest.raises(InputError, match="tensorrt-rtx has no plugins"):
        build_engine(
            graph, tmp_path / "plan", target="tensorrt-rtx", options=EngineOptions(plugin="aot")
        )
    with pytest.raises(InputError, match="plugin is 'jit': choose one of aot, library"):
        build_engine(
            graph, tmp_path / "plan", target="tensorrt", options=EngineOptions(plugin="jit")
        )
