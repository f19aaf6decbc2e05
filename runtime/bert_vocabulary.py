"""BERT's vocab.txt, one token a line, to the tokenizer.json of a bundle."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from tokenizers.decoders import WordPiece
from tokenizers.processors import TemplateProcessing

from tfanet.errors import InputError, shown
from tfanet.runtime.tokenizer_file import BERT_TOKENS, bert_wordpiece

__all__ = ["wordpiece_from_vocab"]

MAX_VOCABULARY_BYTES = 2 << 20  # the largest of BERT's, for 104 languages, has half of it


def wordpiece_from_vocab(path: str | Path, vocabulary_size: int | None = None) -> bytes:
    """The tokenizer.json of BERT's uncased tokenizer with the vocabulary of a vocab.txt.

    Args:
        path: the file: UTF-8, a token's id is the number of its line, from 0 on.
        vocabulary_size: how many tokens there must be: the rows of the model's word embedding.

    Raises:
        InputError: where the file cannot be read, is too large or not UTF-8, has an empty or a
            repeated line, lacks [PAD], [UNK], [CLS] or [SEP], or has another number of tokens.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_VOCABULARY_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}): check its path") from error
    if len(content) > MAX_VOCABULARY_BYTES:
        raise InputError(
            f"{path} has more than {MAX_VOCABULARY_BYTES:,} bytes: give BERT's vocab.txt, which "
            "has one token on each line"
        )
    vocabulary = _tokens(path, content)
    missing = [token for token in BERT_TOKENS if token not in vocabulary]
    if missing:
        raise InputError(
            f"{path} has no line {missing[0]}: give BERT's vocab.txt, which has one token on each "
            "line"
        )
    if vocabulary_size is not None and len(vocabulary) != vocabulary_size:
        raise InputError(
            f"{path} has {len(vocabulary):,} tokens, the model has {vocabulary_size:,}: give the "
            "vocabulary that it was trained with"
        )
    tokenizer = bert_wordpiece(vocabulary)
    special = [token for token in (*BERT_TOKENS, "[MASK]") if token in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = WordPiece()
    return tokenizer.to_str().encode() + b"\n"


def _tokens(path: str | Path, content: bytes) -> dict[str, int]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): copy the vocab.txt again") from error
    # str.splitlines would take rare spaces, which are tokens, for ends of lines.
    lines = text.removesuffix("\n").split("\n")
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        token = line.removesuffix("\r")
        if not token:
            raise InputError(f"{path} is empty at line {index + 1}: copy the vocab.txt again")
        if token in vocabulary:
            raise InputError(
                f"{path} has {shown(token)} at lines {vocabulary[token] + 1} and {index + 1}: copy "
                "the vocab.txt again"
            )
        vocabulary[token] = index
    return vocabulary
