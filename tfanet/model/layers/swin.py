"""Swin Transformer: parameter names, shapes and function of the official models.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al., 2021). A map
is kept as tokens x (B, N, C), N = H W row by row, beside its size (H, W) in whole numbers. w is the
side of a window, h the heads of a block, n the number of windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.layers.drop_path import DropPath

__all__ = [
    "PATCH",
    "PatchEmbed",
    "PatchMerging",
    "SwinBlock",
    "drop_path_rates",
    "init_swin",
    "look_at_neighbours",
    "relative_position_index",
    "swin_blocks",
    "without_position_index",
]

PATCH = 4
SHIFT_MASK = -100.0  # added where two pixels of a window come from different ends of the map
GAIN = 0.8  # size of what a narrow linear layer gives, in sizes of what it takes
STEEP = -4.0  # what a head's bias loses at one pixel from where it looks
INDEX = "attn.relative_position_index"

Value = TypeVar("Value", bound=Tensor)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of pixels of a window, (w^2, w^2) int64.

    (dy + w - 1)(2w - 1) + dx + w - 1, with (dy, dx) the query's place minus the key's.
    """
    place = torch.arange(window)
    # (query row, query column, key row, key column)
    dy = place[:, None, None, None] - place[:, None] + window - 1
    dx = place[:, None, None] - place + window - 1
    return (dy * (2 * window - 1) + dx).reshape(window**2, window**2)


def without_position_index(
    tensors: Mapping[str, Value], window: int, prefix: str = ""
) -> dict[str, Value]:
    """Official weights without their `relative_position_index`, which is no parameter.

    Raises:
        InputError: where one, behind `prefix`, is not what every Swin of this window has: the
            biases would be read at other places than those they were trained for.
    """
    expected = relative_position_index(window)
    kept = {}
    for name, value in tensors.items():
        if not (name.startswith(prefix) and name.endswith(INDEX)):
            kept[name] = value
        elif not torch.equal(value.cpu().to(torch.int64), expected):
            raise InputError(
                f"{name} {tuple(value.shape)} is not the index of a window of {window} x {window}:"
                " the checkpoint is of another model"
            )
    return kept


def drop_path_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Drop rates of the blocks of each stage: they rise linearly from 0 to `last`."""
    total = sum(depths)
    rates = [last * block / max(1, total - 1) for block in range(total)]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


def init_swin(module: nn.Module) -> None:
    """Fresh weights as the official models start with; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def look_at_neighbours(module: nn.Module) -> None:
    """Fresh weights by which blocks see neighbours from the start; for `nn.Module.apply`.

    Nine heads begin as a convolution of 3 x 3, as in "ConViT: Improving Vision Transformers with
    Soft Convolutional Inductive Biases" (d'Ascoli et al., 2021). Linear layers keep the size of
    what passes through them; with the official 0.02 they do at a width of 1,600. Without either,
    windows that no other training left behind need many times the pictures to see what a shape is.
    """
    if isinstance(module, SwinBlock | PatchMerging):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=GAIN * layer.in_features**-0.5)
    if not isinstance(module, WindowAttention):
        return
    near = torch.arange(1.0 - module.window, module.window)
    dy, dx = torch.meshgrid(near, near, indexing="ij")  # the query's place minus the key's
    for head in range(module.heads):
        up, left = head // 3 % 3 - 1, head % 3 - 1
        bias = STEEP * ((dy - up) ** 2 + (dx - left) ** 2)
        with torch.no_grad():
            module.relative_position_bias_table[:, head] = bias.clamp_min(2 * STEEP).flatten()


