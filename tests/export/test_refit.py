"""Engines whose weights come later, on a stand-in for the library: refitting needs a GPU."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import shutil
import types

import onnx
import pytest
import torch

from tfanet.errors import GateError, InputError
from tfanet.export import export_bundle
from tfanet.export.engines import refit as refit_module
from tfanet.export.engines import store
from tfanet.export.engines.build import EngineOptions, engine_graph
from tfanet.export.engines.refit import refit
from tfanet.export.engines.store import add_engine
from tfanet.export.engines.typed import typed_graphs
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.backends.device import Device
from tfanet.runtime.backends.engine import EngineError, check_record

VERSION = "1.7.1.116"
GPU = Device(0, "8.9", "a stand-in")


class Logger:
    ERROR = 1

    def __init__(self):
        pass


class Library(types.SimpleNamespace):
    """TensorRT with plans that are text: what was built, then the weights' checksum."""

    __version__, ILogger = VERSION, Logger
    SerializationFlag = types.SimpleNamespace(EXCLUDE_WEIGHTS=1, INCLUDE_REFIT=2)

    def __init__(self, refuses: str = ""):
        super().__init__(given=[], flags=[], refuses=refuses)

    def Runtime(self, logger):
        return types.SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan):
        config = types.SimpleNamespace(
            clear_flag=lambda flag: self.flags.append(-flag), set_flag=self.flags.append
        )
        return types.SimpleNamespace(
            create_serialization_config=lambda: config,
            serialize_with_config=lambda config: plan + b" with " + digest(self.given[-1]),
        )

    def Refitter(self, engine, logger):
        return types.SimpleNamespace(refit_cuda_engine=lambda: True, logger=logger)

    def OnnxParserRefitter(self, refitter, logger):
        def refit_from_bytes(model):
            self.given.append(model)
            if self.refuses:
                logger.log(Logger.ERROR, self.refuses)
            return not self.refuses

        return types.SimpleNamespace(refit_from_bytes=refit_from_bytes)


def digest(model: bytes) -> bytes:
    return hashlib.sha256(model).hexdigest().encode()


@pytest.fixture
def library(monkeypatch):
    fake = Library()
    monkeypatch.setattr(refit_module, "load_module", lambda target: fake)
    monkeypatch.setattr(Device, "open", staticmethod(lambda index=0: GPU))
    monkeypatch.setattr(Device, "current", lambda self: contextlib.nullcontext())
    return fake


@pytest.fixture
def built(monkeypatch):
    """The graphs that the builder was given, by file; it writes a line in place of a plan."""
    graphs: dict[str, bytes] = {}

    def build(model, output, **_):
        graphs[output.name] = model.SerializeToString()
        output.write_bytes(b"plan")
        facts = {"layers": 1, "types": {}, "seconds": 1.0, "peak_bytes": 1}
        return {"library": "tensorrt_rtx", "version": VERSION, **facts}

    monkeypatch.setattr(store, "build_engine", build)
    monkeypatch.setattr(store, "load_module", lambda target: None)
    return graphs


@pytest.fixture
def stripped(bundle, built, tmp_path) -> Bundle:
    folder = shutil.copytree(bundle.path, tmp_path / "stripped")
    options = EngineOptions(strip_weights=True)
    return add_engine(
        folder, target="tensorrt-rtx", precision="fp16", options=options, keep=["decoder.*"]
    )


def test_stand_in_has_no_name_of_its_own():
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert hasattr(trt.OnnxParserRefitter, "refit_from_bytes")
    assert hasattr(trt.Refitter, "refit_cuda_engine")
    for name in ("create_serialization_config", "serialize_with_config"):
        assert hasattr(trt.ICudaEngine, name)
    for name in ("clear_flag", "set_flag"):
        assert hasattr(trt.ISerializationConfig, name)
    for name in ("EXCLUDE_WEIGHTS", "INCLUDE_REFIT"):
        assert hasattr(trt.SerializationFlag, name)


def test_a_stripped_engine_gets_the_weights_that_it_was_built_without(stripped, built, library):
    (record,) = stripped.manifest.engines
    with pytest.raises(EngineError, match="holds no weights: fill them in with `tfanet refit"):
        check_record(record, GPU, VERSION)
    assert not record["parity"]["ran"]
    filled = refit(stripped.path, "tensorrt-rtx-fp16")
    (after,) = filled.manifest.engines
    # The very graphs of the build, with the patterns and ranges of then.
    assert library.given == [built["text.engine"], built["image.engine"]]
    for model, name in zip(library.given, ("text.onnx", "image.onnx"), strict=True):
        assert filled.file(after["files"][name]).read_bytes() == b"plan with " + digest(model)
    assert library.flags == [-1, 2] * 2 and after["flags"] == ["REFIT"]
    check_record(after, GPU, VERSION)
    with pytest.raises(InputError, match="rtx-fp16 with weights: give --overwrite"):
        refit(stripped.path, "tensorrt-rtx-fp16")
    Predictor(filled.path, backend="onnxruntime-cpu")  # the bundle is whole


def test_an_engine_gets_the_weights_of_further_training(stripped, model, library, tmp_path):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.dim() > 1:  # vectors of ones and zeros, alike now, are stored once
                parameter.mul_(1.01)
    later = export_bundle(trained, tmp_path / "later")
    filled = refit(later.path, "tensorrt-rtx-fp16", engine_from=stripped.path)
    (record,) = filled.manifest.engines
    assert record["source"]["image.onnx"] == later.manifest.files["image.onnx"]["sha256"]
    old, new = (
        {tensor.name for tensor in onnx.load_from_string(graph).graph.initializer}
        for graph in (stripped_graph(stripped), library.given[1])
    )
    assert old <= new  # weights are matched by name, and none of the engine is left out


def stripped_graph(bundle: Bundle) -> bytes:
    (record,) = bundle.manifest.engines
    graph = typed_graphs(bundle, record)["image.onnx"]
    return engine_graph(graph).SerializeToString()


def test_what_cannot_be_refitted(stripped, bundle, built, library, tmp_path):
    with pytest.raises(InputError, match=r"no engine 'x': it has \['tensorrt-rtx-fp16'\]"):
        refit(stripped.path, "x")
    folder = shutil.copytree(bundle.path, tmp_path / "whole")
    add_engine(folder, target="tensorrt-rtx")
    with pytest.raises(InputError, match="keeps its weights: build it with --refit"):
        refit(folder, "tensorrt-rtx-fp32")
    before = {path.name: path.read_bytes() for path in stripped.path.iterdir()}
    library.refuses = "3 weights are missing\nand more"
    with pytest.raises(GateError, match="cannot be refitted: 3 weights are missing; build the eng"):
        refit(stripped.path, "tensorrt-rtx-fp16")
    assert {path.name: path.read_bytes() for path in stripped.path.iterdir()} == before
