"""Deformable attention's lookups against `grid_sample` and against sums written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tfanet.model.layers import deformable
from tfanet.model.layers.deformable import DeformableAttention, pixel_centres, sample_maps


def drawn(seed: int):
    """Maps, values and what queries read; a third of the places lie outside, some on an edge."""
    rng = np.random.default_rng(seed)
    sizes = [tuple(map(int, rng.integers(1, 9, 2))) for _ in range(rng.integers(1, 5))]
    batch, heads, dim, points, queries = map(int, rng.integers(1, 5, 5))
    pixels = sum(h * w for h, w in sizes)
    value = torch.from_numpy(rng.standard_normal((batch, pixels, heads, dim)))
    shape = (batch, queries, heads, len(sizes), points)
    sides = torch.tensor(sizes, dtype=torch.float64)
    x, y = (
        torch.from_numpy(rng.uniform(-0.75, 1.75, shape)) * sides[:, axis, None] for axis in (1, 0)
    )
    whole = torch.from_numpy(rng.random(shape) < 0.2)
    x, y = torch.where(whole, x.round(), x), torch.where(whole, y.round(), y)
    return sizes, value, x, y, torch.from_numpy(rng.standard_normal(shape))


def ours(sizes, value: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    flat = (t.flatten(2).float() for t in (x, y, weights))
    return sample_maps(value.float(), sizes, *flat)


@pytest.mark.parametrize("seed", range(20))
def test_equals_grid_sample(seed: int) -> None:
    sizes, value, x, y, weights = drawn(seed)
    batch, queries, heads = x.shape[:3]
    read = []
    for level, one in enumerate(value.split([h * w for h, w in sizes], 1)):
        h, w = sizes[level]
        maps = one.permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        # grid_sample's -1 and 1 are the outer edges of the first and the last pixel.
        grid = torch.stack([(2 * x[:, :, :, level] + 1) / w, (2 * y[:, :, :, level] + 1) / h], -1)
        grid = grid.transpose(1, 2).flatten(0, 1) - 1  # (B h, Q, points, 2)
        got = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        read.append(got.reshape(batch, heads, -1, queries, x.shape[4]))
    weighted = torch.stack(read, 4) * weights.transpose(1, 2).unsqueeze(2)  # (B, h, d, Q, l, p)
    expected = weighted.sum((4, 5)).permute(0, 3, 1, 2).flatten(2)
    assert ours(sizes, value, x, y, weights).double().allclose(expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", range(100, 104))
def test_equals_the_definition_in_float64(seed: int) -> None:
    sizes, value, x, y, weights = drawn(seed)
    expected = torch.zeros(*x.shape[:3], value.shape[3], dtype=torch.float64)
    start = 0
    for level, (h, w) in enumerate(sizes):
        one = value[:, start : start + h * w].unflatten(1, (h, w))
        start += h * w
        for b, q, head, p in np.ndindex(*x.shape[:3], x.shape[4]):
            place = (b, q, head, level, p)
            left, top = math.floor(x[place]), math.floor(y[place])
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= row < h and 0 <= column < w:
                    near = (1 - abs(x[place] - column)) * (1 - abs(y[place] - row))
                    expected[b, q, head] += weights[place] * near * one[b, row, column, head]
    got = ours(sizes, value, x, y, weights)
    assert got.double().allclose(expected.flatten(2), rtol=0, atol=2e-5)


def test_queries_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, value, x, y, weights = drawn(2)
    repeated = [t.repeat(1, 5, 1, 1, 1) for t in (x, y, weights)]
    whole = ours(sizes, value, *repeated)
    monkeypatch.setattr(deformable, "QUERIES_AT_ONCE", 2)
    assert torch.equal(ours(sizes, value, *repeated), whole)


def test_gradients_are_those_of_finite_differences() -> None:
    sizes = [(3, 4), (2, 2)]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 16, 2, 2, generator=generator)
    x, y, weights = (torch.rand(1, 3, 8, generator=generator) for _ in range(3))
    x, y = x * 3.6 + 0.2, y * 1.6 + 0.2  # between whole numbers, where it is smooth
    inputs = [t.requires_grad_() for t in (value, x, y, weights)]
    sample_maps(inputs[0], sizes, *inputs[1:]).square().sum().backward()
    for tensor in inputs:
        index = tuple(n // 2 for n in tensor.shape)
        ends = []
        for step in (1e-2, -1e-2):
            moved = [t.detach().clone() for t in inputs]
            moved[[t is tensor for t in inputs].index(True)][index] += step
            ends.append(sample_maps(moved[0], sizes, *moved[1:]).double().square().sum())
        assert tensor.grad is not None
        assert tensor.grad[index].item() == pytest.approx(
            ((ends[0] - ends[1]) / 2e-2).item(), rel=0.02, abs=2e-3
        )


def test_a_fresh_layer_reads_its_own_neighbourhood() -> None:
    """Without offsets and with even weights, each pixel of one map reads its own value."""
    sizes = [(3, 5)]
    layer = DeformableAttention(8, heads=2, maps=1, points=3)
    with torch.no_grad():
        layer.sampling_offsets.bias.zero_()
    x = torch.randn(2, 15, 8)
    with torch.no_grad():
        expected = layer.output_proj(layer.value_proj(x))
        got = layer(torch.randn_like(x), x, sizes, pixel_centres(sizes, 2, 3))
    assert got.allclose(expected, atol=1e-5)
