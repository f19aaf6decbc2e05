"""The stand-ins of Mamba and Block beside a float64 loop, for each family that copied them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tfanet.errors import InputError
from tfanet.plugins.compat.mamba_block import Block, Mamba, MixerBlock, RMSNorm

Arrays = dict[str, np.ndarray]
DRAWN = settings(max_examples=15, deadline=None)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def convolved(p: Arrays, way: str, x: np.ndarray) -> np.ndarray:
    """The causal convolution with SiLU of (batch, L, E), step by step."""
    weight, y = p[f"conv1d{way}.weight"][:, 0], np.zeros_like(x)
    for t in range(x.shape[1]):
        for k in range(weight.shape[1]):
            source = t - weight.shape[1] + 1 + k
            if source >= 0:
                y[:, t] += weight[:, k] * x[:, source]
    return silu(y + p[f"conv1d{way}.bias"])


def scanned(p: Arrays, way: str, A_log: str, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The gated scan of (batch, L, E) that went through the convolution."""
    A = -np.exp(p[A_log])
    rank, states = p[f"dt_proj{way}.weight"].shape[1], A.shape[1]
    h, y = np.zeros((len(x), *A.shape)), np.zeros_like(x)
    for t in range(x.shape[1]):
        drawn = x[:, t] @ p[f"x_proj{way}.weight"].T
        dt, B, C = np.split(drawn, [rank, rank + states], axis=1)
        delta = np.log1p(np.exp(dt @ p[f"dt_proj{way}.weight"].T + p[f"dt_proj{way}.bias"]))
        h = np.exp(delta[..., None] * A) * h + (delta * x[:, t])[..., None] * B[:, None]
        y[:, t] = (h * C[:, None]).sum(-1) + p[f"D{way}"] * x[:, t]
    return y * silu(z)


def oracle(block: Mamba, x: torch.Tensor, kind: str, slices: int = 1) -> np.ndarray:
    """What the papers and the published modules define, in float64.

    none: one way. v1: the steps after the convolution also from the end, with another A. v2: all
    behind the input projection also from the end, with parameters of its own. v3: as v2, and also
    with the steps in the order 0, L/n, 2 L/n, ..., 1, L/n + 1, ... of n slices.
    """
    p = {name: value.double().numpy() for name, value in block.state_dict().items()}
    u, z = np.split(x.double().numpy() @ p["in_proj.weight"].T, 2, axis=2)
    length = u.shape[1]

    def along(order: np.ndarray, way: str) -> np.ndarray:
        y = np.zeros_like(u)
        taken = convolved(p, way, u[:, order])
        y[:, order] = scanned(p, way, f"A{way}_log", taken, z[:, order])
        return y

    back = np.arange(length)[::-1]
    y = along(np.arange(length), "")
    if kind == "v1":
        taken = convolved(p, "", u)
        y = y + scanned(p, "", "A_b_log", taken[:, back], z[:, back])[:, back]
    if kind in ("v2", "v3"):
        y = y + along(back, "_b")
    if kind == "v3":
        each = length // slices
        turns = [s * each + t for t in range(each) for s in range(slices)]
        y = y + along(np.array(turns), "_s")
    y = y / 2 if block.if_divide_out and kind == "v2" else y
    out: np.ndarray = y @ p["out_proj.weight"].T
    return out * p["gamma"] if "gamma" in p else out


def perturbed(block: Mamba) -> Mamba:
    """Every parameter its own, so that none can be taken for another."""
    with torch.no_grad():
        for value in block.parameters():
            value += 0.3 * torch.randn_like(value)
    return block.eval()


def check(block: Mamba, x: torch.Tensor, kind: str, slices: int = 1) -> None:
    with torch.no_grad():
        got = block(x).double().numpy()
    expected = oracle(block, x, kind, slices)
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


