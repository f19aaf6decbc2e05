"""MambaVision as its package on PyPI defines it, with random weights."""

from __future__ import annotations

from mambavision.models import mamba_vision


def micro():
    return mamba_vision.MambaVision(
        dim=16, in_dim=16, depths=[1, 1, 2, 2], window_size=[8, 8, 4, 2], mlp_ratio=4,
        num_heads=[2, 2, 2, 4], num_classes=10, drop_path_rate=0.0, resolution=64,
    )  # fmt: skip


def tiny():
    return mamba_vision.mamba_vision_T()
