"""Write a mask as a picture, alone or laid over the image it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["save_mask", "save_overlay"]

TINT = (255, 48, 64)
STRENGTH = 0.5


def save_mask(mask: np.ndarray, path: str | Path) -> None:
    """Write a mask (H, W) of bools as an 8-bit picture: 255 where it is set, else 0."""
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def save_overlay(image: Image.Image, mask: np.ndarray, path: str | Path) -> None:
    """Write the RGB image with the mask (H, W) tinted and its outline drawn."""
    stencil = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    tinted = Image.blend(image, Image.new("RGB", image.size, TINT), STRENGTH)
    outline = np.asarray(stencil.filter(ImageFilter.MaxFilter(3))) > np.asarray(stencil)
    result = np.array(Image.composite(tinted, image, stencil))
    result[outline] = TINT
    Image.fromarray(result).save(path)
