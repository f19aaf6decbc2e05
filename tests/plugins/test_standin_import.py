"""Which stand-ins become importable: none where the real package can be made to import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tfanet.errors import InputError
from tfanet.plugins import exportable, install, selective_scan_ref, uninstall
from tfanet.plugins.compat.standin_import import Standins, standin_users

PACKAGES = ("mamba_ssm", "causal_conv1d", "selective_scan_cuda", "causal_conv1d_cuda", "triton")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, whose packages are forgotten afterwards."""
    if any(importlib.util.find_spec(name) is not None for name in PACKAGES):
        pytest.skip("a package is installed whose absence is tested")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, _ in list(standin_users()):  # what other tests have imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    yield tmp_path
    uninstall()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) is None or str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        package = path.parent
        while package != folder:
            (package / "__init__.py").touch()
            package = package.parent
    importlib.invalidate_caches()


FORK = {
    "mamba_ssm/__init__.py": "from .ops.selective_scan_interface import selective_scan_fn\n",
    "mamba_ssm/ops/selective_scan_interface.py": (
        "import selective_scan_cuda\n"
        "import causal_conv1d_cuda\n"
        "from causal_conv1d import causal_conv1d_fn\n"
        "def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None,\n"
        "                      delta_softplus=False, return_last_state=False):\n"
        "    B, C = (x.unsqueeze(1) for x in (B, C))\n"
        "    return selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias,\n"
        "                                   delta_softplus)[0]\n"
    ),
    "mamba_ssm/ops/triton/layernorm.py": (
        "import triton\n"
        "import triton.language as tl\n"
        "from triton.language.extra import libdevice\n"
        "assert triton.__version__ < '3'\n"
        "@triton.autotune(configs=[triton.Config({}, num_warps=n) for n in (1, 2)], key=['N'])\n"
        "@triton.heuristics({'HAS_BIAS': lambda args: args['B'] is not None})\n"
        "@triton.jit\n"
        "def _norm_kernel(X, Y, N: tl.constexpr):\n"
        "    pass\n"
        "def rms_norm_fn(x, weight, bias, residual=None, prenorm=False,\n"
        "                residual_in_fp32=False, eps=1e-6):\n"
        "    _norm_kernel[(triton.cdiv(x.shape[-1], 16),)](\n"
        "        x, x, triton.next_power_of_2(x.shape[-1]))\n"
    ),
}


def test_a_projects_own_package_is_used_over_standins_of_its_extensions(project: Path) -> None:
    write(project, FORK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        install(standins=True)
    uninstall()
    standins = Standins()
    standins.add()
    try:
        import mamba_ssm

        assert str(project) in str(mamba_ssm.__file__)
        used = standins.used()
        expected = {"causal_conv1d", "causal_conv1d_cuda", "selective_scan_cuda", "triton"}
        assert {n for n in used if used[n] == "not installed"} >= expected
        assert "mamba_ssm" not in used
        assert "triton" not in sys.modules and importlib.util.find_spec("triton") is None

        x = torch.randn(2, 4, 7)
        scan = (x, x.sigmoid(), -torch.rand(4, 3), torch.randn(2, 3, 7), torch.randn(2, 3, 7))
        got = mamba_ssm.selective_scan_fn(*scan)
        torch.testing.assert_close(got.double(), selective_scan_ref(*scan), atol=1e-5, rtol=1e-5)
    finally:
        standins.remove()
    assert importlib.util.find_spec("causal_conv1d") is None


def test_kernels_of_triton_are_routed_or_refused(project: Path) -> None:
    write(project, FORK)
    install(standins=True)
    layernorm: Any = importlib.import_module("mamba_ssm.ops.triton.layernorm")
    x, weight = torch.randn(3, 8), torch.rand(8)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt() * weight
    torch.testing.assert_close(layernorm.rms_norm_fn(x, weight, None, eps=0.5), expected)
    y, residual = layernorm.rms_norm_fn(x, weight, None, None, True, False, 0.5)
    torch.testing.assert_close(y, expected)
    assert torch.equal(residual, x)
    uninstall()
    with pytest.raises(InputError, match="Triton kernel _norm_kernel can't run here"):
        layernorm.rms_norm_fn(x, weight, None)


def test_triton_is_found_by_a_project_only_and_for_no_longer_than_it_is_loaded(
    project: Path,
) -> None:
    write(project, {"asks.py": "import triton\n"})
    library = ModuleType("a_library")
    library.__file__ = "/usr/lib/python3/site-packages/a_library.py"
    standins = Standins()
    standins.add()
    try:
        with standins.loading():
            with pytest.raises(ImportError):
                exec("import triton", vars(library))
            importlib.import_module("asks")
        with pytest.raises(ImportError):
            importlib.import_module("triton")
        assert standins.used()["triton"] == "not installed"
    finally:
        standins.remove()


def test_what_can_not_be_imported_is_replaced_with_a_warning(project: Path) -> None:
    write(project, {"causal_conv1d.py": "real = True\n"})
    write(project, {"mamba_ssm/__init__.py": "from . import part\n"})
    write(project, {"mamba_ssm/part.py": "import a_missing_kernel\n"})
    words = r"mamba_ssm is replaced .*mamba_ssm/__init__.py can't be imported.*'a_missing_kernel'"
    with pytest.warns(UserWarning, match=words):
        install(standins=True)
    assert importlib.import_module("causal_conv1d").real
    standin = importlib.import_module("mamba_ssm")
    assert standin.Mamba.__module__ == "tfanet.plugins.compat.mamba_block"
    assert importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    holder = ModuleType("holder")
    holder.Mamba = standin.Mamba  # type: ignore[attr-defined]
    sys.modules["holder"] = holder
    used = Standins().used()
    assert "a_missing_kernel" in used["mamba_ssm"] and "causal_conv1d" not in used
    uninstall()
    assert "mamba_ssm" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_missing_parts_of_a_real_package_stay_missing(project: Path) -> None:
    write(project, {"mamba_ssm/__init__.py": "real = True\n"})
    install(standins=True)
    assert importlib.import_module("mamba_ssm").real
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm.modules.mamba_simple")


def test_an_unknown_variant_of_the_extension_loads_and_is_refused_when_called(
    project: Path,
) -> None:
    write(project, {"uses.py": "import selective_scan_cuda_oflex_rh as kernel\n"})
    install(standins=True)
    uses: Any = importlib.import_module("uses")
    with pytest.raises(InputError, match=r"selective_scan_cuda_oflex_rh.fwd: .*not known"):
        uses.kernel.fwd()


def test_mamba_2_kernels_of_a_real_package_are_refused_where_they_fail(project: Path) -> None:
    write(
        project,
        {
            "fork.py": (
                "def mamba_chunk_scan_combined(x, fail):\n"
                "    if fail:\n"
                "        raise RuntimeError('0 active drivers')\n"
                "    return x + 1\n"
            )
        },
    )
    fork: Any = importlib.import_module("fork")
    original = fork.mamba_chunk_scan_combined
    with exportable() as names:
        assert not any("chunk_scan" in name for name in names)
        assert fork.mamba_chunk_scan_combined(1, False) == 2
        with pytest.raises(InputError, match=r"fork.mamba_chunk_scan_combined is Mamba-2's"):
            fork.mamba_chunk_scan_combined(1, True)
    assert fork.mamba_chunk_scan_combined is original
