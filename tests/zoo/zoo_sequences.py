"""Models on mamba-ssm's block: a bidirectional one as Vim, a text-conditioned one as ReMamber."""

from __future__ import annotations

import torch
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.triton.layer_norm import RMSNorm, rms_norm_fn
from torch import nn


class Vim(nn.Module):
    """Patches, a class token in the middle, bidirectional Mamba blocks with fused add and norm."""

    def __init__(self, dim, depth, image=224, patch=16, classes=1000, **mixer):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        tokens = (image // patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.mixers = nn.ModuleList(
            Mamba(d_model=dim, bimamba_type="v2", if_divide_out=True, layer_idx=i, **mixer)
            for i in range(depth)
        )
        self.norms = nn.ModuleList(RMSNorm(dim, eps=1e-5) for _ in range(depth + 1))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        middle = x.shape[1] // 2
        token = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([x[:, :middle], token, x[:, middle:]], dim=1) + self.pos_embed
        residual = None
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            x, residual = rms_norm_fn(
                x, norm.weight, norm.bias, residual, prenorm=True, residual_in_fp32=True,
                eps=norm.eps,
            )  # fmt: skip
            x = mixer(x, inference_params=None)
        last = self.norms[-1]
        x = rms_norm_fn(x, last.weight, last.bias, residual, eps=last.eps)
        return self.head(x[:, middle])


class TextConditioned(nn.Module):
    """ReMamber's idea: sentence tokens run before the pixels through scans in both directions."""

    def __init__(self, dim=32):
        super().__init__()
        self.image, self.text = nn.Conv2d(3, dim, 8, 8), nn.Embedding(64, dim)
        self.forwards, self.backwards = Mamba(dim, d_state=8), Mamba(dim, d_state=8)
        self.mask = nn.Linear(dim, 1)

    def forward(self, image, token_ids):
        pixels = self.image(image)
        height, width = pixels.shape[2:]
        words = self.text(token_ids)
        sequence = torch.cat([words, pixels.flatten(2).transpose(1, 2)], dim=1)
        mixed = self.forwards(sequence) + self.backwards(sequence.flip(1)).flip(1)
        logits = self.mask(mixed[:, words.shape[1] :])
        return {"mask": logits.transpose(1, 2).unflatten(2, (height, width))}


def vim_micro():
    return Vim(32, 2, image=64, patch=16, classes=10, d_state=4)


def vim_tiny():
    return Vim(192, 24)


def text_conditioned():
    return TextConditioned()
