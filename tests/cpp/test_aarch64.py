"""The C++ code on a 64-bit ARM machine: cross-compiled, and run by qemu where both are there.

Debian: g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import tfanet
from tfanet.plugins import selective_scan_ref, ss2d_ref

ROOT = Path(__file__).resolve().parents[2]
ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
BERT = ASSET.with_name("bert_tokenizer.json")
KERNEL = ROOT / "plugins" / "csrc" / "cpu"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]  # as runtime/cpp is built

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"needs {COMPILER} and {EMULATOR}",
    ),
]


def emulate(program: Path, *arguments: object, given: bytes = b"") -> bytes:
    command = [EMULATOR, str(program), *map(str, arguments)]
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout


def test_pictures_and_checksums(compile_parts: Callable[..., Path]) -> None:
    """Resizing gives the bits of this machine."""
    source, parts = "print_portable.cpp", ("resample", "sha256", "mask", "letterbox")
    there = compile_parts(source, "-static", *EXACT, parts=parts, compiler=COMPILER)
    here = compile_parts(source, *EXACT, parts=parts)
    expected = subprocess.run([here], stdout=subprocess.PIPE, check=True).stdout
    assert emulate(there) == expected != b""


def test_tokens(compile_parts: Callable[..., Path]) -> None:
    program = compile_parts("print_tokens.cpp", "-static", compiler=COMPILER)
    random = np.random.default_rng(0)
    limits = random.choice([0x80, 0x400, 0x3000, 0xD800], 500)
    corpus = ["", "The man's 2nd café", "cafe\u0301 각 🙂👍🏽 <|endoftext|> İſ \u0344"]
    corpus += ["".join(map(chr, random.integers(1, limit, 20))) for limit in limits]
    stream = b"".join(b"%d\n%s" % (len(text), text) for text in (t.encode() for t in corpus))
    for kind, asset in (("clip-bpe", ASSET), ("bert-wordpiece", BERT)):
        lines = emulate(program, asset, kind, given=stream).decode().splitlines()
        reference = Tokenizer.from_file(str(asset))
        assert [list(map(int, line.split())) for line in lines] == [
            reference.encode(text, add_special_tokens=False).ids for text in corpus
        ]


def test_scans(compile_parts: Callable[..., Path]) -> None:
    """Both scans, within rounding of float64."""
    sources = ("selective_scan.cpp", "ss2d.cpp", "selective_scan_isa.cpp")
    program = compile_parts(
        ROOT / "tests" / "plugins" / "run_scan.cpp", *(KERNEL / source for source in sources),
        f"-I{KERNEL}", "-DTFANET_KERNEL=kernel_baseline", "-std=gnu++17", "-static",
        "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
        parts=(), compiler=COMPILER,
    )  # fmt: skip
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    for batch, dim, length, state, groups, height, width, rank in (
        (1, 16, 64, 1, 1, 8, 8, 2),
        (2, 34, 131, 3, 2, 11, 17, 5),
        (1, 7, 1, 16, 1, 1, 70, 1),
    ):
        scan = [
            normal(batch, dim, length), normal(batch, dim, length) - 2,
            -random.random((dim, state)) * 8, normal(batch, groups, state, length),
            normal(batch, groups, state, length), normal(dim),
        ]  # fmt: skip
        ss2d = [
            normal(batch, dim, height, width), normal(4, rank + 2 * state, dim) * dim**-0.5,
            normal(4, dim, rank) * rank**-0.5, normal(4, dim) - 3,
            -random.random((4 * dim, state)) * 8 - 0.1, normal(4 * dim),
        ]  # fmt: skip
        scan, ss2d = ([x.astype(np.float32) for x in arrays] for arrays in (scan, ss2d))
        given = b"".join(array.tobytes() for array in (*scan, *ss2d))
        sizes = (batch, dim, length, state, groups, height, width, rank)
        y = np.frombuffer(emulate(program, *sizes, given=given), np.float32)
        doubles = [torch.from_numpy(array).double() for array in scan]
        expected = selective_scan_ref(*doubles, delta_softplus=True).numpy()
        merged = ss2d_ref(*(torch.from_numpy(array).double() for array in ss2d)).numpy()
        for found, wanted in ((y[: expected.size], expected), (y[expected.size :], merged)):
            error = np.abs(found.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
            assert error < 2e-6, sizes
