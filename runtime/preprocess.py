"""Pictures to tensors and logits to masks: the one definition that every part of tfanet uses.

Training, evaluation, the export's parity check and the runtimes all call these functions, so a
model never sees a picture prepared in two ways. NumPy and Pillow only.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from tfanet.runtime.bundle.contract import LETTERBOX, Postprocessing, Preprocessing
from tfanet.runtime.letterbox import Letterbox, letterbox
from tfanet.runtime.picture import ImageError
from tfanet.runtime.resize import resize_bilinear

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_RESIZE_BYTES",
    "check_resize",
    "image_to_tensor",
    "logits_to_mask",
    "picture_to_tensor",
    "plane_to_mask",
    "probability",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RESIZE_BYTES = 1 << 30  # of a picture that is resized along its rows only, and of such a mask


def image_to_tensor(
    image: Image.Image,
    size: tuple[int, int],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """RGB picture to float32 (3, H, W): resize to `size` = (H, W), scale to 0..1, normalise.

    The aspect ratio is ignored; the resize is Pillow's bilinear filter on 8-bit pixels, which
    averages over the whole footprint when it reduces. Then (x / 255 - mean) / std per channel.

    Raises:
        ImageError: where resizing would take more than 1 GiB, see `check_resize`.
    """
    check_resize((image.height, image.width), size)
    return _normalised(np.asarray(resize_bilinear(image, size)), mean, std)


def picture_to_tensor(image: Image.Image, facts: Preprocessing) -> np.ndarray:
    """RGB picture to float32 (3, H, W), stretched or letterboxed, as a bundle says.

    Raises:
        ImageError: where resizing would take more than 1 GiB, see `check_resize`.
    """
    if facts.resize != LETTERBOX:
        return image_to_tensor(image, facts.size, facts.mean, facts.std)
    check_resize((image.height, image.width), facts.size)
    assert facts.padding is not None
    return _normalised(letterbox(image, facts.size, facts.padding), facts.mean, facts.std)


def _normalised(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W): (x / 255 - mean) / std."""
    deviation = np.asarray(std, np.float64)
    scale = (1.0 / (255.0 * deviation)).astype(np.float32)
    shift = (np.asarray(mean, np.float64) / deviation).astype(np.float32)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    planes *= scale[:, None, None]
    planes -= shift[:, None, None]
    return planes


def check_resize(picture: tuple[int, int], model: tuple[int, int]) -> None:
    """Check what lies between the two steps of a resize, for the picture and for its mask.

    Both are taken along their rows first: the picture then has its own height and the model's
    width (4 bytes a pixel), the mask the model's height and the picture's width (float32).

    Args:
        picture, model: sizes (H, W) in pixels.

    Raises:
        ImageError: where either is above MAX_RESIZE_BYTES.
    """
    (height, width), (rows, columns) = picture, model
    needed = 4 * max(height * columns, rows * width)
    if needed > MAX_RESIZE_BYTES:
        raise ImageError(
            f"the image is {width}x{height} pixels, too long for a model of {columns}x{rows}: "
            f"resizing it would take {needed:,} bytes, the limit is {MAX_RESIZE_BYTES:,}: reduce "
            "it first"
        )


def logits_to_mask(
    logits: np.ndarray, size: tuple[int, int], threshold: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mask logits (h, w) to a bool mask (H, W) at the picture's own size, and the resized logits.

    The resize is Pillow's bilinear filter on float32 (half-pixel centres; it averages when it
    reduces). A pixel is set where its logit is above `threshold`.
    """
    height, width = size
    plane = np.ascontiguousarray(logits, dtype=np.float32)
    if plane.shape != (height, width):
        plane = np.asarray(resize_bilinear(Image.fromarray(plane), size))
    return plane > threshold, plane


def plane_to_mask(
    logits: np.ndarray, size: tuple[int, int], pre: Preprocessing, post: Postprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Mask logits (h, w) to a bool mask (H, W) at the picture's own size, and what it compares.

    The values, logits or probabilities, are resized by Pillow's bilinear filter; of a letterbox
    first to the model's size, where the padding is cut away. A pixel is set where its value is
    above the threshold.
    """
    plane = np.ascontiguousarray(logits, dtype=np.float32)
    if post.value == "probability":
        plane = probability(plane)
    if pre.resize == LETTERBOX:
        if plane.shape != pre.size:
            plane = np.asarray(resize_bilinear(Image.fromarray(plane), pre.size))
        top, left, bottom, right = Letterbox.of(size, pre.size).crop
        plane = np.ascontiguousarray(plane[top:bottom, left:right])
    return logits_to_mask(plane, size, post.threshold)


_LOG2_E = 1.4426950408889634
_LN_2 = (0.6931471803691238, 1.9082149292705877e-10)  # its upper bits, and the rest
_TERMS = tuple(1 / math.factorial(n) for n in range(13, -1, -1))


def probability(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) of float32, to the nearest float32.

    By float64 additions, products and one division in an order of its own, so that C++ has the same
    bits: the exponential of every C library rounds in its own way.
    """
    x = np.clip(-logits.astype(np.float64), -700, 700)
    power = np.rint(x * _LOG2_E)
    rest = (x - power * _LN_2[0]) - power * _LN_2[1]
    total = np.zeros_like(rest)
    for term in _TERMS:  # exp(rest), |rest| <= ln(2) / 2, by its Taylor series
        total = total * rest + term
    finite = np.nan_to_num(power).astype(np.int32)
    return (1 / (1 + np.ldexp(total, finite))).astype(np.float32)
