"""Python's ONNX Runtime and that of the C library share a process and our operator library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from other_runtimes import LOWEST

from tfanet.plugins import ort_library_path

HERE = Path(__file__).parent
# In a process of its own, which a mistake would end.
SIDE_BY_SIDE = """
import importlib.util, sys
import numpy as np
from tfanet.runtime import Predictor

spec = importlib.util.spec_from_file_location("c_library", sys.argv[1])
c_library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(c_library)
bundle, lowest, first = sys.argv[2:]
pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
image = c_library.make_image(pixels, "RGB")

def in_python():
    return Predictor(bundle, threads=2)

def in_c():
    return c_library.Runtime(c_library.load_api(c_library.LIBRARY), bundle, onnxruntime=lowest)

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
    found = list(LOWEST.glob("onnxruntime/capi/libonnxruntime.so.*"))
    if not found:
        pytest.skip("the lowest supported ONNX Runtime is not installed: run `make ort-lowest`")
    command = [sys.executable, "-X", "faulthandler", "-c", SIDE_BY_SIDE]
    arguments = [HERE / "conftest.py", scan_bundle, found[0], first]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_operators_of_one_never_meet_the_other(
    compile_program: Callable[..., Path], onnxruntime_headers: str
) -> None:
    program = compile_program(HERE / "two_runtimes.cpp", f"-isystem{onnxruntime_headers}", "-ldl")
    done = subprocess.run([program, ort_library_path()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "each met its own\n"
