"""What `tfanet predict` works on: pictures, folders, patterns and videos, and lines of JSON."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfanet.errors import InputError, shown
from tfanet.runtime.video import SUFFIXES as VIDEOS

__all__ = ["Source", "file_names", "from_lines", "from_paths"]

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Source:
    """A picture or a video, and what to segment in it.

    Attributes:
        image_id: of a picture in COCO's files, where a line of JSON says it.
    """

    path: Path
    texts: tuple[str, ...]
    image_id: int | None = None

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def from_paths(paths: Sequence[str], texts: Sequence[str]) -> list[Source]:
    """Of each path what it means: a file, the pictures of a folder, or what a pattern matches.

    Raises:
        InputError: for a folder without pictures and a pattern that nothing matches.
    """
    return [Source(file, tuple(texts)) for path in paths for file in _files(path)]


def _files(path: str) -> Iterator[Path]:
    if Path(path).is_dir():
        found = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in PICTURES)
        if not found:
            raise InputError(
                f"the folder {path} holds no pictures ({', '.join(PICTURES)}): name one that does"
            )
        yield from found
    elif not Path(path).exists() and re.search(r"[*?[]", path):
        names = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not names:
            raise InputError(f"no file matches {path}: check the pattern, or name a folder")
        yield from map(Path, names)
    else:
        yield Path(path)


def from_lines(file: str) -> list[Source]:
    """Of each line of a JSON lines file {"image": PATH, "text": SENTENCE or a list of them}.

    A line may also have an "image_id" for COCO's files. Paths are taken from the file's folder.

    Raises:
        InputError: naming the line that is wrong; where the file is missing or has no lines.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{file} does not exist: name a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text ({error.reason}): write it as UTF-8") from None
    sources = [
        _of_line(line, Path(file).parent, f"line {number} of {file}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not sources:
        raise InputError(f'{file} has no lines: write {{"image": "a.jpg", "text": "the dog"}}')
    return sources


def _of_line(line: str, folder: Path, name: str) -> Source:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{name} is not JSON: write one object on each line") from None
    image = data.get("image") if isinstance(data, dict) else None
    texts: Any = data.get("text") if isinstance(data, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    right = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    if not isinstance(image, str) or not right:
        raise InputError(
            f'{name} is {shown(data)}: expected {{"image": PATH, "text": SENTENCE}}, or a list of '
            "sentences"
        )
    number = data.get("image_id")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise InputError(f"{name} has the image_id {shown(number)}: give a whole number")
    return Source(folder / image, tuple(texts), number)


def file_names(sources: Sequence[Source]) -> list[str]:
    """A name for what is written of each source: its file's without ending, if that is enough.

    Raises:
        InputError: where two of them have the same file name.
    """
    stems = Counter(source.path.stem for source in sources)
    names = [s.path.stem if stems[s.path.stem] == 1 else s.path.name for s in sources]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(
                f"{count} files are called {name}: what is written of them would have one name; "
                "give each another name, or call predict for each"
            )
    return names
