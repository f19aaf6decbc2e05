"""Sentences to token ids: CLIP's byte pairs or BERT's word pieces, cut and padded to a length."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from tfanet.errors import InputError, shown
from tfanet.runtime.bundle.contract import TRUNCATIONS
from tfanet.runtime.bundle.read import Bundle, BundleError
from tfanet.runtime.tokenizer_file import KINDS, MAX_FILE_BYTES, MAX_ID, read_tokenizer

__all__ = [
    "MAX_TEXT_BYTES",
    "TextError",
    "TextTokenizer",
    "check_text",
    "listed",
    "tokenizer_of",
]

MAX_TEXT_BYTES = 4096
MAX_WARNED = 1000  # warnings of cut sentences that are remembered, not to be printed twice


class TextError(InputError):
    """A sentence that cannot be used: empty, too large, or not Unicode text."""


class TextTokenizer:
    """Calls `tokenizers` and adds what the model fixes: length L, padding and the word mask.

    Args:
        path: a tokenizer.json of the kind; another one, or any other setting, is refused.
        length: L, the tokens per sentence, the start and end token included (3 to CLIP's 77 or
            BERT's 512 positions).
        content: the file's bytes, where they were read already; then `path` is for messages only.
        kind: "clip-bpe", or "bert-wordpiece": BERT's uncased word pieces.
        pad_id: the id behind a sentence; without it, CLIP's end token or BERT's [PAD].
        truncation: what becomes of a longer sentence. "keep-end" (CLIP's) cuts its words, the end
            token stays; "cut" (BERT's) cuts what is too long, so that the end token is lost.

    Attributes:
        sos_id, eos_id, pad_id: the ids of the start and the end token, and of padding.
    """

    def __init__(
        self,
        path: str | Path,
        length: int,
        content: bytes | None = None,
        *,
        kind: str = "clip-bpe",
        pad_id: int | None = None,
        truncation: str | None = None,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"the tokenizer is {shown(kind)}: choose {' or '.join(KINDS)}")
        self._kind = fixed = KINDS[kind]
        truncation = fixed.truncation if truncation is None else truncation
        if truncation not in TRUNCATIONS:
            raise InputError(
                f"the truncation is {shown(truncation)}: choose {' or '.join(TRUNCATIONS)}"
            )
        if not 3 <= length <= fixed.positions:
            raise InputError(
                f"the text length is {shown(length)}: {fixed.owner} has {fixed.positions} "
                f"positions, give 3 to {fixed.positions}"
            )
        if content is None:
            try:
                with open(path, "rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{path} cannot be read ({reason}): check its path") from error
        self._tokenizer = read_tokenizer(path, content, kind)
        sos_id, eos_id, usual = map(
            self._tokenizer.token_to_id, (fixed.start, fixed.end, fixed.pad)
        )
        assert sos_id is not None and eos_id is not None and usual is not None  # as was checked
        self.sos_id, self.eos_id = sos_id, eos_id
        self.pad_id = usual if pad_id is None else pad_id
        if not 0 <= self.pad_id <= MAX_ID or self._tokenizer.id_to_token(self.pad_id) is None:
            raise InputError(
                f"the pad id is {shown(pad_id)}, which is no token of {path}: give another"
            )
        self.length = length
        self._room = length - (2 if truncation == "keep-end" else 1)  # for words
        self._warned: dict[Any, Any] = {}

    def __call__(self, texts: str | bytes | Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, L) int64 and word mask (n, L) float32, 1 from the start to the end token.

        A longer sentence is cut, with a warning that names the dropped words.

        Raises:
            TextError: where a sentence is empty or without any character that makes a word, above
                4 KB, or not valid Unicode text.
        """
        sentences = listed(texts)
        if not sentences:
            raise TextError("no sentence was given: pass one or more")
        ids = np.full((len(sentences), self.length), self.pad_id, np.int64)
        mask = np.zeros((len(sentences), self.length), np.float32)
        for row, sentence in enumerate(map(check_text, sentences)):
            encoding = self._encode(sentence)
            if len(encoding.ids) > self._room:
                self._warn_of_dropped(sentence, encoding, self._room)
            words = encoding.ids[: self._room]
            tokens = [self.sos_id, *words, self.eos_id][: self.length]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def words(self, text: str | bytes) -> tuple[tuple[str, int], ...]:
        """The words of a sentence in order, each with how many of the sentence's tokens it has.

        Words are what the tokenizer takes apart into tokens; a punctuation mark is one too. They
        are written as it reads them, in small letters, BERT's without accents, and so are those
        that it does not know. Words for which there is no room are left out; where there is room
        for the first tokens of one, these are counted.

        Raises:
            TextError: as when it is called.
        """
        sentence = check_text(text)
        encoding = self._encode(sentence)
        words = self._kind.words(self._tokenizer, sentence, encoding)
        counts = Counter(encoding.word_ids[: self._room]).values()
        return tuple(zip(words, counts, strict=False))  # the last words may have no room

    def _encode(self, sentence: str) -> Encoding:
        """All tokens of a sentence but start and end."""
        encoding = self._tokenizer.encode(sentence, add_special_tokens=False)
        if not encoding.ids:
            raise TextError(
                "the sentence has nothing but accents and control characters: say what to segment"
            )
        return encoding

    def _warn_of_dropped(self, sentence: str, encoding: Encoding, room: int) -> None:
        """Warns as `warnings.warn` does at the first caller outside of tfanet.

        Python would keep every warning of that line for ever; here the last ones are kept.
        """
        dropped = sentence[encoding.offsets[room][0] :].strip()
        frame = sys._getframe(1)
        while frame.f_back and str(frame.f_globals.get("__name__")).startswith("tfanet."):
            frame = frame.f_back
        if len(self._warned) > MAX_WARNED:
            self._warned.clear()
        warnings.warn_explicit(
            f"the sentence has {len(encoding.ids)} tokens, the model takes {room}: "
            f"dropped {dropped!r}",
            UserWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
            frame.f_globals.get("__name__"),
            self._warned,
        )


def tokenizer_of(bundle: Bundle) -> TextTokenizer:
    """A bundle's tokenizer, as its manifest says.

    Raises BundleError where its file is another.
    """
    name, text = "tokenizer.json", bundle.manifest.text
    tokenizer = TextTokenizer(
        bundle.file(name),
        text.length,
        bundle.read(name),
        kind=text.tokenizer,
        pad_id=text.pad_id,
        truncation=text.truncation,
    )
    for field in ("sos_id", "eos_id"):
        said, found = getattr(text, field), getattr(tokenizer, field)
        if said != found:
            raise BundleError(
                f"{bundle.path}: the tokenizer's {field} is {found}, the manifest says {said}: "
                "export the model again"
            )
    return tokenizer


def listed(texts: Any) -> list[Any]:
    """A sentence, or several, as a list; raises TextError for what is neither."""
    if isinstance(texts, str | bytes):
        return [texts]
    if isinstance(texts, Iterable):
        return list(texts)
    raise TextError(f"the text is a {type(texts).__name__}: give a sentence, or a list of them")


def check_text(sentence: object) -> str:
    """The sentence as text (bytes are UTF-8), if it can be used; raises TextError if not."""
    if isinstance(sentence, bytes):
        _check_size(len(sentence))
        try:
            sentence = sentence.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(f"the sentence is not valid UTF-8 ({error}): encode it again") from None
    if not isinstance(sentence, str):
        raise TextError(f"the sentence is a {type(sentence).__name__}: give a string")
    try:
        size = len(sentence.encode("utf-8"))
    except UnicodeEncodeError:
        raise TextError("the sentence holds a lone surrogate: it is not valid Unicode") from None
    _check_size(size)
    if not sentence.strip():
        raise TextError("the sentence is empty: say what to segment")
    return sentence


def _check_size(size: int) -> None:
    if size > MAX_TEXT_BYTES:
        raise TextError(f"the sentence has {size} bytes, the limit is {MAX_TEXT_BYTES}: shorten it")
