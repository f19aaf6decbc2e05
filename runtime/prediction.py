"""What a `Predictor` gives: encoded sentences, and predictions with instances and their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageShow

from tfanet.errors import InputError, MissingDependencyError, shown
from tfanet.runtime import rle
from tfanet.runtime.overlay import overlay, save_overlay
from tfanet.runtime.polygons import polygons

__all__ = ["Instance", "Prediction", "Sentence", "Word", "words_of"]


class Word(NamedTuple):
    """A word of a sentence, with what an instance makes of it.

    Attributes:
        text: as the tokenizer reads it: in small letters, BERT's without accents.
        share: of the instance's attention, 0 to 1; the sum of its tokens'.
    """

    text: str
    share: float


class _Compared:
    """Equality of dataclasses that hold arrays: by every field that is compared, bit by bit."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        compared = [one.name for one in fields(self) if one.compare]  # type: ignore[arg-type]
        return all(_same(getattr(self, name), getattr(other, name)) for name in compared)

    __hash__ = None  # type: ignore[assignment]  # arrays have none


class _Region(_Compared):
    """What can be said of a mask."""

    mask: np.ndarray

    @property
    def area(self) -> int:
        """Pixels that are set."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """x0, y0, x1, y1 in pixels, the lower right corner outside; None of an empty mask."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        if not rows.size:
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def polygons(self) -> list[np.ndarray]:
        """The exact outline of each region, (N, 2) int32 of x, y, its holes cut in by a line.

        Points are corners of pixels, from (0, 0) to (W, H), clockwise; a region is what is
        connected over the sides of pixels. Filled, they give the mask again, to the pixel.
        """
        return polygons(self.mask)

    def rle(self) -> rle.Rle:
        """COCO's compressed run lengths: {"size": [H, W], "counts": text}, ready for JSON."""
        return rle.encode(self.mask)


@dataclass(frozen=True, eq=False, repr=False)
class Sentence(_Compared):
    """An encoded sentence, usable on any number of pictures.

    Attributes:
        features: by name what the text graph gives, such as word_features (1, T, L) float32.
        mask: (1, L) float32, the word mask.
        word_tokens: its words in order, each with how many tokens it has, from behind the start
            token on; see `TextTokenizer.words`.
        text: what was encoded.
    """

    features: Mapping[str, np.ndarray]
    mask: np.ndarray
    word_tokens: tuple[tuple[str, int], ...] = ()
    text: str = ""

    def __repr__(self) -> str:
        return f"Sentence({shown(self.text)}, {int(self.mask.sum())} tokens)"

    @property
    def words(self) -> np.ndarray:
        """The features of the words, (1, T, L)."""
        return self.features["word_features"]

    @property
    def sentence(self) -> np.ndarray | None:
        """The feature of the whole sentence, (1, S); None of a model that has none."""
        return self.features.get("sentence_feature")


@dataclass(frozen=True, eq=False, repr=False)
class Instance(_Region):
    """One object that a sentence means, of a model that tells them apart.

    Attributes:
        mask: (H, W) bool, at the picture's own size.
        relevance: how likely it is that the sentence means it, 0.5 to 1.
        alignment: (L,) float32, what share of its attention each token of the sentence has; None
            where the bundle does not give it.
        words: the words of the sentence in order, each with its tokens' share of that attention;
            None where there is no alignment. The start and end token may have a share too, so
            these need not add up to 1.
    """

    mask: np.ndarray
    relevance: float
    alignment: np.ndarray | None = None
    words: tuple[Word, ...] | None = None

    def __repr__(self) -> str:
        return f"Instance({self.area} pixels, relevance {self.relevance:.2f})"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(_Region):
    """What a sentence means in a picture.

    Two are equal where all but their timings and pictures is.

    Attributes:
        mask: (H, W) bool, at the picture's own size; empty where `no_target` is above 0.5.
        score: mean probability of the mask's pixels, 0 to 1; 0 where the mask is empty.
        logits: (h, w) float32 as the model gives them; probability = sigmoid(logit).
        timings: milliseconds of preprocess (of its picture), text (all sentences of the call, near
            0 when cached), image (the run that it was part of), postprocess, and total, their sum.
        no_target: how likely it is that the sentence means nothing in the picture, 0 to 1; None
            where the model does not say.
        instances: the objects that are meant, the most relevant first; None where the bundle does
            not give them.
        text: the sentence. image: the picture as RGB, upright.
    """

    mask: np.ndarray
    score: float
    logits: np.ndarray
    timings: dict[str, float] = field(compare=False)
    no_target: float | None = None
    instances: tuple[Instance, ...] | None = None
    text: str = ""
    image: Image.Image | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        pixels = f"{self.area} of {self.mask.size} pixels"
        return f"Prediction({shown(self.text)}: {pixels}, score {self.score:.2f})"

    def plot(self) -> Image.Image:
        """The picture with what is meant outlined, and the rest of it dark."""
        return overlay(self._picture(), self.mask)

    def save(self, path: str | Path) -> None:
        """Write `plot()` as a picture file; `tfanet.runtime.save_mask` writes a mask alone.

        Raises:
            ImageError: where the file cannot be written, or its name ends like no picture's.
        """
        save_overlay(self._picture(), self.mask, path)

    def show(self) -> None:
        """Open `plot()` in the system's viewer of pictures.

        Raises:
            MissingDependencyError: where there is none, as on a server.
        """
        if not ImageShow.show(self.plot()):
            raise MissingDependencyError(
                "there is no program here to show pictures with: write one, .save('overlay.png')"
            )

    def to_supervision(self) -> Any:
        """`supervision.Detections`: of each instance where the bundle gives them, else of the mask.

        None of an empty mask. `confidence` is the relevance or the score, `class_id` 0, and
        `data["class_name"]` the sentence.

        Raises:
            MissingDependencyError: where supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed: pip install 'tfanet[supervision]'"
            ) from error
        found: list[tuple[_Region, float]] = (
            [(self, self.score)]
            if self.instances is None
            else [(one, one.relevance) for one in self.instances]
        )
        found = [(region, confidence) for region, confidence in found if region.box is not None]
        if not found:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([region.box for region, _ in found], np.float32),
            mask=np.stack([region.mask for region, _ in found]),
            confidence=np.array([confidence for _, confidence in found], np.float32),
            class_id=np.zeros(len(found), int),
            data={"class_name": np.array([self.text] * len(found))},
        )

    def _picture(self) -> Image.Image:
        if self.image is None:
            raise InputError("this prediction has no picture: it was made by hand, give `image`")
        return self.image


def words_of(sentence: Sentence, alignment: np.ndarray | None) -> tuple[Word, ...] | None:
    """`Instance.words` by its `alignment`."""
    if alignment is None:
        return None
    words, at = [], 1  # behind the start token
    for text, count in sentence.word_tokens:
        share = np.float32(0)
        for part in alignment[at : at + count]:
            share += part  # in float32 and in order, for the bits of the C library
        words.append(Word(text, float(share)))
        at += count
    return tuple(words)


def _same(one: Any, other: Any) -> bool:
    """Equal values; of arrays, also types and shapes."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)
