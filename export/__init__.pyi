from .bundle import export_bundle as export_bundle
from .engines.build import EngineOptions as EngineOptions
from .engines.build import Profile as Profile
from .engines.build import build_engine as build_engine
from .engines.build import engine_graph as engine_graph
from .engines.precision import cast_graph as cast_graph
from .user_model.onnx_file import export_onnx as export_onnx
