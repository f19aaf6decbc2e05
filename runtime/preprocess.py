"""Pictures to tensors and logits to masks: the one definition that every part of tfanet uses.

Training, evaluation, the export's parity check and the runtimes all call these functions, so a
model never sees a picture prepared in two ways. NumPy and Pillow only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfanet.errors import InputError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "MIN_SIDE",
    "ImageError",
    "image_to_tensor",
    "load_image",
    "logits_to_mask",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 64_000_000
MIN_SIDE = 2

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class ImageError(InputError):
    """A picture that cannot be used: missing, truncated, too small, too large, or of a bad type."""


def load_image(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    Args:
        source: a path, a PIL image, or an array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or
            uint16. EXIF orientation is honoured; transparency is laid on white; of 16-bit pictures
            the upper 8 bits are used.

    Raises:
        ImageError: where it is missing, truncated, below 2 pixels or above 64 megapixels, or not
            a picture. The size is read from the header, before any pixel is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, "the image")
        return _decoded(source, "the image")
    if not isinstance(source, str | Path):
        raise ImageError(
            f"the image is a {type(source).__name__}: give a path, a PIL image or a uint8 array"
        )
    path = Path(source)
    try:
        with Image.open(path) as image:
            _check_size(image.size, str(path))
            return _decoded(image, str(path))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: check the path of the picture") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not a picture that Pillow can read: save it as PNG or JPEG"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels: reduce it first") from None
    except Exception as error:  # of the file system, or of a decoder at a damaged header
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{path} cannot be read ({cause}): name a picture file") from error


def image_to_tensor(
    image: Image.Image,
    size: tuple[int, int],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """RGB picture to float32 (3, H, W): resize to `size` = (H, W), scale to 0..1, normalise.

    The aspect ratio is ignored; the resize is Pillow's bilinear filter on 8-bit pixels, which
    averages over the whole footprint when it reduces. Then (x / 255 - mean) / std per channel.
    """
    pixels = np.asarray(_resize(image, size))
    scale = (1.0 / (255.0 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    planes *= scale[:, None, None]
    planes -= shift[:, None, None]
    return planes


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
        plane = np.asarray(_resize(Image.fromarray(plane), size))
    return plane > threshold, plane


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Along the rows first, then along the columns: Pillow 13 may take them the other way round,
    earlier versions do not, and the pixels differ."""
    height, width = size
    rows = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return rows.resize((width, height), Image.Resampling.BILINEAR)


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


def _decoded(image: Image.Image, name: str) -> Image.Image:
    """Decodes what Pillow has opened so far only by its header."""
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
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
