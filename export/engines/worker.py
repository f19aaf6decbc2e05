"""The child process of `build_engine`: one job in, JSON lines out, one engine file written.

Runs as `python -m tfanet.export.engines.worker JOB`. Lines are {"phase", "step", "steps"} while it
works, then {"facts"} or {"error", "kind"}; kind "input" is the model's or the user's fault, kind
"missing" the machine's.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tfanet.errors import MissingDependencyError, TfanetError
from tfanet.runtime.backends.engine import load_plugin_library, make_logger
from tfanet.worker import peak_bytes, worker_job


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class _Refused(Exception):
    """The parser's or builder's own words on why not."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def _make_monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Reports the outermost phases, and the position in the whole build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            # Depth, steps done, steps; the part of the whole build that it is: start, size.
            self.phases: dict[str, tuple[int, int, int, float, float]] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            depth, done, count, start, size = self.phases.get(parent or "", (-1, 0, 1, 0.0, 1.0))
            part = size / max(count, 1)
            self.phases[phase] = (depth + 1, 0, steps, start + done * part, part)
            self.tell(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.phases:
                depth, _, steps, start, size = self.phases[phase]
                self.phases[phase] = (depth, step + 1, steps, start, size)
                self.tell(phase)
            return True

        def tell(self, phase: str) -> None:
            depth, done, steps, start, size = self.phases[phase]
            if depth < 2:
                position = start + size * done / max(steps, 1)
                _say(phase=phase, step=done, steps=steps, position=position)

        def phase_finish(self, phase: str) -> None:
            self.phases.pop(phase, None)

    return Monitor()


def _prepare_plugin(trt: Any, plugin: dict[str, Any]) -> None:
    if plugin["form"] == "library":
        load_plugin_library(trt, Path(plugin["path"]))
        return
    from tfanet.plugins.tensorrt import register

    register(plugin["inputs"])


def _parse(trt: Any, network: Any, logger: Any, path: str) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(Path(path).read_bytes()):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = []
    for error in errors[:3]:
        node = error.node_name() or f"number {error.node()}"
        told.append(f"node '{node}' ({error.node_operator()}): {error.desc().splitlines()[0]}")
    raise _Refused(f"{trt.__name__} cannot parse the model: {'; '.join(told)}", "input")


def _add_profile(builder: Any, network: Any, config: Any, sizes: dict[str, int]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shape = tuple(value.shape)
        fixed = [axis for axis, size in enumerate(shape) if size < 0 and axis > 0]
        if fixed:
            raise _Refused(
                f"input '{value.name}' has the open axis {fixed[0]}: only the batch may be open",
                "input",
            )
        if shape[0] < 0:
            shapes = [(sizes[name], *shape[1:]) for name in ("min", "opt", "max")]
            profile.set_shape(value.name, *shapes)
        elif not sizes["min"] <= shape[0] <= sizes["max"]:
            raise _Refused(
                f"input '{value.name}' has the fixed batch {shape[0]}, outside the profile "
                f"{sizes['min']} to {sizes['max']}: export with an open batch",
                "input",
            )
    config.add_optimization_profile(profile)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    trt = importlib.import_module(job["module"])
    logger = make_logger(trt, sys.stderr)
    if job["plugin"]:
        _prepare_plugin(trt, job["plugin"])
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, job["onnx"])
    config = builder.create_builder_config()
    config.progress_monitor = _make_monitor(trt)
    _add_profile(builder, network, config, job["profile"])
    for flag in job["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if "TF32" not in job["flags"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if job["level"] is not None:
        config.builder_optimization_level = job["level"]
    if job["hardware"]:
        level = {"ampere-plus": "AMPERE_PLUS", "same-compute": "SAME_COMPUTE_CAPABILITY"}
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, level[job["hardware"]]
        )
    if job["inspect"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job["compute"]:
        config.num_compute_capabilities = len(job["compute"])
        for index, capability in enumerate(job["compute"]):
            name = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    cache = Path(job["timing_cache"]) if job["timing_cache"] else None
    if cache is not None:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = "; ".join(logger.errors[-2:]) or "no reason given"
        raise _Refused(f"{trt.__name__} cannot build the engine: {why}", "build")
    Path(job["output"]).write_bytes(plan)
    if job["inspect"]:
        _inspect(trt, logger, bytes(plan), Path(job["inspect"]) / f"{job['name']}.json")
    if cache is not None:
        cache.write_bytes(config.get_timing_cache().serialize())
    return {
        "library": trt.__name__,
        "version": trt.__version__,
        "layers": network.num_layers,
        "types": _types(network),
        "peak_bytes": peak_bytes(),
    }


def _types(network: Any) -> dict[str, int]:
    """Number of layers by the element type of what they give: what precision came to."""
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            counts[layer.get_output(0).dtype.name.lower()] += 1
    return dict(sorted(counts.items()))


def _inspect(trt: Any, logger: Any, plan: bytes, output: Path) -> None:
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise _Refused("the engine can be inspected on a machine with its GPU only", "input")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def main() -> None:
    job = worker_job()
    try:
        _say(facts=_run(job))
    except _Refused as refusal:
        _say(error=str(refusal), kind=refusal.kind)
    except TfanetError as error:
        missing = isinstance(error, MissingDependencyError)
        _say(error=str(error), kind="missing" if missing else "input")
    except OSError as error:
        _say(error=f"the engine cannot be written: {error.strerror or error}", kind="storage")


if __name__ == "__main__":
    main()
