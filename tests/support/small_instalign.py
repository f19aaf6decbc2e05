"""The smallest InstAlign that has every part."""

from __future__ import annotations

from dataclasses import replace

from tfanet.model.instalign.config import PRESETS, TextConfig

SMALL = replace(
    PRESETS["instalign-tiny"],
    image_size=(64, 64),
    width=8,
    depths=(1, 1, 1, 1),
    heads=(1, 2, 4, 8),
    window=4,
    text=TextConfig(width=16, layers=1, heads=2, intermediate=32, vocabulary=50, positions=16),
    text_length=8,
    queries=5,
    decoder_dim=32,
    decoder_inner=32,
    pixel_inner=32,
)