@DRAWN
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(2, 9)),
    states=st.integers(1, 5),
    how=st.sampled_from(
        [
            ("none", {}),
            ("none", {"bimamba": False}),
            ("v1", {"bimamba_type": "v1"}),
            ("v1", {"bimamba_type": "v1", "if_devide_out": True}),  # which Vim's v1 ignores
            ("v2", {"bimamba_type": "v2"}),
            ("v2", {"bimamba": True}),
            ("v2", {"bimamba_type": "v2", "if_devide_out": True}),
            ("v2", {"bimamba_type": "v2", "if_divide_out": True, "init_layer_scale": 0.5}),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_one_way_and_both_ways(
    sizes: tuple[int, int, int], states: int, how: tuple[str, dict[str, Any]], seed: int
) -> None:
    torch.manual_seed(seed)
    batch, length, dim = sizes
    kind, arguments = how
    block = perturbed(Mamba(dim, d_state=states, d_conv=3, **arguments))
    check(block, torch.randn(batch, length, dim), kind)


@DRAWN
@given(slices=st.integers(1, 5), each=st.integers(1, 4), seed=st.integers(0, 1000))
def test_segmambas_slices(slices: int, each: int, seed: int) -> None:
    torch.manual_seed(seed)
    block = perturbed(Mamba(6, d_state=3, bimamba_type="v3", nslices=slices))
    check(block, torch.randn(2, slices * each, 6), "v3", slices)


def test_segmambas_parameters_have_their_names_and_five_slices() -> None:
    block = Mamba(8, d_state=4, bimamba_type="v3")
    extra = set(block.state_dict()) - set(Mamba(8, bimamba_type="v2").state_dict())
    tails = ("conv1d_s.weight", "conv1d_s.bias", "x_proj_s.weight", "dt_proj_s.weight")
    assert extra == {"A_s_log", "D_s", "dt_proj_s.bias", *tails}
    assert block.nslices == 5
    with pytest.raises(InputError, match=r"12 steps, which nslices = 5 does not divide"):
        block(torch.randn(1, 12, 8))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bimamba_type": "v4"}, "bimamba_type is 'v4', expected 'none', 'v1', 'v2' or 'v3'"),
        ({"bimamba": True, "bimamba_type": "v1"}, "exclude each other"),
        ({"bimamba": False, "bimamba_type": "v2"}, "exclude each other"),
        ({"nslices": 4}, "nslices is 4 with bimamba_type 'none'"),
        ({"nslices": 0, "bimamba_type": "v3"}, "expected at least 1 with 'v3'"),
        ({"if_divide_out": True, "bimamba_type": "v3"}, "no published meaning"),
        ({"use_fast_path": False, "bimamba_type": "v2"}, "reads forwards only; leave"),
        ({"use_norm": True}, "no argument 'use_norm'.*put that package on PYTHONPATH"),
        ({"dt_init": "zero"}, "dt_init is 'zero'"),
    ],
)
def test_what_it_does_not_know_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Mamba(8, **arguments)


class Scaled(nn.Module):
    """A mixer, or an MLP, that is seen in the result."""

    def __init__(self, dim: int, by: float = 2.0) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor, inference_params: Any = None) -> torch.Tensor:
        return self.by * x


def normalised(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    weight, eps = norm.weight.detach().double().numpy(), float(norm.eps)
    if isinstance(norm, RMSNorm):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return y + norm.bias.detach().double().numpy()


@pytest.mark.parametrize("norm", [nn.LayerNorm, RMSNorm])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_blocks_add_norm_and_mix(norm: Any, fused: bool, mlp: bool) -> None:
    torch.manual_seed(0)
    if mlp:
        block = Block(6, Scaled, lambda dim: Scaled(dim, 3.0), norm, fused, True)
    else:
        block = MixerBlock(6, Scaled, norm, fused_add_norm=fused, residual_in_fp32=True)
    for value in block.parameters():
        nn.init.normal_(value)
    x, before = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    for residual in (None, before):
        total = x.double().numpy() + (0 if residual is None else residual.double().numpy())
        expected = 2 * normalised(total, block.norm)
        if mlp:
            total = total + expected
            expected = 3 * normalised(total, block.norm2)
        with torch.no_grad():
            y, kept = block(x, residual)
        for got, wanted in ((y, expected), (kept, total)):
            assert np.abs(got.double().numpy() - wanted).max() < 1e-5
    assert Block(6, Scaled, nn.Identity).mlp is None
    with pytest.raises(InputError, match="fused_add_norm with a BatchNorm1d"):
        MixerBlock(6, Scaled, nn.BatchNorm1d, fused_add_norm=True)
