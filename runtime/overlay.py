"""Write a mask as a picture, alone or laid over the image it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from tfanet.runtime.picture import ImageError

__all__ = ["check_mask_name", "overlay", "save_mask", "save_overlay"]

# A tint would not show on an object of its own colour: what lies outside is darkened instead.
OUTSIDE = 0.35
OUTLINE = (255, 220, 0)
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".mpo")


def check_mask_name(path: str | Path) -> None:
    """Raises ImageError for a name of a format that changes pixels when it is written."""
    if Path(path).suffix.lower() in LOSSY:
        raise ImageError(f"{path} is of a format that changes pixels of a mask: name a .png file")


def save_mask(mask: np.ndarray, path: str | Path) -> None:
    """Write a mask (H, W) of bools as an 8-bit picture: 255 where it is set, else 0.

    Raises:
        ImageError: where the file cannot be written, or its name ends like no picture's, or like
            that of one which loses something, such as .jpg.
    """
    check_mask_name(path)
    _save(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)), path)


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The RGB image as it is where the mask (H, W) is set, outlined, and dark elsewhere."""
    stencil = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    outline = np.asarray(stencil.filter(ImageFilter.MaxFilter(3))) > np.asarray(stencil)
    dark = Image.blend(Image.new("RGB", image.size), image, OUTSIDE)
    result = np.array(Image.composite(image, dark, stencil))
    result[outline] = OUTLINE
    return Image.fromarray(result)


def save_overlay(image: Image.Image, mask: np.ndarray, path: str | Path) -> None:
    """Write `overlay` of an image and its mask as a picture; raises ImageError if that fails."""
    _save(overlay(image, mask), path)


def _save(picture: Image.Image, path: str | Path) -> None:
    try:
        picture.save(path)
    except Exception as error:  # of the file system, an unknown ending, or a format's own limits
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{path} cannot be written ({cause}): name a .png file") from error
