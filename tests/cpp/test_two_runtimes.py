"""Python's ONNX Runtime and that of the C library share a process and our operator library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import c_library
import pytest
from built import need_lowest_onnxruntime

from tfanet.plugins import ort_library_path

HERE = Path(__file__).parent
# In a process of its own, which a mistake would end.
SIDE_BY_SIDE = """
import sys
support, library, bundle, lowest, first = sys.argv[1:]
sys.path.insert(0, support)
import c_library
import numpy as np
from tfanet.runtime import Predictor

pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
image = c_library.make_image(pixels, "RGB")

def in_python():
    return Predictor(bundle, threads=2)

def in_c():
    return c_library.Runtime(c_library.load_api(library), bundle, onnxruntime=lowest)

order = (in_python, in_c) if first == "in_python" else (in_c, in_python)
opened = {kind.__name__: kind() for kind in order}
for text in ("red", "the blue one", "left"):
    python = opened["in_python"](pixels, text)
    native = opened["in_c"].predict(image, text)
    np.testing.assert_allclose(python.logits, native.logits, atol=1e-4)
again = in_python(), in_c()
"""


@pytest.mark.parametrize("first", ["in_python", "in_c"])
def test_of_two_versions(first: str, library: Path, scan_bundle: Path) -> None:
    found = list(need_lowest_onnxruntime().glob("onnxruntime/capi/libonnxruntime.so.*"))
    command = [sys.executable, "-X", "faulthandler", "-c", SIDE_BY_SIDE]
    arguments = [Path(c_library.__file__).parent, library, scan_bundle, found[0], first]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_of_one_never_meet_the_other(
    compile_program: Callable[..., Path], onnxruntime_headers: str
) -> None:
    program = compile_program(HERE / "two_runtimes.cpp", f"-isystem{onnxruntime_headers}", "-ldl")
    done = subprocess.run([program, ort_library_path()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "each met its own\n"
