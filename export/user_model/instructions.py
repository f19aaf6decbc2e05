"""How a runtime loads an exported model and our operator: the lines that `tfanet onnx` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfanet.export.user_model.inputs import InputSpec

__all__ = ["loading_instructions"]


def loading_instructions(
    path: Path, function: str, library: Path | None, specs: Sequence[InputSpec]
) -> dict[str, str]:
    """What to type, by runtime.

    Args:
        path: the ONNX file. function: its scan's body. library: libtfanet_ort.so, None where it
            has not been built. specs: the inputs, at the size that an engine is tuned for.
    """
    where = str(library) if library is not None else "libtfanet_ort.so"
    with_body = function != "none"
    alone = "also runs without the library" if with_body else "needs the library"
    text = {
        f"ONNX Runtime, Python ({alone})": (
            "options = onnxruntime.SessionOptions()\n"
            f'options.register_custom_ops_library("{where}")\n'
            f'session = onnxruntime.InferenceSession("{path}", options)'
        ),
        f"ONNX Runtime, C++ ({alone})": (
            "Ort::SessionOptions options;\n"
            f'options.RegisterCustomOpsLibrary(ORT_TSTR("{where}"));\n'
            f'Ort::Session session(environment, ORT_TSTR("{path}"), options);'
        ),
    }
    if with_body:
        shapes = " ".join(f"{s.name}:[{','.join(map(str, s.sizes))}]" for s in specs)
        text["polygraphy (its command line takes no operator library and runs the body)"] = (
            f"polygraphy run {path} --onnxrt --input-shapes {shapes}"
        )
    if function == "parallel":
        text["trtexec (no plugin needed)"] = f"trtexec --onnx={path}{_profile(specs)}"
    with_plugin = path.with_stem(f"{path.stem}_plugin")
    text["trtexec with our plugin, libtfanet_trt.so"] = (
        'python -c "from tfanet.plugins.tensorrt import write_plugin_graph; '
        f"write_plugin_graph('{path}', '{with_plugin}')\"\n"
        f"trtexec --onnx={with_plugin} --dynamicPlugins=libtfanet_trt.so{_profile(specs)}"
    )
    return text


def _profile(specs: Sequence[InputSpec]) -> str:
    """Shapes for inputs with open axes; trtexec takes fixed ones from the file."""
    if not any(spec.axes for spec in specs):
        return ""
    shapes = ",".join(f"{s.name}:{'x'.join(map(str, s.sizes))}" for s in specs)
    return "".join(f" --{bound}Shapes={shapes}" for bound in ("min", "opt", "max"))
