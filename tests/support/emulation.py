"""CUDA kernels compiled for the host, and what they compute."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
EMULATORS, SOURCES = ROOT / "tests" / "plugins", ROOT / "plugins" / "csrc" / "cuda"


class Call(Protocol):
    """One run of the kernels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of y."""

    @property
    def dtype(self) -> torch.dtype:
        """Of y."""

    def message(self, operands: Mapping[str, Tensor] | None = None) -> bytes:
        """What the program reads: numbers, and the operands, its own or those given."""


def raw(x: Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def build_emulator(name: str, folder: Path) -> Path:
    """A program of tests/plugins, with sanitizers for memory and undefined behaviour."""
    program = folder / "emulator"
    command = ["g++", "-std=c++17", "-O1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unknown-pragmas", f"-I{SOURCES}", f"-I{EMULATORS}"]
    command += [str(EMULATORS / name), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def emulate(
    program: Path, calls: Sequence[Call], operands: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """y of each call, from its own operands or from those given."""
    message = b"".join(call.message(operands) for call in calls)
    done = subprocess.run([program], input=message, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:4000]
    results, position = [], 0
    for call in calls:
        size = int(np.prod(call.shape)) * call.dtype.itemsize
        data = bytearray(done.stdout[position : position + size])
        results.append(torch.frombuffer(data, dtype=call.dtype).view(call.shape))
        position += size
    assert position == len(done.stdout)
    return results
