"""Infinities and NaN among the operands: y is not finite exactly where the definition's is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_scans
import pytest
import torch
from instruction_sets import ISAS

from tfanet.plugins import selective_scan, selective_scan_parallel, ss2d_ref
from tfanet.plugins.graph.attach import attach
from tfanet.plugins.kernels import cpu
from tfanet.plugins.pytorch.selective_scan import _native_args
from tfanet.plugins.pytorch.ss2d import run_into

ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
BACKENDS = (*ISAS, "operator", "parallel", "onnxruntime", "sequential body", "parallel body")
# Of every operand one value; A of plus infinity is another matter, below.
PLACES = [
    (name, at, value)
    for name, at in {
        "u": (1, 3, 70),
        "delta": (1, 3, 70),
        "A": (3, 1),
        "B": (1, 0, 1, 70),
        "C": (1, 0, 1, 70),
        "D": (3,),
        "z": (1, 3, 70),
        "delta_bias": (3,),
    }.items()
    for value in (np.inf, -np.inf, np.nan)
    if (name, value) != ("A", np.inf)
]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def backends(library: Path) -> Callable[[str, Any], Callable[[Arrays], Any]]:
    def backend(name: str, scan: Any) -> Callable[[Arrays], np.ndarray]:
        def in_pytorch(arrays: Arrays) -> np.ndarray:
            x = [torch.from_numpy(arrays[n]) if n in arrays else None for n in ORDER]
            if name not in ISAS:
                function = selective_scan if name == "operator" else selective_scan_parallel
                return function(*x, scan.softplus).numpy()  # type: ignore[arg-type]
            args, _held = _native_args(*x, delta_softplus=scan.softplus)
            y = torch.zeros_like(x[0])  # type: ignore[arg-type]
            args.y, args.y_strides = y.data_ptr(), cpu.SequenceStrides(*y.stride()[:-1])
            args.isa = cpu.ISAS[name]
            cpu.forward(args, 2)
            return y.numpy()

        model = onnx_scans.chain(scan).model
        if name.endswith("body"):
            model = attach(model, name.split()[0])

        def in_onnxruntime(arrays: Arrays) -> np.ndarray:
            feeds = {n if n == "u" else f"{n}0": v for n, v in arrays.items()}
            return onnx_scans.run(model, feeds, library if name == "onnxruntime" else None)

        return in_onnxruntime if name.endswith("body") or name == "onnxruntime" else in_pytorch

    return backend


@pytest.fixture(scope="module")
def definition() -> dict[tuple[bool, str, float], np.ndarray]:
    """What was computed so far."""
    return {}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("softplus", [True, False])
def test_of_a_scan(backends: Any, definition: Any, name: str, softplus: bool) -> None:
    scan = onnx_scans.Scan(2, 20, 150, 2, 2, ("D", "delta_bias", "z"), softplus)
    run = backends(name, scan)
    for operand, at, value in PLACES:
        arrays = scan.arrays(3)
        arrays[operand][at] = value
        key = (softplus, operand, value)
        with np.errstate(all="ignore"):
            if key not in definition:
                definition[key] = onnx_scans.oracle(arrays, softplus)
            expected, found = definition[key], run(arrays)
        finite = np.isfinite(expected)
        assert finite.sum() > finite.size // 2  # all that one value does not reach
        assert (np.isfinite(found) == finite).all(), (operand, value)
        error = np.abs(found[finite] - expected[finite]).max()
        assert error < 3e-6 * np.abs(expected[finite]).max(), (operand, value)


@pytest.mark.parametrize("isa", ISAS)
def test_growth_beyond_float32_stops_at_two_to_127(isa: str, backends: Any) -> None:
    """Where A is positive: the definition has inf times a state of zero, NaN."""
    scan = onnx_scans.Scan(1, 4, 1, 1, 1, ())
    arrays = scan.arrays(0)
    rest = backends(isa, scan)(arrays)
    arrays["A"][:] = np.inf
    np.testing.assert_array_equal(backends(isa, scan)(arrays), rest)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_of_a_map(isa: str, value: float) -> None:
    """One pixel reaches all channels by the projections, and all pixels by the directions."""
    torch.manual_seed(0)
    sizes = ((2, 20, 5, 6), (4, 5, 20), (4, 20, 3), (4, 20), (80, 1), (80,))
    x = [torch.randn(size) * (0.2 if len(size) == 3 else 1) for size in sizes]
    x[4] = -x[4].abs()
    x[0][1, 3, 2, 2] = value
    expected = ss2d_ref(*x)
    found = torch.zeros_like(x[0])
    run_into(found, *x, isa=isa, threads=2)
    assert not expected[1].isfinite().any() and expected[0].isfinite().all()
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-4)
