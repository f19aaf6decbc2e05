"""Scans in ONNX: a float64 oracle, random operands, models of scan nodes, runs of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

import tfanet  # noqa: F401  (switches telemetry off before onnxruntime is imported)

import onnxruntime

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
Arrays = dict[str, np.ndarray]


def oracle(x: Arrays, softplus: bool) -> np.ndarray:
    """The recurrence of the operator, one step after the other, written from its definition."""
    u, delta, A, B, C = (x[n].astype(np.float64) for n in NAMES[:5])
    if "delta_bias" in x:
        delta = delta + x["delta_bias"].astype(np.float64)[:, None]
    if softplus:
        delta = np.where(delta > 20, delta, np.log1p(np.exp(np.minimum(delta, 20))))
    B, C = (np.repeat(v, u.shape[1] // v.shape[1], axis=1) for v in (B, C))
    h, y = np.zeros((*u.shape[:2], A.shape[1])), np.empty_like(u)
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = np.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        y[:, :, t] = (h * C[..., t]).sum(-1)
    if "D" in x:
        y += x["D"].astype(np.float64)[:, None] * u
    if "z" in x:
        z = x["z"].astype(np.float64)
        y *= z / (1 + np.exp(-z))
    return y


@dataclass(frozen=True)
class Scan:
    """One scan node: its sizes, which optional inputs it has, and whether softplus is applied."""

    batch: int = 2
    dim: int = 8
    length: int = 40
    groups: int = 2
    states: int = 1
    optional: tuple[str, ...] = ("D", "delta_bias")
    softplus: bool = True

    def arrays(self, seed: int, dtype: Any = np.float32) -> Arrays:
        rng = np.random.default_rng(seed)
        sequence = (self.batch, self.dim, self.length)
        grouped = (self.batch, self.groups, self.states, self.length)
        strength = 10.0 ** rng.uniform(-2, 1)
        values = {
            "u": rng.standard_normal(sequence),
            "delta": rng.uniform(0.001, 0.5, sequence),
            "A": -strength * rng.uniform(0.2, 2, (self.dim, self.states)),
            "B": rng.standard_normal(grouped),
            "C": rng.standard_normal(grouped),
            "D": rng.standard_normal(self.dim),
            # Without softplus the steps must stay positive, or the recurrence explodes.
            "delta_bias": rng.uniform(-4, 2, self.dim)
            if self.softplus
            else rng.uniform(0, 1, 8)[:1].repeat(self.dim),
            "z": rng.standard_normal(sequence),
        }
        return {n: values[n].astype(dtype) for n in NAMES[:5] + self.optional}


@dataclass(frozen=True)
class Chain:
    """A model of scans, each reading the y of the one before as its u, with feeds and oracle."""

    model: ModelProto
    feeds: Arrays
    expected: np.ndarray


def chain(
    *scans: Scan,
    seed: int = 0,
    dtype: Any = np.float32,
    opset: int = 20,
    dynamic: tuple[str, ...] = ("batch",),
) -> Chain:
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    axes = {0: "batch", 2: "length"}
    nodes, inputs, feeds = [], [], {}
    flowing, name = np.zeros(0), "u"
    for index, scan in enumerate(scans):
        arrays = scan.arrays(seed + index, dtype)
        if index == 0:
            feeds["u"] = arrays["u"]
            flowing = arrays["u"]
        operands = [name]
        for n in NAMES[1:]:
            operands.append(f"{n}{index}" if n in arrays else "")
            if n in arrays:
                feeds[f"{n}{index}"] = arrays[n]
        while not operands[-1]:
            operands.pop()
        name = f"y{index}"
        nodes.append(
            helper.make_node(
                "SelectiveScan", operands, [name], domain="tfanet", delta_softplus=scan.softplus
            )
        )
        flowing = oracle({**arrays, "u": flowing}, scan.softplus)

    def shape(array: np.ndarray) -> list[int | str]:
        dims: list[int | str] = list(array.shape)
        if array.ndim > 2:
            last = array.ndim - 1
            dims[0] = axes[0] if axes[0] in dynamic else dims[0]
            dims[last] = axes[2] if axes[2] in dynamic else dims[last]
        return dims

    inputs = [helper.make_tensor_value_info(n, elem, shape(a)) for n, a in feeds.items()]
    output = helper.make_tensor_value_info(name, elem, shape(feeds["u"]))
    model = helper.make_model(
        helper.make_graph(nodes, "scans", inputs, [output]),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("tfanet", 1)],
        ir_version=10,
    )
    assert elem != TensorProto.UNDEFINED
    return Chain(model, feeds, flowing)


def run(model: ModelProto, feeds: Arrays, library: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    if library:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def error(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    assert result.shape == expected.shape
    return float(np.abs(result - expected).max() / np.abs(expected).max())
