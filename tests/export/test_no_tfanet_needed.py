"""Exporting a user's own model loads nothing of TFANet, nor transformers, which TFANet needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXPORT = """
import torch
from tfanet.export import export_onnx
from tfanet.plugins import selective_scan

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(-torch.rand(4, 2))
        self.B = torch.nn.Parameter(torch.rand(1, 1, 2, 1))

    def forward(self, x):
        states = self.B.expand(x.shape[0], 1, 2, x.shape[2])
        return selective_scan(x, x.abs(), self.A, states, states)

torch.save(Model().state_dict(), "weights.pth")
export_onnx(Model().eval(), "model.onnx", input="x:1x4x6", checkpoint="weights.pth")
"""


@pytest.mark.parametrize(
    "code",
    [
        "import tfanet.export.user_model.onnx_file",
        EXPORT,
        "import tfanet.export.engines.store, tfanet.export.engines.refit",
    ],
    ids=["import", "export", "engines"],
)
def test_a_users_model_needs_neither_the_model_nor_transformers(tmp_path, code):
    look = "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + look],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "tfanet.export.trace" in loaded or "tfanet.export.engines.store" in loaded
    assert not {name for name in loaded if name.startswith(("tfanet.model", "transformers"))}
