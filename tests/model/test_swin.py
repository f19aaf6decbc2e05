"""Swin against transformers' own, whose names differ and whose windows are cut otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinBackbone, SwinConfig

from tfanet.errors import InputError
from tfanet.model.layers.swin import (
    PatchEmbed,
    PatchMerging,
    SwinBlock,
    drop_path_rates,
    init_swin,
    relative_position_index,
    swin_blocks,
    without_position_index,
)

DIM, DEPTHS, HEADS = 8, (2, 1, 3), (1, 2, 4)
STAGES = range(len(DEPTHS))


class Swin(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(DIM)
        rates = drop_path_rates(DEPTHS, 0.0)
        self.blocks = nn.ModuleList(
            swin_blocks(DIM << i, HEADS[i], window, rates[i]) for i in STAGES
        )
        self.downsample = nn.ModuleList(PatchMerging(DIM << i) for i in STAGES[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(DIM << i) for i in STAGES)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = (image.shape[2] // 4, image.shape[3] // 4)
        x, maps = self.patch_embed(image), []
        for i in STAGES:
            for block in self.blocks[i]:
                x = block(x, size)
            maps.append(self.norms[i](x).transpose(1, 2).unflatten(2, size))
            if i < STAGES[-1]:
                x = self.downsample[i](x, size)
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return maps


def their_name(name: str) -> str:
    """Of a parameter here, by transformers' names."""
    stem, _, rest = name.partition(".")
    if stem == "patch_embed":
        rest = rest.replace("proj", "patch_embeddings.projection")
        return f"swin.embeddings.{rest}"
    index, _, rest = rest.partition(".")
    if stem == "norms":
        return f"hidden_states_norms.stage{int(index) + 1}.{rest}"
    for ours, theirs in (
        ("attn.proj", "attention.o_proj"),
        ("attn.rel", "attention.relative_position_bias.rel"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
    ):
        rest = rest.replace(ours, theirs)
    return f"swin.encoder.layers.{index}.{stem}.{rest}"


def their_swin(ours: Swin, window: int) -> SwinBackbone:
    config = SwinConfig(
        embed_dim=DIM, depths=list(DEPTHS), num_heads=list(HEADS), window_size=window,
        drop_path_rate=0.0, out_features=[f"stage{i + 1}" for i in STAGES],
    )  # fmt: skip
    theirs = SwinBackbone(config).eval()
    state = {}
    for name, value in ours.state_dict().items():
        if "qkv" in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                key = their_name(name).replace("attn.qkv", f"attention.{part}_proj")
                state[key] = rows
        else:
            state[their_name(name)] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"swin.layernorm.weight", "swin.layernorm.bias"}
    return theirs


# Maps smaller than a window are padded here, which makes the windows of transformers smaller.
@pytest.mark.parametrize(
    ("window", "height", "width"), [(2, 64, 96), (3, 68, 100), (4, 84, 124), (5, 96, 136)]
)
def test_swin_is_transformers_swin(window, height, width):
    torch.manual_seed(window)
    ours = Swin(window).eval()
    with torch.no_grad():
        for p in ours.parameters():  # far from the start, where biases are nothing
            p.normal_(std=0.3)
        image = torch.randn(2, 3, height, width)
        expected = their_swin(ours, window)(image).feature_maps
        for got, want in zip(ours(image), expected, strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def test_pixels_of_a_block_see_their_window_alone():
    """Which pixels a pixel depends on: its window, moved by half a window in a shifted block, and
    of the windows at the edge, which hold both ends of the map, the same end alone."""
    torch.manual_seed(0)
    size, w = (8, 8), 4
    for shift in (0, 2):
        block = SwinBlock(6, 2, w, shift)
        with torch.no_grad():
            for p in block.parameters():
                p.normal_(std=0.3)
        x = torch.randn(1, 64, 6, requires_grad=True)
        out = block(x, size)
        for place in range(64):
            (grad,) = torch.autograd.grad(out[0, place].sum(), x, retain_graph=True)
            seen = grad[0].abs().sum(1).reshape(size) > 1e-20  # masked: below e^-80
            row, column = divmod(place, 8)

            def end(at: int, shift: int = shift) -> tuple[int, int]:
                if not shift:
                    return (at // w * w, at // w * w + w)
                return (0, 2) if at < 2 else (2, 6) if at < 6 else (6, 8)

            expected = torch.zeros(size, dtype=torch.bool)
            (top, bottom), (left, right) = end(row), end(column)
            expected[top:bottom, left:right] = True
            assert torch.equal(seen, expected), (shift, place)


def test_the_index_is_the_official_one():
    """By the official recipe: coordinates of all pixels, their differences, moved to start at 0."""
    for window in (1, 4, 12):
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()], 1)
        difference = places[:, None] - places[None] + window - 1
        official = difference[..., 0] * (2 * window - 1) + difference[..., 1]
        assert torch.equal(relative_position_index(window), official)


def test_an_official_index_is_checked_and_dropped():
    name = "blocks.0.attn.relative_position_index"
    index, weight = relative_position_index(4), torch.ones(3)
    kept = without_position_index({name: index, "w": weight}, 4)
    assert list(kept) == ["w"] and kept["w"] is weight
    assert list(without_position_index({f"a.{name}": index, name: weight}, 4, "a.")) == [name]
    for other in (relative_position_index(3), index.flip(0), index[:3]):
        with pytest.raises(InputError, match=r"blocks.0.*4 x 4.*another model"):
            without_position_index({name: other}, 4)


def test_drop_rates_rise_over_all_stages():
    rates = drop_path_rates((2, 1, 3), 0.5)
    assert [len(r) for r in rates] == [2, 1, 3]
    assert [r for stage in rates for r in stage] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_fresh_weights():
    torch.manual_seed(0)
    blocks = swin_blocks(64, 2, 4, [0.0]).apply(init_swin)
    attn = blocks[0].attn
    assert attn.qkv.bias.abs().max() == 0
    for value in (attn.qkv.weight, attn.relative_position_bias_table):
        assert value.std().item() == pytest.approx(0.02, rel=0.2)
