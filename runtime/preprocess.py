"""Pictures to tensors and logits to masks: the one definition that every part of tfanet uses.

Training, evaluation, the export's parity check and the runtimes all call these functions, so a
model never sees a picture prepared in two ways. NumPy and Pillow only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from tfanet.errors import InputError
from tfanet.runtime.bundle.contract import LETTERBOX, Postprocessing, Preprocessing
from tfanet.runtime.letterbox import Letterbox, letterbox
from tfanet.runtime.resize import resize_bilinear

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "MAX_RESIZE_BYTES",
    "MAX_SIDE",
    "MIN_SIDE",
    "ImageError",
    "check_resize",
    "image_to_tensor",
    "load_image",
    "logits_to_mask",
    "open_picture",
    "picture_to_tensor",
    "plane_to_mask",
    "probability",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIDE = 2
MAX_SIDE = 65_535  # the most that a JPEG can say
MAX_PIXELS = 64_000_000
MAX_RESIZE_BYTES = 1 << 30  # of a picture that is resized along its rows only, and of such a mask
# Told by content, whatever the name: Pillow knows others that start programs (PostScript) or whose
# decoders few have looked at. A phone's JPEG of several pictures calls itself MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"

TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323  # tags
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(InputError):
    """A picture that cannot be used: missing, truncated, too small, too large, or of a bad type."""


def open_picture(path: str | Path) -> Image.Image:
    """A picture file by its header, its size checked, no pixel decoded yet; close it after use.

    Raises:
        ImageError: where it is missing, is none of JPEG, PNG, WebP, BMP, GIF, TIFF and PPM by its
            content, cannot be read, or is too small or too large.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the path of the picture") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not a picture of a kind that is read here: save it as {_FORMAT_NAMES}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels: reduce it first") from None
    except Exception as error:  # of the file system, or of a decoder at a damaged header
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{path} cannot be read ({cause}): name a picture file") from error
    try:
        _check_size(image.size, str(path))
    except ImageError:
        image.close()
        raise
    return image


def load_image(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    Args:
        source: a path, a PIL image, or an array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or
            uint16. Files are JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF or PPM, whatever
            their names. EXIF orientation is honoured; transparency is laid on white; of 16-bit
            pictures the upper 8 bits are used.

    Raises:
        ImageError: where it is missing, truncated, above 64 megapixels, a side is below 2 or above
            65,535 pixels, or it is not such a picture. The size is read from the header, before
            any pixel is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        if isinstance(source, ImageFile) and source.format not in (*FORMATS, "MPO"):
            raise ImageError(
                f"the image is a {source.format} file: convert it yourself, image.convert('RGB'), "
                f"if you trust its decoder, or save it as {_FORMAT_NAMES}"
            )
        _check_size(source.size, "the image")
        return _decoded(source, "the image")
    if not isinstance(source, str | Path):
        raise ImageError(
            f"the image is a {type(source).__name__}: give a path, a PIL image or a uint8 array"
        )
    with open_picture(source) as image:
        return _decoded(image, str(source))


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


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"the image array is {array.dtype}: give uint8 (0..255) or uint16")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"the image array has shape {array.shape}: give (H, W), (H, W, 3) or (H, W, 4)"
        )
    _check_size((array.shape[1], array.shape[0]), "the image array")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageError(f"{name} is {width}x{height} pixels: each side must be {MIN_SIDE} or more")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} pixels, the limit is {MAX_PIXELS:,}: reduce it first"
        )
    if max(size) > MAX_SIDE:
        raise ImageError(
            f"{name} is {width}x{height} pixels, a side may have at most {MAX_SIDE:,}: reduce it "
            "first"
        )


def _check_tiles(image: Image.Image, name: str) -> None:
    """A small TIFF may be stored in tiles of any size, each of which is decoded as a whole."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in (TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT))
    if isinstance(width, int) and isinstance(height, int) and width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is stored in tiles of {width}x{height} pixels, the limit is {MAX_PIXELS:,}: "
            "save it again"
        )


def _decoded(image: Image.Image, name: str) -> Image.Image:
    """Decodes what Pillow has opened so far only by its header."""
    _check_tiles(image, name)
    try:
        return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise all kinds on damaged data
        cause = " ".join(str(error).split())
        raise ImageError(f"{name} is damaged ({cause}): copy or save it again") from error


def _to_rgb(image: Any) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError("the image has float pixels of unknown range: save it with 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image) >> 8
        image = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
