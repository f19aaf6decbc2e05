"""A picture in a box: resized with its sides' ratio kept, and what is left over filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tfanet.runtime.resize import resize_area, resize_bilinear

__all__ = ["Letterbox", "letterbox"]


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in the box; all sizes are (H, W) in pixels.

    With r = min(H / h, W / w) the picture becomes (round(h r), round(w r)), halves to even, 1 at
    least, and lies in the middle; an odd pixel of padding goes right or below. Back, the official
    code of ASDA cuts out int(h r) rows and int(w r) columns, of r in float32, from the same corner.

    Attributes:
        picture, size: of the picture, and of the box.
        resized: of the picture in the box.
        crop: top, left, bottom and right edge of what is cut out of the box on the way back.
    """

    picture: tuple[int, int]
    size: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]

    @classmethod
    def of(cls, picture: tuple[int, int], size: tuple[int, int]) -> Letterbox:
        """The place of a picture of the size `picture` in a box of `size`."""
        (height, width), (rows, columns) = picture, size
        ratio = min(rows / height, columns / width)
        resized = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        top, left = (rows - resized[0]) // 2, (columns - resized[1]) // 2
        single = np.float32(ratio)
        seen = [max(1, int(np.float32(side) * single)) for side in picture]
        return cls(picture, size, resized, (top, left, top + seen[0], left + seen[1]))


def letterbox(
    image: Image.Image, size: tuple[int, int], padding: tuple[int, int, int]
) -> np.ndarray:
    """An RGB picture in a box of `size` = (H, W), uint8 (H, W, 3), `padding` (RGB) around it.

    It is reduced by its exact area average, as OpenCV's INTER_AREA does but for rounding, and
    enlarged by Pillow's bilinear filter.
    """
    place = Letterbox.of((image.height, image.width), size)
    (height, width), (top, left) = place.resized, place.crop[:2]
    if height > image.height or width > image.width:
        pixels = np.asarray(resize_bilinear(image, place.resized))
    else:
        pixels = resize_area(image, place.resized)
    box = np.empty((*size, 3), np.uint8)
    box[:] = padding
    box[top : top + height, left : left + width] = pixels
    return box
