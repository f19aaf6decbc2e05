"""What a bundle says about its graphs: how pictures and sentences go in, and how masks come out.

Both runtimes follow these facts and know no model by name: contract.cpp in runtime/cpp/src is the
twin of this file.

Roles of the image graph's outputs (B: batch, N: instances, L: tokens):

- "mask", (B, 1, h, w): the logit that a pixel is meant. Every bundle has it, as its first output.
- "no_target", (B, 1): the logit that the sentence means nothing in the picture; above 0 it means
  nothing, and the mask is then empty.
- "relevance", (B, N): how likely it is that an instance is meant, 0 to 1; it is from 0.5 on.
- "instances", (B, N, h, w): the logit that a pixel is of an instance; it is where this is above 0.
- "alignment", (B, N, L): what share of an instance's attention each token has.

No mask is larger than the image that goes in, so that what `check_resize` allows for the one is
enough for the other; and there are at most 1024 instances, each of which gets one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tfanet.errors import InputError
from tfanet.runtime.bundle.graphs import GRAPHS, IMAGE, TEXT

__all__ = [
    "LETTERBOX",
    "MAX_INSTANCES",
    "RANKS",
    "STRETCH",
    "TOKENIZERS",
    "TRUNCATIONS",
    "BundleError",
    "Interface",
    "Postprocessing",
    "Preprocessing",
    "Tokenization",
]

STRETCH, LETTERBOX = "pillow-bilinear", "letterbox-area"
TOKENIZERS = ("clip-bpe", "bert-wordpiece")
TRUNCATIONS = ("keep-end", "cut")
VALUES = ("logit", "probability")
# The axes behind the batch of an output of the image graph, by its role.
RANKS = {"mask": 3, "no_target": 1, "relevance": 1, "instances": 3, "alignment": 2}
MAX_SIDE, MAX_AXIS, MAX_INSTANCES = 16384, 2**31 - 1, 1024


class BundleError(InputError):
    """A bundle that is incomplete, altered, of another version, or that points outside itself."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the image graph's input (3, H, W).

    Attributes:
        size: (H, W). mean, std: of channels from 0 to 1. color: "RGB".
        resize: "pillow-bilinear" stretches the picture to `size`; "letterbox-area" keeps its sides'
            ratio, averages areas, and fills the rest with `padding`, an RGB colour from 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = STRETCH
    padding: tuple[int, int, int] | None = None
    color: str = "RGB"

    @classmethod
    def read(cls, data: Mapping[str, Any], path: Path) -> Preprocessing:
        """Raises BundleError for what no runtime can do."""
        sizes, mean, std, padding = (
            cast(Any, data.get(name)) for name in ("size", "mean", "std", "padding")
        )
        if not (_numbers(sizes, 2, int) and all(0 < side <= MAX_SIDE for side in sizes)):
            raise BundleError(f"{path}: preprocessing.size is {sizes!r:.60}, expected [H, W]")
        if not all(_numbers(v, 3, (int, float)) for v in (mean, std)) or 0 in std:
            raise BundleError(f"{path}: preprocessing.mean and std must be three numbers each")
        resize = data.get("resize")
        if resize not in (STRETCH, LETTERBOX) or data.get("color") != "RGB":
            raise BundleError(
                f"{path}: preprocessing is not RGB with the resize {STRETCH} or {LETTERBOX}"
            )
        if resize == LETTERBOX:
            good = _numbers(padding, 3, int) and all(0 <= value <= 255 for value in padding)
        else:
            good = padding is None
        if not good or len(data) != len(cls.__dataclass_fields__):
            raise BundleError(
                f"{path}: preprocessing.padding is {padding!r:.60}, expected three numbers from 0 "
                "to 255 for a letterbox, and nothing else"
            )
        colour = None if padding is None else tuple(padding)
        return cls(tuple(sizes), tuple(mean), tuple(std), resize, cast(Any, colour))


@dataclass(frozen=True)
class Tokenization:
    """How a sentence becomes the text graph's input (L).

    Attributes:
        length: L, the start and end token included. sos_id, eos_id: of these two. pad_id: behind
            them, where the word mask is 0.
        tokenizer: "clip-bpe" or "bert-wordpiece". truncation: of a longer sentence; "keep-end" cuts
            its words and keeps the end token, "cut" cuts after all is encoded.
    """

    length: int
    pad_id: int
    sos_id: int
    eos_id: int
    tokenizer: str = TOKENIZERS[0]
    truncation: str = TRUNCATIONS[0]

    @classmethod
    def read(cls, data: Mapping[str, Any], path: Path) -> Tokenization:
        """Raises BundleError for what no runtime can do."""
        names = ("length", "pad_id", "sos_id", "eos_id")
        numbers = [data.get(name) for name in names]
        if not _numbers(numbers, len(names), int):
            raise BundleError(f"{path}: text lacks length, pad_id, sos_id or eos_id")
        tokenizer, truncation = data.get("tokenizer"), data.get("truncation")
        if tokenizer not in TOKENIZERS or truncation not in TRUNCATIONS or len(data) != 6:
            raise BundleError(
                f"{path}: text.tokenizer is {tokenizer!r:.40} with the truncation "
                f"{truncation!r:.40}, expected {' or '.join(TOKENIZERS)} with "
                f"{' or '.join(TRUNCATIONS)}, and nothing else"
            )
        return cls(**cast(Any, data))


