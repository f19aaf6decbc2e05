"""Mamba's block taken apart, the causal convolution, and the importable stand-ins."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tfanet.errors import InputError, MissingDependencyError
from tfanet.plugins import install, selective_scan_ref, uninstall
from tfanet.plugins.compat import entry_points

DIM, RANK, STATES, WIDTH = 6, 2, 3, 4


@pytest.fixture
def standins() -> Iterator[None]:
    if importlib.util.find_spec("mamba_ssm") is not None:
        pytest.skip("mamba-ssm is installed, so no stand-in of it is made")
    install(standins=True)
    yield
    uninstall()


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.abs().max())


def block(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "xz": torch.randn(2, 2 * DIM, 11),
        "conv1d_weight": torch.randn(DIM, 1, WIDTH),
        "conv1d_bias": torch.randn(DIM),
        "x_proj_weight": torch.randn(RANK + 2 * STATES, DIM) * 0.4,
        "delta_proj_weight": torch.randn(DIM, RANK),
        "A": -torch.rand(DIM, STATES) - 0.1,
        "D": torch.randn(DIM),
        "delta_bias": torch.randn(DIM),
    }


def block_float64(
    x: dict[str, torch.Tensor], norms: dict[str, torch.Tensor] | None = None, backwards: Any = None
) -> torch.Tensor:
    """The gated scan of a block, step by step from its definition."""
    v = {name: value.double() for name, value in x.items()}
    u, z = v["xz"].chunk(2, dim=1)
    padded = F.pad(u, (WIDTH - 1, 0))
    steps = [
        (padded[..., t : t + WIDTH] * v["conv1d_weight"][:, 0]).sum(-1) + v["conv1d_bias"]
        for t in range(u.shape[2])
    ]
    u = F.silu(torch.stack(steps, -1))
    projected = torch.einsum("rd,bdl->brl", v["x_proj_weight"], u)
    dt, B, C = projected.split([RANK, STATES, STATES], dim=1)
    delta = torch.einsum("dr,brl->bdl", v["delta_proj_weight"], dt)
    if norms:
        delta, B, C = (
            value
            / (value.square().mean(1, keepdim=True) + 1e-6).sqrt()
            * norms[n].double()[:, None]
            for n, value in (("dt_rms_weight", delta), ("b_rms_weight", B), ("c_rms_weight", C))
        )
    scan = (u, delta, v["A"], B, C, v["D"], z, v["delta_bias"], True)
    y = selective_scan_ref(*scan)
    if backwards is not None:
        flipped = [value.flip(-1) if value.ndim == 3 else value for value in scan[:-1]]
        flipped[2] = backwards.double()
        y = y + selective_scan_ref(*flipped, True).flip(-1)
    return y


def test_inner_is_the_block_step_by_step() -> None:
    x = block()
    y = block_float64(x)
    assert error(entry_points.inner(**x), y) < 1e-6
    weight, bias = torch.randn(5, DIM), torch.randn(5)
    out = entry_points.inner(**x, out_proj_weight=weight, out_proj_bias=bias)
    assert error(out, y.transpose(1, 2) @ weight.double().T + bias) < 1e-6


def test_inner_with_norms_and_both_ways() -> None:
    x = block(1)
    norms = {
        "b_rms_weight": torch.rand(STATES) + 0.5,
        "c_rms_weight": torch.rand(STATES) + 0.5,
        "dt_rms_weight": torch.rand(DIM) + 0.5,
    }
    assert error(entry_points.inner(**x, **norms), block_float64(x, norms)) < 1e-6
    A_b = -torch.rand(DIM, STATES) - 0.1
    assert error(entry_points.inner(**x, A_b=A_b), block_float64(x, backwards=A_b)) < 1e-6


def test_causal_conv1d_with_states_goes_on_where_it_stopped() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, DIM, 9), torch.randn(DIM, WIDTH), torch.randn(DIM)
    whole = entry_points.causal_conv1d(x, weight, bias, "silu")
    padded = F.pad(x, (WIDTH - 1, 0))
    windows = padded.unfold(-1, WIDTH, 1)
    torch.testing.assert_close(whole, F.silu((windows * weight[:, None]).sum(-1) + bias[:, None]))

    first, state = entry_points.causal_conv1d(
        x[..., :5], weight, bias, "silu", return_final_states=True
    )
    assert torch.equal(state, x[..., 2:5])
    rest = entry_points.causal_conv1d(x[..., 5:], weight, bias, "silu", initial_states=state)
    torch.testing.assert_close(torch.cat([first, rest], -1), whole)
    state = state.clone()
    steps = [
        entry_points.causal_conv1d_update(x[..., t], state, weight, bias, "silu")
        for t in range(5, 9)
    ]
    torch.testing.assert_close(torch.stack(steps, -1), whole[..., 5:])
    assert torch.equal(state, x[..., -3:])


def test_bad_convolutions_are_refused() -> None:
    x, weight = torch.zeros(2, DIM, 9), torch.zeros(DIM, WIDTH)
    with pytest.raises(InputError, match=r"activation is 'gelu'"):
        entry_points.causal_conv1d(x, weight, activation="gelu")
    with pytest.raises(InputError, match=r"expected \(batch, dim, L\) and \(dim, width\)"):
        entry_points.causal_conv1d(x, weight[1:])


def test_windows_go_back_to_their_places() -> None:
    maps = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    windows = maps.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, rows, columns, 2, 2)
    tokens = windows.permute(0, 2, 3, 4, 5, 1).reshape(-1, 4, 3)
    assert torch.equal(entry_points.window_reverse(tokens, 2, 4, 6), maps)


def test_standins_have_the_official_names_and_go_away(standins: None) -> None:
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm import Mamba as Exported
    from mamba_ssm.modules.mamba_simple import Mamba
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
    from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn

    assert Exported is Mamba and callable(causal_conv1d_fn) and callable(selective_scan_fn)
    assert importlib.util.find_spec("mamba_ssm.ops") is not None
    with pytest.raises(ImportError, match="no Mamba2: Mamba-2 and Mamba-3 use other scans"):
        from mamba_ssm import Mamba2  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from mamba_ssm import nothing  # noqa: F401

    x = block()
    y = mamba_inner_fn(
        *(x[n] for n in list(x)[:5]), torch.eye(DIM), None, x["A"], None, None, x["D"],
        delta_bias=x["delta_bias"], delta_softplus=True,
    )  # fmt: skip
    assert error(y.transpose(1, 2), block_float64(x)) < 1e-6

    total, norm = torch.randn(2, 3, 8), RMSNorm(8)
    y, residual = rms_norm_fn(total, norm.weight, norm.bias, total, prenorm=True)
    expected = 2 * total / ((2 * total).square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(residual, 2 * total)
    y = layer_norm_fn(total, norm.weight, None, eps=1e-5)
    torch.testing.assert_close(y, F.layer_norm(total, (8,)))
    uninstall()
    assert importlib.util.find_spec("mamba_ssm") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm.ops")


def test_the_standin_block_takes_official_checkpoints(standins: None) -> None:
    """Names and shapes as in mamba-ssm's and Vim's modules, written down from those."""
    from mamba_ssm import Mamba

    mamba = Mamba(8, d_state=4, bimamba_type="v2")
    one_way = {
        "A_log": (16, 4),
        "D": (16,),
        "conv1d.weight": (16, 1, 4),
        "conv1d.bias": (16,),
        "x_proj.weight": (9, 16),
        "dt_proj.weight": (16, 1),
        "dt_proj.bias": (16,),
    }
    expected = {"in_proj.weight": (32, 8), "out_proj.weight": (8, 16), **one_way}
    for name, shape in one_way.items():
        head, _, tail = name.partition(".")
        renamed = "A_b_log" if head == "A_log" else f"{head}_b"
        expected[f"{renamed}.{tail}" if tail else renamed] = shape
    assert {n: tuple(v.shape) for n, v in mamba.state_dict().items()} == expected
    assert set(Mamba(8, bimamba_type="v1").state_dict()) == set(Mamba(8).state_dict()) | {"A_b_log"}


def test_the_standin_block_both_ways_is_two_blocks(standins: None) -> None:
    from mamba_ssm import Mamba

    torch.manual_seed(0)
    both, one = Mamba(8, bimamba_type="v2", if_divide_out=True), Mamba(8)
    back = Mamba(8)
    state = both.state_dict()
    one.load_state_dict({n: state[n] for n in one.state_dict()})
    renamed = {"A_log": "A_b_log", "D": "D_b"}
    for name in one.state_dict():
        head, _, tail = name.partition(".")
        shared = head in ("in_proj", "out_proj")
        source = name if shared else renamed.get(head, f"{head}_b") + (f".{tail}" if tail else "")
        back.state_dict()[name].copy_(state[source])
    x = torch.randn(2, 13, 8)
    with torch.no_grad():
        expected = (one(x) + back(x.flip(1)).flip(1)) / 2
        torch.testing.assert_close(both(x), expected)
    with pytest.raises(InputError, match="whole sequences only"):
        one(x, inference_params=object())
    with pytest.raises(InputError, match="bimamba_type is 'v4'"):
        Mamba(8, bimamba_type="v4")


def test_extension_standins_answer_as_the_extensions(standins: None) -> None:
    import selective_scan_cuda
    import selective_scan_cuda_core
    import selective_scan_cuda_oflex

    torch.manual_seed(0)
    u, delta, z = torch.randn(2, 4, 7), torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    A, B, C = -torch.rand(4, 3), torch.randn(2, 1, 3, 7), torch.randn(2, 1, 3, 7)
    D, bias = torch.randn(4), torch.randn(4)
    expected = selective_scan_ref(u, delta, A, B, C, D, None, bias, True)
    y, states, gated = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, bias, True)
    assert error(y, expected) < 1e-6
    assert error(gated, expected * F.silu(z)) < 1e-6
    # The state after the last step is y of a scan whose C picks one state.
    for n in range(3):
        pick = torch.zeros_like(C)
        pick[:, :, n] = 1
        last = selective_scan_ref(u, delta, A, B, pick, None, None, bias, True)[..., -1]
        assert error(states[:, :, -1, 1::2][..., n], last) < 1e-6
    half = [v.half() for v in (u, delta)]
    groups = [v.half() for v in (B, C)]
    y, _ = selective_scan_cuda_oflex.fwd(*half, A, *groups, D, bias, True, 1, True)
    assert y.dtype == torch.float32
    y, _ = selective_scan_cuda_core.fwd(*half, A, *groups, D, bias, True, 1)
    assert y.dtype == torch.half
    with pytest.raises(InputError, match="no backward pass"):
        selective_scan_cuda.bwd(u)


@pytest.mark.parametrize("places", [("silu",), (None, "silu"), (None, None, False, None, "silu")])
def test_an_activation_in_the_places_of_older_releases(standins: None, places: Any) -> None:
    from causal_conv1d import causal_conv1d_fn

    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 7), torch.randn(3, 4), torch.randn(3)
    wanted = torch.zeros(2, 3, 7, dtype=torch.float64)
    for t in range(7):
        for k in range(4):
            if t - 3 + k >= 0:
                wanted[..., t] += weight[:, k].double() * x[..., t - 3 + k].double()
    wanted = wanted + bias.double()[:, None]
    wanted = wanted * torch.sigmoid(wanted)
    assert error(causal_conv1d_fn(x, weight, bias, *places), wanted) < 1e-6
    with pytest.raises(InputError, match="'silu' by its place and 'swish' by name"):
        causal_conv1d_fn(x, weight, bias, "silu", activation="swish")
    with pytest.raises(InputError, match="activation is 'gelu'"):
        causal_conv1d_fn(x, weight, bias, "gelu")


def test_the_convolution_extension_in_every_release(standins: None) -> None:
    import causal_conv1d_cuda

    x, weight, bias = torch.randn(2, 3, 7), torch.randn(3, 4), torch.randn(3)
    plain = entry_points.causal_conv1d(x, weight, bias)
    out = torch.empty_like(x)
    for rest in ((), (None,), (None, None, None), (None, None, out, None)):
        for silu in (True, False):
            got = causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, *rest, silu)
            torch.testing.assert_close(got, F.silu(plain) if silu else plain)
    torch.testing.assert_close(out, plain)
    with pytest.raises(InputError, match="9 arguments are given"):
        causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, *[None] * 5, True)
    with pytest.raises(InputError, match="one step after the other"):
        causal_conv1d_cuda.causal_conv1d_update(x, x, weight)


def test_norms_take_the_places_of_both_releases(standins: None) -> None:
    from mamba_ssm.ops.triton.layer_norm import layer_norm_fn, rms_norm_fn

    torch.manual_seed(0)
    x, more, weight, bias = (torch.randn(n, dtype=torch.float64) for n in (8, 8, 8, 8))
    total = x + more
    rms = total / (total.square().mean() + 0.25).sqrt() * weight + bias
    centred = total - total.mean()
    layer = centred / (centred.square().mean() + 0.25).sqrt() * weight + bias
    calls = (
        (rms_norm_fn, rms, (True, False, 0.25)),
        (rms_norm_fn, rms, (None, None, None, 0.25, 0.0, None, True, False, False)),
        (layer_norm_fn, layer, (0.25, True, False, False)),
        (layer_norm_fn, rms, (0.25, True, False, True)),
        (layer_norm_fn, layer, (None, None, None, 0.25, 0.0, None, True, False, False)),
        (layer_norm_fn, rms, (None, None, None, 0.25, 0.0, None, True, False, True, False)),
    )
    for norm, expected, rest in calls:
        y, residual = norm(x, weight, bias, more, *rest)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(residual, total)
    with pytest.raises(InputError, match="rms_norm_fn: the argument 'dropout_p'"):
        rms_norm_fn(x, weight, bias, dropout_p=0.1)
    with pytest.raises(InputError, match="layer_norm_fn: the argument 'x1'"):
        layer_norm_fn(x, weight, bias, more, x)


MAMBA_2 = (
    ("mamba_ssm", "Mamba2"),
    ("mamba_ssm", "Mamba3"),
    ("mamba_ssm.modules.mamba2", "Mamba2"),
    ("mamba_ssm.modules.mamba2_simple", "Mamba2Simple"),
    ("mamba_ssm.modules.ssd_minimal", "ssd_minimal_discrete"),
    ("mamba_ssm.modules.mamba3", "Mamba3"),
    ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
    ("mamba_ssm.ops.triton.ssd_combined", "mamba_split_conv1d_scan_combined"),
    ("mamba_ssm.ops.triton.ssd_chunk_scan", "chunk_scan"),
    ("mamba_ssm.ops.triton.layernorm_gated", "RMSNorm"),
    ("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined", "mamba3_siso_combined"),
    ("mamba_ssm.ops.tilelang.mamba3.mamba3_mimo", "mamba3_mimo"),
)


@pytest.mark.parametrize(("module", "name"), MAMBA_2)
def test_mamba_2_is_refused_wherever_it_is_imported_from(
    standins: None, module: str, name: str
) -> None:
    with pytest.raises(ImportError, match=f"no {name}: Mamba-2 and Mamba-3 use other scans"):
        exec(f"from {module} import {name}", {})
    with pytest.raises(ImportError, match=f"no {name}"):
        getattr(importlib.import_module(module), name)


def test_what_standins_leave_out_is_refused(standins: None) -> None:
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.utils.hf import load_state_dict_hf

    with pytest.raises(InputError, match="seq_idx"):
        causal_conv1d_fn(torch.zeros(1, 2, 5), torch.zeros(2, 4), seq_idx=torch.zeros(1, 5))
    with pytest.raises(MissingDependencyError, match="downloads nothing"):
        load_state_dict_hf("state-spaces/mamba-130m")
