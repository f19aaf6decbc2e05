"""Modules that have moved: their old names still import, with a warning that names the new ones.

The public names are those of `tfanet.plugins`, `tfanet.export`, `tfanet.runtime` and
`tfanet.calibration`, and stay. This is for code that reached past them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "REMOVAL", "RENAMED", "install"]

REMOVAL = "0.3.0"  # the version in which the old names go; a test fails when it is due
# Within tfanet: the old module, and where its names are now.
MOVED = {
    "backbone": "model.tfanet.backbone",
    "bench_worker": "bench.worker",
    "calibration.accuracy": "calibration.accept.accuracy calibration.accept.speed",
    "calibration.bias_correction": "calibration.rewrite.bias_correction",
    "calibration.calibrator": "calibration.measure.calibrator calibration.rewrite.apply",
    "calibration.certificate": "calibration.accept.certificate",
    "calibration.collect": "calibration.graph.session calibration.measure.watch",
    "calibration.guard": "calibration.accept.guard",
    "calibration.layout": "calibration.graph.linear",
    "calibration.observers": "calibration.measure.observers",
    "calibration.placement": "calibration.graph.layers",
    "calibration.qdq": "calibration.rewrite.qdq",
    "calibration.sampler": "calibration.measure.sampler",
    "calibration.sensitivity": "calibration.accept.sensitivity",
    "calibration.smooth": "calibration.rewrite.smooth",
    "calibration.source": "calibration.graph.prepared",
    "calibration.speed": "calibration.accept.speed",
    "calibration.split": "calibration.rewrite.split calibration.measure.splits",
    "cfsm": "model.tfanet.cfsm",
    "checkpoint": "model.checkpoint",
    "config": "model.tfanet.config",
    "cost": "model.cost",
    "evaluate": "evaluation.evaluate",
    "export.bfloat16": "export.user_model.bfloat16",
    "export.bundle_engine": "export.engines.typed export.engines.store",
    "export.diagnosis": "export.user_model.diagnosis",
    "export.engine": "export.engines.build",
    "export.engine_worker": "export.engines.worker",
    "export.factory": "export.user_model.factory",
    "export.input_spec": "export.user_model.inputs",
    "export.leftovers": "runtime.bundle.leftovers",
    "export.loading": "export.user_model.instructions",
    "export.model_onnx": "export.user_model.onnx_file",
    "export.model_parity": "export.user_model.parity",
    "export.onnx_export": "export.trace export.graphs",
    "export.precision": "export.engines.precision",
    "export.ranges": "export.engines.magnitudes",
    "export.refit": "export.engines.refit",
    "export.report": "export.parity.report",
    "export.write": "runtime.bundle.write",
    "losses": "model.tfanet.loss model.layers.losses",
    "memory": "worker",
    "metrics": "evaluation.metrics",
    "mlam": "model.tfanet.mlam",
    "model.backbone": "model.tfanet.backbone",
    "model.cfsm": "model.tfanet.cfsm",
    "model.mlam": "model.tfanet.mlam",
    "model.ss2d": "model.tfanet.ss2d",
    "model.text": "model.tfanet.text",
    "model.wfdm": "model.tfanet.wfdm",
    "plugins.cross_scan": "plugins.pytorch.cross_scan",
    "plugins.cuda": "plugins.kernels.cuda plugins.kernels.geometry",
    "plugins.cuda_ss2d": "plugins.kernels.cuda_ss2d plugins.kernels.geometry",
    "plugins.entry_points": "plugins.compat.entry_points",
    "plugins.function_body": "plugins.graph.attach",
    "plugins.function_nodes": "plugins.graph.bodies plugins.operands",
    "plugins.known_names": "plugins.compat.known_names",
    "plugins.mamba_block": "plugins.compat.mamba_block",
    "plugins.native": "plugins.libraries plugins.kernels.cpu plugins.operands",
    "plugins.onnx_op": "plugins.graph.schemas plugins.graph.translation plugins.operands",
    "plugins.operators": "plugins.pytorch.operators",
    "plugins.reference": "plugins.pytorch.reference",
    "plugins.routing": "plugins.compat.routing",
    "plugins.scan": "plugins.pytorch.selective_scan",
    "plugins.scan2d": "plugins.pytorch.ss2d",
    "plugins.ss2d_nodes": "plugins.graph.ss2d",
    "plugins.standin_import": "plugins.compat.standin_import",
    "plugins.standins": "plugins.compat.standins",
    "plugins.tensorrt_plugin": "plugins.tensorrt",
    "runtime.device": "runtime.backends.device",
    "runtime.engine": "runtime.backends.engine",
    "runtime.integer": "runtime.backends.integer",
    "runtime.manifest": "runtime.bundle.manifest",
    "runtime.onnx_file": "runtime.bundle.onnx_file",
    "runtime.session": "runtime.backends.session",
    "ss2d": "model.tfanet.ss2d",
    "text": "model.tfanet.text",
    "train": "training.train",
    "train_state": "training.state",
    "training.losses": "model.tfanet.loss model.layers.losses",
    "wfdm": "model.tfanet.wfdm",
}
# What has another name there, too: those that callers of public functions need.
RENAMED = {"export.engine.Options": "EngineOptions"}


class _Loader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        old, key = module.__name__, module.__name__.removeprefix("tfanet.")
        homes = MOVED[key].split()

        def attribute(name: str) -> Any:
            new = RENAMED.get(f"{key}.{name}", name)
            if not name.startswith("__"):
                for home in homes:
                    found = import_module(f"tfanet.{home}")
                    if hasattr(found, new):
                        _warn(f"{old}.{name}", f"tfanet.{home}.{new}")
                        return getattr(found, new)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__getattr__ = attribute  # type: ignore[method-assign]


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old name goes in tfanet {REMOVAL}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        prefix, _, name = fullname.partition(".")
        if prefix != "tfanet" or name not in MOVED:
            return None
        return ModuleSpec(fullname, _Loader())


def install() -> None:
    """Lets `import` find the old names, after everything that exists."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