def swin_blocks(
    dim: int, heads: int, window: int, drop_paths: Sequence[float], mlp_ratio: float = 4.0
) -> nn.ModuleList:
    """The blocks of a stage, one for each drop rate; every second one is shifted by half a window.

    Args:
        dim: C. heads: h. window: w. mlp_ratio: width of the MLP in between, over C.
    """
    shifts = (0, window // 2)
    return nn.ModuleList(
        SwinBlock(dim, heads, window, shifts[b % 2], rate, mlp_ratio)
        for b, rate in enumerate(drop_paths)
    )


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels to tokens. dim: C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of 4, to tokens (B, H/4 W/4, C)."""
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))


class PatchMerging(nn.Module):
    """Halves the map's sides: the four pixels of a square side by side, 4C, to 2C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (B, H W, C) of `size` (H, W) to (B, ceil(H/2) ceil(W/2), 2C)."""
        height, width = size
        channels = x.shape[-1]
        x = _padded(x.reshape(x.shape[0], height, width, channels), 2)
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x.reshape(x.shape[0], rows, 2, columns, 2, channels)
        # Official order: (even row, even column), (odd, even), (even, odd), (odd, odd).
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(x.shape[0], rows * columns, 4 * channels)
        return self.reduction(self.norm(x))


class WindowAttention(nn.Module):
    """Self-attention inside each window: softmax(q k^T / sqrt(C / h) + bias + mask) v."""

    index: Tensor  # of the bias table, (w^4)

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_position_index(window).flatten(), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (B, n, w^2, C) and mask (n, 1, w^2, w^2) or None, to the same shape as x."""
        count, pixels, channels = x.shape[1:]
        split = (x.shape[0], count, pixels, self.heads, channels // self.heads)
        q, k, v = (part.reshape(split).transpose(2, 3) for part in self.qkv(x).chunk(3, dim=-1))
        q = q * (channels // self.heads) ** -0.5
        logits = q @ k.transpose(3, 4) + self._bias()  # (B, n, h, w^2, w^2)
        if mask is not None:
            logits = logits + mask
        out = logits.softmax(dim=-1) @ v  # (B, n, h, w^2, C / h)
        return self.proj(out.transpose(2, 3).reshape(x.shape[0], count, pixels, channels))

    def _bias(self) -> Tensor:
        """(h, w^2, w^2): one lookup of rows, which is one node in a graph."""
        pixels = self.window**2
        bias = F.embedding(self.index, self.relative_position_bias_table)  # (w^4, h)
        return bias.reshape(pixels, pixels, self.heads).permute(2, 0, 1)


class MLP(nn.Module):
    """fc2(GELU(fc1(x))) on every token."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x += Attention(LN(x)) in windows, shifted or not; x += MLP(LN(x)).

    The map is padded with zeros, right and below, to whole windows. The padding takes part as keys,
    as in the official code.

    Args:
        dim: C. heads: h. window: w. shift: pixels by which the windows are moved right and down.
        drop_path: rate. mlp_ratio: width of the MLP in between, over C.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens x (B, H W, C) of a map of `size` (H, W) to the same."""
        x = x + self.drop_path(self._attend(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        (height, width), w, channels = size, self.window, x.shape[-1]
        x = _padded(x.reshape(x.shape[0], height, width, channels), w)
        padded_height, padded_width = x.shape[1:3]
        rows, columns = padded_height // w, padded_width // w
        mask = None
        if self.shift:
            x = x.roll(-self.shift, 1).roll(-self.shift, 2)  # one axis at a time: plain slices
            mask = self._shift_mask(padded_height, padded_width, x)
        x = x.reshape(x.shape[0], rows, w, columns, w, channels).transpose(2, 3)
        x = self.attn(x.reshape(x.shape[0], rows * columns, w * w, channels), mask)
        x = x.reshape(x.shape[0], rows, columns, w, w, channels).transpose(2, 3)
        x = x.reshape(x.shape[0], padded_height, padded_width, channels)
        if self.shift:
            x = x.roll(self.shift, 1).roll(self.shift, 2)
        return x[:, :height, :width].reshape(x.shape[0], height * width, channels)

    def _shift_mask(self, height: int, width: int, like: Tensor) -> Tensor:
        """(n, 1, w^2, w^2): 0 between pixels of one region, `SHIFT_MASK` between those of two.

        Numbers of regions, not the mask itself, are what a graph stores: w^2 times fewer.
        """
        w = self.window

        def regions(side: int) -> Tensor:  # [0, side - w), [side - w, side - shift), the rest
            place = torch.arange(side, device=like.device)
            return (place >= side - w).long() + (place >= side - self.shift).long()

        region = 3 * regions(height)[:, None] + regions(width)
        region = region.reshape(height // w, w, width // w, w).transpose(1, 2)
        region = region.reshape(-1, 1, w * w)  # (n, 1, w^2)
        same = region[:, :, :, None] == region[:, :, None, :]
        return torch.where(same, 0.0, SHIFT_MASK).to(like.dtype)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """(B, H, W, C) with zeros to the right and below, up to multiples of a number."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x
