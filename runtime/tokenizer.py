"""Sentences to token ids: CLIP's byte-pair tokenizer, cut and padded to the model's text length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from tfanet.errors import InputError

__all__ = ["MAX_TEXT_BYTES", "TextError", "TextTokenizer", "check_text"]

MAX_TEXT_BYTES = 4096


class TextError(InputError):
    """A sentence that cannot be used: empty, too large, or not Unicode text."""


class TextTokenizer:
    """Calls `tokenizers` and adds what the model fixes: length L, padding and the word mask.

    Args:
        path: a tokenizer.json of CLIP's tokenizer.
        length: L, the tokens per sentence, the start and end token included (3 to 77).
        content: the file's bytes, where they were read already; then `path` is for messages only.
    """

    sos_token = "<|startoftext|>"
    eos_token = "<|endoftext|>"

    def __init__(self, path: str | Path, length: int, content: bytes | None = None) -> None:
        if not 3 <= length <= 77:
            raise InputError(f"the text length is {length}: CLIP has 77 positions, give 3 to 77")
        try:
            if content is None:
                self._tokenizer = Tokenizer.from_file(str(path))
            else:
                self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises plain Exception
            raise InputError(f"{path} is not a tokenizer file ({error}): copy it again") from error
        sos_id, eos_id = map(self._tokenizer.token_to_id, (self.sos_token, self.eos_token))
        if sos_id is None or eos_id is None:
            raise InputError(f"{path} lacks CLIP's start and end tokens: use a CLIP tokenizer")
        self.length = length
        self.sos_id, self.eos_id, self.pad_id = sos_id, eos_id, eos_id

    def __call__(self, texts: str | bytes | Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, L) int64 and word mask (n, L) float32, 1 from the start to the end token.

        A longer sentence is cut, its end token kept, with a warning that names the dropped words.

        Raises:
            TextError: where a sentence is empty, above 4 KB, or not valid Unicode text.
        """
        sentences = [texts] if isinstance(texts, str | bytes) else list(texts)
        if not sentences:
            raise TextError("no sentence was given: pass one or more")
        ids = np.full((len(sentences), self.length), self.pad_id, np.int64)
        mask = np.zeros((len(sentences), self.length), np.float32)
        for row, sentence in enumerate(map(check_text, sentences)):
            encoding = self._tokenizer.encode(sentence, add_special_tokens=False)
            tokens = encoding.ids
            room = self.length - 2
            if len(tokens) > room:
                self._warn_of_dropped(sentence, encoding, room)
                tokens = tokens[:room]
            tokens = [self.sos_id, *tokens, self.eos_id]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _warn_of_dropped(self, sentence: str, encoding: Encoding, room: int) -> None:
        dropped = sentence[encoding.offsets[room][0] :].strip()
        warnings.warn(
            f"the sentence has {len(encoding.ids)} tokens, the model takes {room}: "
            f"dropped {dropped!r}",
            stacklevel=3,
        )


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
