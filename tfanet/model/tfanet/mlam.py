"""KPS, the first stage of fusion: MLAM aligns pixels and words, then builds the fusion block.

Equation numbers are the paper's. F_VL is image-shaped (B, C, H, W), F_LV word-shaped (B, C, L);
the mask m (B, 1, L) is 1 on words and 0 on padding. The glossary stands in
`tfanet.model.tfanet.ss2d`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.wide import wide
from tfanet.model.tfanet.ss2d import LayerNorm2d

__all__ = ["MLAM", "CrossAttention", "FusionBlock", "Gate", "mean_word", "x_norm"]

SCALES = (1, 3, 5)


def x_norm(x: Tensor, gamma: Tensor, dim: int) -> Tensor:
    """X(x) = gamma x / sqrt(sum x^2 + 1e-6) along the embedding axis `dim` (eq. 9), in float32."""
    x = wide(x)
    return x * (wide(gamma) * torch.rsqrt(x.square().sum(dim, keepdim=True) + 1e-6))


def mean_word(words: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid words, in float32: (B, C, L), (B, 1, L) to (B, C, 1)."""
    words, mask = wide(words), wide(mask)
    return (words * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1)


class MLAM(nn.Module):
    """Multi-scale linear cross-attention in both directions (eqs. 4-15).

    Args:
        dim: C. text_dim: T. align_dim: d.
    """

    def __init__(self, dim: int, text_dim: int, align_dim: int) -> None:
        super().__init__()
        d = align_dim
        # q, k and v stand side by side in one projection: 3d rows.
        self.image_proj = nn.Conv2d(dim, 3 * d, 1)
        self.image_scales = nn.ModuleList(
            nn.Conv2d(3 * d, 3 * d, k, padding=k // 2, groups=3 * d) for k in SCALES[1:]
        )
        self.text_scales = nn.ModuleList(
            nn.Conv1d(text_dim, 3 * d, k, padding=k // 2) for k in SCALES
        )
        # gamma[direction, scale, (Q, KV)] and w[direction, scale]; directions: words, pixels
        self.gamma = nn.Parameter(torch.ones(2, len(SCALES), 2))
        self.w = nn.Parameter(torch.full((2, len(SCALES)), 1 / len(SCALES)))
        self.image_out = nn.Conv2d(d, dim, 1)
        self.text_out = nn.Conv1d(d, dim, 1)
        nn.init.trunc_normal_(self.image_out.weight, std=0.02)
        nn.init.trunc_normal_(self.text_out.weight, std=0.02)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """F_V (B, C, H, W), F_W (B, T, L), m (B, 1, L) to F_VL (B, C, H, W), F_LV (B, C, L)."""
        height, width = image.shape[2:]
        scaling = (height * width) ** -0.5
        base = self.image_proj(image)  # (B, 3d, H, W)
        words = words * mask
        word_sum, image_sum = words.new_zeros(()), words.new_zeros(())
        for index in range(len(SCALES)):
            scaled = base if index == 0 else self.image_scales[index - 1](base)
            qi, ki, vi = scaled.flatten(2).chunk(3, dim=1)  # (B, d, n)
            qt, kt, vt = (self.text_scales[index](words) * mask).chunk(3, dim=1)  # (B, d, L)
            gamma, w = self.gamma[:, index], self.w[:, index]
            # eqs. 5-10, text queries, image keys and values. Both are scaled by n^-1/2, which
            # X-Norm undoes: the sum over n pixels then stays inside float16.
            kv = (ki * scaling) @ (vi * scaling).transpose(1, 2)  # (B, d, d)
            word_sum = word_sum + w[0] * _attend(qt, kv, gamma[0])
            # eqs. 11-15, image queries, text keys and values
            image_sum = image_sum + w[1] * _attend(qi, kt @ vt.transpose(1, 2), gamma[1])
        f_lv = self.text_out(word_sum) * mask
        f_vl = self.image_out(image_sum.unflatten(2, (height, width)))
        return f_vl, f_lv


def _attend(q: Tensor, kv: Tensor, gamma: Tensor) -> Tensor:
    """X(Q^T) X(K V^T), transposed: (B, d, n), (B, d, d) to (B, d, n)."""
    queries = x_norm(q, gamma[0], dim=1)
    values = x_norm(kv, gamma[1], dim=2)
    return (values.transpose(1, 2) @ queries).to(q.dtype)


class CrossAttention(nn.Module):
    """Plain softmax cross-attention in both directions, in MLAM's place (ablation)."""

    def __init__(self, dim: int, text_dim: int, align_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Conv2d(dim, 3 * align_dim, 1)
        self.text_proj = nn.Conv1d(text_dim, 3 * align_dim, 1)
        self.image_out = nn.Conv2d(align_dim, dim, 1)
        self.text_out = nn.Conv1d(align_dim, dim, 1)
        nn.init.trunc_normal_(self.image_out.weight, std=0.02)
        nn.init.trunc_normal_(self.text_out.weight, std=0.02)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes as in `MLAM.forward`."""
        height, width = image.shape[2:]
        qi, ki, vi = self.image_proj(image).flatten(2).transpose(1, 2).chunk(3, dim=2)
        qt, kt, vt = self.text_proj(words * mask).transpose(1, 2).chunk(3, dim=2)
        padding = (1.0 - mask.to(qi.dtype)) * -1e4  # finite, so that float16 stays defined
        f_lv = F.scaled_dot_product_attention(qt, ki, vi)  # (B, L, d)
        f_vl = F.scaled_dot_product_attention(qi, kt, vt, attn_mask=padding)  # (B, n, d)
        f_vl = f_vl.transpose(1, 2).unflatten(2, (height, width))
        return self.image_out(f_vl), self.text_out(f_lv.transpose(1, 2)) * mask


class Gate(nn.Module):
    """The baseline of Table 4: F_VL = F_V times the mean projected word."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Conv1d(text_dim, dim, 1)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes as in `MLAM.forward`."""
        f_lv = self.text_proj(words) * mask
        return image * mean_word(f_lv, mask).to(image.dtype).unsqueeze(-1), f_lv


class FusionBlock(nn.Module):
    """F_Block of eqs. 16-19: pixels, words and their correlation side by side.

    Args:
        dim: C. text_dim: T. align_dim: d. length: L, which fixes the convolution of eq. 17.
    """

    def __init__(self, dim: int, text_dim: int, align_dim: int, length: int) -> None:
        super().__init__()
        self.scaling = align_dim**-0.5
        self.image_proj = nn.Conv2d(dim, align_dim, 1, bias=False)
        self.text_proj = nn.Conv1d(dim, align_dim, 1, bias=False)
        self.correlate = nn.Conv2d(length, dim, 3, padding=1)
        self.sentence_proj = nn.Linear(text_dim, dim)
        self.norm = LayerNorm2d(3 * dim)
        for layer in (self.image_proj, self.text_proj, self.sentence_proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(
        self, image: Tensor, f_vl: Tensor, f_lv: Tensor, sentence: Tensor, mask: Tensor
    ) -> Tensor:
        """F_V, F_VL (B, C, H, W), F_LV (B, C, L), F_T (B, T), m (B, 1, L) to (B, 3C, H, W)."""
        height, width = image.shape[2:]
        pixels = self.image_proj(f_vl).flatten(2)  # (B, d, n)
        words = self.text_proj(f_lv) * self.scaling  # (B, d, L)
        f_f = (words.transpose(1, 2) @ pixels) * mask.transpose(1, 2)  # eq. 16, (B, L, n)
        f_c = self.correlate(f_f.unflatten(2, (height, width)))  # eq. 17, (B, C, H, W)
        a = image + f_vl
        b = mean_word(f_lv, mask).squeeze(2).to(image.dtype) + self.sentence_proj(sentence)
        b = b[:, :, None, None].expand_as(a)  # eq. 18
        return self.norm(torch.cat([a, b, f_c], dim=1))  # eq. 19
