"""Frames of a video file, through PyAV (the extra `video`); ffmpeg decodes on several threads."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.errors import MissingDependencyError, plain
from tfanet.runtime.picture import MAX_PIXELS, ImageError

__all__ = ["SUFFIXES", "video_frames"]

# What a file with one of these endings holds is told by its content. Playlists and lists of files,
# which name other files and hosts, are not among the formats.
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,gif"
_EMPTY = "{} holds no frames: record or copy it again"


def video_frames(path: str | Path) -> Generator[np.ndarray, None, None]:
    """The frames of a video as (H, W, 3) uint8 RGB, upright; one is held at a time.

    Raises:
        ImageError: where the file is missing, is no video, or holds no frames; a damaged frame is
            named when it is due. MissingDependencyError: where PyAV is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed: pip install 'tfanet[video]'"
        ) from error
    if not Path(path).is_file():
        raise ImageError(f"{path} is not there or no file: check the path of the video")
    return _frames(av, path)


def _frames(av: Any, path: str | Path) -> Generator[np.ndarray, None, None]:
    number = 0
    # Opened here: ffmpeg would read a name such as http://... as more than a file's.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    try:
        with open(path, "rb") as file, av.open(file, options=options) as container:
            if not container.streams.video:
                raise ImageError(f"{path} holds no pictures, only sound: name another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{path} has frames of {width}x{height} pixels, the limit is {MAX_PIXELS:,}: "
                    "reduce it first"
                )
            for frame in container.decode(stream):
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
                yield np.rot90(pixels, turns)
                number += 1
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, EOFError) and not number:
            raise ImageError(_EMPTY.format(path)) from error
        what = f"frame {number} of {path} cannot be decoded" if number else f"{path} is no video"
        cause = plain(error.strerror or str(error))
        raise ImageError(f"{what} ({cause}): copy it again, or convert it with ffmpeg") from error
    if not number:
        raise ImageError(_EMPTY.format(path))
