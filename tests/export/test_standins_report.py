"""`export_onnx` on models that bring a mamba_ssm of their own, and what it says of stand-ins."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.export import export_onnx
from tfanet.plugins.compat.standin_import import standin_users

import onnxruntime

OWN = '''
import selective_scan_cuda
from torch import nn
from torch.nn import functional as F


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    B, C = B.unsqueeze(1), C.unsqueeze(1)
    return selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[0]


class Mamba(nn.Module):
    """Reads the sequence both ways, which mamba-ssm's own block does not."""

    def __init__(self, dim, states=4):
        super().__init__()
        self.x_proj, self.dt_proj = nn.Linear(dim, 2 * states), nn.Linear(dim, dim)
        self.A_log = nn.Parameter(__import__("torch").zeros(dim, states))

    def way(self, x):
        B, C = self.x_proj(x).transpose(1, 2).chunk(2, 1)
        x, delta = x.transpose(1, 2), self.dt_proj(x).transpose(1, 2)
        return selective_scan_fn(x, delta, -self.A_log.exp(), B, C, None, None, None, True)

    def forward(self, x):
        return (self.way(x) + self.way(x.flip(1)).flip(2)).transpose(1, 2)
'''
MODEL = "from mamba_ssm import Mamba\nencoder = lambda: Mamba(8)\n"
BOTH = "from mamba_ssm import Mamba2\nencoder = lambda: Mamba2(8)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if importlib.util.find_spec("mamba_ssm") is not None:
        pytest.skip("mamba-ssm is installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name, _ in list(standin_users()):  # what other tests have imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, package: str | None, model: str) -> None:
    (folder / "own_model.py").write_text(model)
    if package is not None:
        (folder / "mamba_ssm").mkdir()
        (folder / "mamba_ssm" / "__init__.py").write_text(package)


def test_a_projects_own_network_is_what_is_exported(project: Path) -> None:
    write(project, OWN, MODEL)
    path = project / "m.onnx"
    report = export_onnx("own_model:encoder", path, input="1x12x8")
    assert report["standins"] == {"selective_scan_cuda": "not installed"}
    assert report["original"]["compared"] and len(report["nodes"]["scans"]) == 2
    session = onnxruntime.InferenceSession(path)
    torch.manual_seed(0)
    x = torch.randn(1, 12, 8).numpy()
    moved = x.copy()
    moved[:, -1] += 1
    name = session.get_inputs()[0].name
    first, other = (session.run(None, {name: value})[0][:, 0] for value in (x, moved))
    assert np.abs(first - other).max() > 0  # the first output depends on the last input


def test_what_stands_in_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, "import no_such_kernel\n", MODEL)
    argv = ["onnx", "--model", "own_model:encoder", "--input", "1x12x8", "--output", "m.onnx"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    why = "mamba_ssm/__init__.py can't be imported: ModuleNotFoundError: No module named 'no_such"
    assert "A stand-in of tfanet was used for mamba_ssm: " in printed.out and why in printed.out
    assert "tfanet: warning: mamba_ssm is replaced by a stand-in" in printed.err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (BOTH, r"no Mamba2: Mamba-2 and Mamba-3 use other scans"),
        (
            "from mamba_ssm.modules.mamba2 import Mamba2\nencoder = Mamba2\n",
            "no Mamba2: Mamba-2 and Mamba-3 use other scans",
        ),
        (
            "from mamba_ssm import Nothing\nencoder = Nothing\n",
            r"cannot import name 'Nothing' .*; mamba_ssm is a stand-in here \(not installed\)",
        ),
        (
            "from mamba_ssm.models.big import Nothing\nencoder = Nothing\n",
            r"imports 'mamba_ssm.models'.*; mamba_ssm is a stand-in here \(not installed\)",
        ),
        (
            "from mamba_ssm import Mamba\nencoder = lambda: Mamba(8, use_norm=True)\n",
            "no argument 'use_norm'.*put that package on PYTHONPATH",
        ),
    ],
)
def test_what_a_standin_lacks_is_named(project: Path, model: Any, words: str) -> None:
    write(project, None, model)
    with pytest.raises(InputError, match=words) as caught:
        export_onnx("own_model:encoder", project / "m.onnx", input="1x12x8")
    assert "\n" not in str(caught.value)
