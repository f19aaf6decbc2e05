"""Pictures from wherever they come: files, bytes, arrays and tensors, as 8-bit RGB. No PyTorch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from tfanet.errors import InputError

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_SIDE",
    "ImageError",
    "Picture",
    "load_image",
    "open_picture",
]

MIN_SIDE = 2
MAX_SIDE = 65_535  # the most that a JPEG can say
MAX_PIXELS = 64_000_000
# Told by content, whatever the name: Pillow knows others that start programs (PostScript) or whose
# decoders few have looked at. A phone's JPEG of several pictures calls itself MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"

CHANNELS = (1, 3, 4)
HOST_MEMORY = (1, 3, 11)  # DLPack's numbers of the CPU's, and of what CUDA and ROCm pinned of it
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323  # tags
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


class Exportable(Protocol):
    """An array of any library that speaks DLPack: torch, CuPy, JAX, ..."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...


Picture = str | Path | bytes | bytearray | Readable | Image.Image | np.ndarray | Exportable


class ImageError(InputError):
    """A picture that cannot be used: missing, truncated, too small, too large, or of a bad type."""


def open_picture(path: str | Path) -> Image.Image:
    """A picture file by its header, its size checked, no pixel decoded yet; close it after use.

    Raises:
        ImageError: where it is missing, is none of JPEG, PNG, WebP, BMP, GIF, TIFF and PPM by its
            content, cannot be read, or is too small or too large.
    """
    return _opened(path, str(path))


def load_image(source: Picture) -> Image.Image:
    """Any picture as 8-bit RGB, upright.

    Args:
        source: a path; the bytes of a picture file, or a file that is open for reading them; a PIL
            image; or an array or a tensor of NumPy, torch or any library with DLPack, in the memory
            of the CPU or a GPU: (H, W), (H, W, C) or (C, H, W) with C = 1, 3 (RGB) or 4 (RGBA), of
            uint8, uint16, or floats from 0 to 1. Where a shape can be read in both orders, as
            (3, 50, 3), it is refused. Files are JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF
            or PPM, whatever their names. EXIF orientation is honoured; transparency is laid on
            white; of 16-bit pictures the upper 8 bits are used.

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
    if isinstance(source, str | Path):
        with open_picture(source) as image:
            return _decoded(image, str(source))
    if isinstance(source, bytes | bytearray):
        return _from_bytes(bytes(source), "the image")
    if hasattr(source, "read"):
        return _from_file(source)
    if hasattr(source, "__dlpack__"):
        return _from_array(_on_the_host(source))
    kind = type(source).__name__
    raise ImageError(
        f"the image is a {kind}: give a path, bytes, an open file, a PIL image, or an array"
    )


def _opened(file: Any, name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist: check the path of the picture") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture of a kind that is read here: save it as {_FORMAT_NAMES}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} has more than {MAX_PIXELS:,} pixels: reduce it first") from None
    except Exception as error:  # of the file system, or of a decoder at a damaged header
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{name} cannot be read ({cause}): name a picture file") from error
    try:
        _check_size(image.size, name)
    except ImageError:
        image.close()
        raise
    return image


def _from_bytes(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name} has no bytes: send the whole picture file")
    with _opened(io.BytesIO(content), name) as image:
        return _decoded(image, name)


def _from_file(file: Any) -> Image.Image:
    """Of an open file, from where it stands; it stays open."""
    path = getattr(file, "name", None)
    name = path if isinstance(path, str) else "the image"
    try:
        content = file.read()
    except Exception as error:  # of whatever kind of file it is
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{name} cannot be read ({cause}): open it again") from error
    if not isinstance(content, bytes | bytearray):
        raise ImageError(
            f"{name} gives {type(content).__name__} when read: open it for bytes, open(path, 'rb')"
        )
    return _from_bytes(bytes(content), name)


def _on_the_host(array: Any) -> np.ndarray:
    """An array or tensor of another library as NumPy's."""
    try:
        if hasattr(array, "detach"):  # torch: of one that has a gradient nothing may be taken
            array = array.detach()
        if int(array.__dlpack_device__()[0]) not in HOST_MEMORY:
            # Each library brings its own arrays over: NumPy alone can ask only the newest for it.
            if hasattr(array, "cpu"):
                array = array.cpu()
            elif hasattr(array, "get"):  # CuPy
                array = array.get()
            else:
                return np.from_dlpack(array, device="cpu", copy=True)
        return array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    except Exception as error:  # every library has its own
        cause = " ".join(str(error).split())
        raise ImageError(
            f"the image, a {type(array).__module__.partition('.')[0]} {type(array).__name__}, "
            f"cannot be taken over ({cause:.200}): convert it to a NumPy array of uint8 first"
        ) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"the image array is {array.dtype}: give uint8 (0..255), uint16, or floats from 0 to 1"
        )
    array = _channels_last(array)
    _check_size((array.shape[1], array.shape[0]), "the image array")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = _from_floats(array)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4) of an array in either order."""
    shape = array.shape
    last = array.ndim == 3 and shape[2] in CHANNELS and min(shape[:2]) >= MIN_SIDE
    first = array.ndim == 3 and shape[0] in CHANNELS and min(shape[1:]) >= MIN_SIDE
    if last and first:
        raise ImageError(
            f"the image array has shape {shape}, which can be read as (H, W, C) and as (C, H, W): "
            "give a PIL image instead, Image.fromarray of (H, W, C)"
        )
    if first:
        array = array.transpose(1, 2, 0)
    elif not (array.ndim == 2 or (array.ndim == 3 and shape[2] in CHANNELS)):
        more = "; several pictures go into a list" if array.ndim == 4 else ""
        raise ImageError(
            f"the image array has shape {shape}: give (H, W), (H, W, C) or (C, H, W) with C = 1, 3 "
            f"or 4{more}"
        )
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _from_floats(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN compares with nothing
        raise ImageError(
            f"the image array holds floats from {low:.4g} to {high:.4g}: give 0 to 1, or uint8"
        )
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


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
