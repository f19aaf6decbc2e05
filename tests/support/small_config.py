"""The smallest TFANet that has every part."""

from __future__ import annotations

from dataclasses import replace

from tfanet.model.tfanet.config import PRESETS, TextConfig

SMALL = replace(
    PRESETS["tfanet-tiny"],
    dims=(8, 12, 16, 24),
    depths=(1, 1, 1, 1),
    text=TextConfig(width=16, layers=1, heads=2, intermediate=32),
    text_length=8,
    align_dim=8,
    decoder_dim=8,
    grid=2,
    image_size=(64, 64),
)