@dataclass(frozen=True)
class Postprocessing:
    """How a mask is made of the logits: resized to the picture, as they are or as probabilities.

    Attributes:
        value: what is resized and compared, "logit" or "probability".
        threshold: a pixel is set where its value is above.
    """

    value: str
    threshold: float

    @property
    def logit_threshold(self) -> float:
        """The threshold as a logit."""
        if self.value == "logit":
            return self.threshold
        return math.log(self.threshold / (1 - self.threshold))

    def above(self, probability: float) -> Postprocessing:
        """The same with another threshold, given as a probability between 0 and 1."""
        odds = probability / (1 - probability)
        return Postprocessing(self.value, math.log(odds) if self.value == "logit" else probability)

    @classmethod
    def read(cls, data: Mapping[str, Any], path: Path) -> Postprocessing:
        """Raises BundleError for what no runtime can do."""
        value, threshold = data.get("value"), data.get("threshold")
        if value not in VALUES or not _numbers([threshold], 1, (int, float)) or len(data) != 2:
            raise BundleError(
                f"{path}: postprocessing is {value!r:.40} above {threshold!r:.40}, expected "
                f"{' or '.join(VALUES)} above a finite number"
            )
        assert isinstance(threshold, int | float)
        if value == "probability" and not 0 < threshold < 1:
            raise BundleError(
                f"{path}: postprocessing.threshold is {threshold!r:.40}, expected a probability "
                "between 0 and 1"
            )
        return cls(value, threshold)


@dataclass(frozen=True)
class Interface:
    """The values of both graphs by name, with their shapes behind the batch.

    Attributes:
        text_outputs: features of a sentence. image_inputs: what the image graph takes of "image",
            these features and "word_mask". image_outputs: name and shape by role.
    """

    text_outputs: Mapping[str, tuple[int, ...]]
    image_inputs: Mapping[str, tuple[int, ...]]
    image_outputs: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def read(
        cls, inputs: Mapping[str, Any], outputs: Mapping[str, Any], facts: Any, path: Path
    ) -> Interface:
        """Raises BundleError where the graphs do not fit together.

        Args:
            inputs, outputs: per graph, as in a manifest. facts: it, for sizes. path: its file.
        """
        try:
            return cls._read(inputs, outputs, facts)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BundleError(
                f"{path}: inputs and outputs of the graphs do not fit together: export the model "
                "again"
            ) from None

    @classmethod
    def _read(cls, inputs: Any, outputs: Any, facts: Any) -> Interface:
        length, size = facts.text.length, facts.preprocessing.size
        _must(set(inputs) == set(outputs) == set(GRAPHS))
        features = _shapes(outputs[TEXT])
        _must(features and not {"image", "word_mask"} & set(features))
        _must(_shapes(inputs[TEXT]) == {"token_ids": (length,)})
        _must(all(len(shape) in (1, 2) for shape in features.values()))
        known = {"image": (3, *size), "word_mask": (length,), **features}
        taken = _shapes(inputs[IMAGE])
        _must("image" in taken and all(known.get(name) == taken[name] for name in taken))
        given = _shapes(outputs[IMAGE])
        roles = [entry["role"] for entry in outputs[IMAGE]]
        found = dict(zip(roles, given.items(), strict=True))
        _must(roles[:1] == ["mask"] and len(found) == len(roles))
        for role, (_, shape) in found.items():
            _must(len(shape) == RANKS[role])
            if role in ("mask", "instances"):
                _must(shape[1] <= size[0] and shape[2] <= size[1])
        _must(found["mask"][1][0] == 1)
        if "no_target" in found:
            _must(found["no_target"][1] == (1,))
        together = {"relevance", "instances"} & set(found)
        _must(len(together) != 1 and ("alignment" not in found or len(together) == 2))
        if together:
            count = found["relevance"][1][0]
            _must(found["instances"][1][0] == count <= MAX_INSTANCES)
            _must("alignment" not in found or found["alignment"][1] == (count, length))
        return cls(features, taken, found)


def _must(condition: Any) -> None:
    if not condition:
        raise ValueError


def _shapes(values: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes behind the batch, all of them numbers."""
    _must(isinstance(values, list))
    found = {}
    for value in values:
        name, shape = value["name"], value["shape"]
        _must(isinstance(name, str) and name and isinstance(shape, list) and len(shape) > 1)
        _must(_numbers(shape[1:], len(shape) - 1, int))
        _must(all(0 < axis <= MAX_AXIS for axis in shape[1:]))
        found[name] = tuple(shape[1:])
    _must(len(found) == len(values))
    return found


def _numbers(values: Any, count: int, kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        and all(map(_finite, values))
    )


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
