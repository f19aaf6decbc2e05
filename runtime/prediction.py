"""What a `Predictor` gives: encoded sentences, and predictions with instances and their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["Instance", "Prediction", "Sentence", "Word", "words_of"]


class Word(NamedTuple):
    """A word of a sentence, with what an instance makes of it.

    Attributes:
        text: as the tokenizer reads it: in small letters, BERT's without accents.
        share: of the instance's attention, 0 to 1; the sum of its tokens'.
    """

    text: str
    share: float


@dataclass(frozen=True)
class Sentence:
    """An encoded sentence, usable on any number of pictures.

    Attributes:
        features: by name what the text graph gives, such as word_features (1, T, L) float32.
        mask: (1, L) float32, the word mask.
        word_tokens: its words in order, each with how many tokens it has, from behind the start
            token on; see `TextTokenizer.words`.
    """

    features: Mapping[str, np.ndarray]
    mask: np.ndarray
    word_tokens: tuple[tuple[str, int], ...] = ()

    @property
    def words(self) -> np.ndarray:
        """The features of the words, (1, T, L)."""
        return self.features["word_features"]

    @property
    def sentence(self) -> np.ndarray | None:
        """The feature of the whole sentence, (1, S); None of a model that has none."""
        return self.features.get("sentence_feature")


@dataclass(frozen=True)
class Instance:
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


@dataclass(frozen=True)
class Prediction:
    """What a sentence means in a picture.

    Attributes:
        mask: (H, W) bool, at the picture's own size; empty where `no_target` is above 0.5.
        score: mean probability of the mask's pixels, 0 to 1; 0 where the mask is empty.
        logits: (h, w) float32 as the model gives them; probability = sigmoid(logit).
        timings: milliseconds of preprocess, text (near 0 when cached), image, postprocess, total.
        no_target: how likely it is that the sentence means nothing in the picture, 0 to 1; None
            where the model does not say.
        instances: the objects that are meant, the most relevant first; None where the bundle does
            not give them.
    """

    mask: np.ndarray
    score: float
    logits: np.ndarray
    timings: dict[str, float]
    no_target: float | None = None
    instances: tuple[Instance, ...] | None = None


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
