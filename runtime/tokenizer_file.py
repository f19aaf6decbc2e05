"""tokenizer.json of the `tokenizers` library, as far as CLIP's and BERT's tokenizers go.

The file comes with a bundle, and `tokenizers` trusts such files: a wrong setting changes the words
in silence, a padding of 2^31 ends the process. So the file is compared, setting by setting, with
the definition of its kind, as the C++ code does (runtime/cpp/src/tokenizer_file.cpp), and
`tokenizers` is given that definition with the file's vocabulary and merges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken, Encoding, Regex, Tokenizer, decoders
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from tfanet.errors import InputError

__all__ = [
    "BERT_TOKENS",
    "END_ID",
    "KINDS",
    "MAX_FILE_BYTES",
    "MAX_ID",
    "START_ID",
    "Kind",
    "bert_wordpiece",
    "read_tokenizer",
]

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407  # in CLIP's own vocabulary
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # of BERT's, those that are needed
MAX_FILE_BYTES = 16 << 20  # CLIP's has 1.5 MB
MAX_DEPTH, MAX_NAME_BYTES, MAX_ID = 16, 200, 2**31 - 1

_SPACES = r"\s+"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_SUFFIX = "</w>"
_ANY = "*"


def _added(index: int, token: str, mark: str = "") -> dict[str, str]:
    place = f"{mark}/added_tokens/{index}/"
    names = ("normalized", "single_word", "lstrip", "rstrip")
    return {
        f"?/added_tokens/{index}/id": _ANY,  # the vocabulary says it
        place + "content": token,
        **dict.fromkeys((place + name for name in names), "false"),
        place + "special": "true",
    }


# A setting that is absent has this value too where it is marked with "?".
_CLIP = {
    "?/truncation": "null",
    "?/padding": "null",
    **_added(0, START_TOKEN),
    **_added(1, END_TOKEN),
    "/normalizer/type": "Sequence",
    "/normalizer/normalizers/0/type": "NFC",
    "/normalizer/normalizers/1/type": "Replace",
    "/normalizer/normalizers/1/pattern/Regex": _SPACES,
    "/normalizer/normalizers/1/content": " ",
    "/normalizer/normalizers/2/type": "Lowercase",
    "/pre_tokenizer/type": "Sequence",
    "/pre_tokenizer/pretokenizers/0/type": "Split",
    "/pre_tokenizer/pretokenizers/0/pattern/Regex": _WORDS,
    "/pre_tokenizer/pretokenizers/0/behavior": "Removed",
    "/pre_tokenizer/pretokenizers/0/invert": "true",
    "/pre_tokenizer/pretokenizers/1/type": "ByteLevel",
    "/pre_tokenizer/pretokenizers/1/add_prefix_space": "false",
    "?/pre_tokenizer/pretokenizers/1/trim_offsets": "true",
    "?/pre_tokenizer/pretokenizers/1/use_regex": "true",
    "/model/type": "BPE",
    "?/model/dropout": "null",
    "?/model/unk_token": END_TOKEN,
    "?/model/continuing_subword_prefix": "",
    "/model/end_of_word_suffix": _SUFFIX,
    "?/model/fuse_unk": "false",
    "?/model/byte_fallback": "false",
    "?/model/ignore_merges": "false",
}
_BERT = {
    "?/truncation": "null",
    "?/padding": "null",
    **_added(0, "[PAD]"),
    **_added(1, "[UNK]"),
    **_added(2, "[CLS]"),
    **_added(3, "[SEP]"),
    **_added(4, "[MASK]", "?"),
    "/normalizer/type": "BertNormalizer",
    "/normalizer/clean_text": "true",
    "/normalizer/handle_chinese_chars": "true",
    "?/normalizer/strip_accents": "null",
    "/normalizer/lowercase": "true",
    "/pre_tokenizer/type": "BertPreTokenizer",
    "/model/type": "WordPiece",
    "/model/unk_token": "[UNK]",
    "/model/continuing_subword_prefix": "##",
    "/model/max_input_chars_per_word": "100",
}
# What changes the ids of a sentence; all else in the file is not used.
_STEERING = (
    "/added_tokens/",
    "/normalizer",
    "/pre_tokenizer",
    "/model/",
    "/truncation",
    "/padding",
)
Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Kind:
    """What a kind of tokenizer fixes, whatever its vocabulary.

    Attributes:
        owner: the text encoder that it belongs to. positions: the tokens which that one can take.
        start, end, pad: the tokens at both ends, and the one behind a sentence unless told.
        truncation: what becomes of a longer sentence unless told; see `TextTokenizer`.
        settings: what a file of it says. build: makes it of a vocabulary and merges.
        words: the words of a sentence that it has encoded, as it reads them.
    """

    owner: str
    positions: int
    start: str
    end: str
    pad: str
    truncation: str
    settings: dict[str, str]
    build: Callable[[dict[str, int], Merges, str | Path], Tokenizer]
    words: Callable[[Tokenizer, str, Encoding], list[str]]


def read_tokenizer(path: str | Path, content: bytes, kind: str) -> Tokenizer:
    """The tokenizer of a kind with the vocabulary and merges of a file.

    Args:
        path: its name, for messages. content: its bytes. kind: one of `KINDS`.

    Raises:
        InputError: where the file is damaged or too large, is of another kind, or any setting
            differs from its kind's.
    """
    owner = KINDS[kind].owner
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} has {len(content):,} bytes, the limit is {MAX_FILE_BYTES:,}: use {owner}'s "
            "tokenizer"
        )
    try:
        document = _parse(content)
        settings = dict(_settings(document))
        model = document.get("model") if isinstance(document, dict) else None
        vocabulary, merges = _vocabulary(model), _merges(model)
        _check_settings(settings, path, kind)
        return KINDS[kind].build(vocabulary, merges, path)
    except RecursionError:
        _damaged(path, "it is nested too deeply")
    except InputError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        _damaged(path, str(error), error)


def _damaged(path: str | Path, why: str, cause: Exception | None = None) -> NoReturn:
    raise InputError(f"{path} is not a tokenizer file ({why}): copy it again") from cause


def _parse(content: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice in one object")
        return found

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    text = content.decode("utf-8-sig")
    return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)


def _settings(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every scalar but those of vocabulary and merges, under its path, like "/model/type"."""
    if path == "/model/vocab" and isinstance(value, dict):
        return
    if path == "/model/merges" and isinstance(value, list):
        return
    if not isinstance(value, dict | list):
        yield path, value if isinstance(value, str) else json.dumps(value)
        return
    if depth == MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        if len(str(name).encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise ValueError("a setting has a name of more than 200 bytes")
        # A slash stands for a level alone.
        yield from _settings(item, f"{path}/{str(name).replace('/', '|')}", depth + 1)


def _vocabulary(model: Any) -> dict[str, int]:
    found = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(found, dict):
        return {}
    for number in found.values():
        if isinstance(number, dict | list):
            raise ValueError("a token id is no number")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError("the vocabulary or a merge has a wrong type")
        if number > MAX_ID:
            raise ValueError(f"a token id is above {MAX_ID}")
    return found


def _merges(model: Any) -> Merges:
    """Pairs, written as "a b" or, by later versions, as ["a", "b"]."""
    found = model.get("merges") if isinstance(model, dict) else None
    merges: Merges = []
    for merge in found if isinstance(found, list) else ():
        if isinstance(merge, str):
            first, space, second = merge.partition(" ")
            if not space:
                raise ValueError("a merge has no space")
        elif not isinstance(merge, list) or not all(isinstance(part, str) for part in merge):
            raise ValueError("the vocabulary or a merge has a wrong type")
        elif len(merge) != 2:
            raise ValueError(f"a merge has {'more parts' if merge[1:] else 'no second part'}")
        else:
            first, second = merge
        merges.append((first, second))
    return merges


def _check_settings(settings: dict[str, str], path: str | Path, kind: str) -> None:
    def differs(name: str, found: str, expected: str) -> NoReturn:
        raise InputError(
            f"{path} is another tokenizer than {KINDS[kind].owner}'s ({name} is {found:.80}, "
            f"expected {expected}): export the model again"
        )

    for name, other in KINDS.items():
        if name != kind and settings.get("/model/type") == other.settings["/model/type"]:
            raise InputError(
                f"{path} is a {name} tokenizer, the model takes {kind}: give the file that the "
                "model was trained with"
            )
    for marked, value in KINDS[kind].settings.items():
        name = marked.removeprefix("?")
        found = settings.pop(name, None)
        if found is None and name == marked:
            differs(name, "missing", value)
        if found is not None and value not in (found, _ANY):
            differs(name, found, value)
    for name in sorted(settings):
        if name.startswith(_STEERING):
            differs(name, settings[name], "nothing")


def _clip_bpe(vocabulary: dict[str, int], merges: Merges, path: str | Path) -> Tokenizer:
    if not {START_TOKEN, END_TOKEN} <= vocabulary.keys():
        raise InputError(f"{path} lacks CLIP's start and end tokens: use a CLIP tokenizer")
    characters = sorted(ByteLevel.alphabet())
    needed = [*characters, *(character + _SUFFIX for character in characters)]
    for first, second in merges:
        needed += (first, second, first + second)
    for token in needed:
        if token not in vocabulary:
            raise ValueError(f"it lacks the token {token!r:.80}")
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            merges,
            unk_token=END_TOKEN,
            continuing_subword_prefix="",
            end_of_word_suffix=_SUFFIX,
        )
    )
    tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(_SPACES), " "), Lowercase()])
    split = Split(Regex(_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = PreTokenizers([split, ByteLevel(add_prefix_space=False)])
    tokens = [AddedToken(token, normalized=False) for token in (START_TOKEN, END_TOKEN)]
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def _checked_wordpiece(vocabulary: dict[str, int], merges: Merges, path: str | Path) -> Tokenizer:
    if not vocabulary.keys() >= set(BERT_TOKENS):
        raise InputError(f"{path} lacks BERT's [PAD], [UNK], [CLS] or [SEP]: use a BERT tokenizer")
    if merges:
        raise ValueError("a vocabulary of word pieces has no merges")
    return bert_wordpiece(vocabulary)


def bert_wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's uncased tokenizer with a vocabulary, the ids by the tokens.

    No token of it is special: "[SEP]" in a sentence is a word between brackets.
    """
    tokenizer = Tokenizer(
        WordPiece(
            vocabulary,
            unk_token="[UNK]",
            max_input_chars_per_word=100,
            continuing_subword_prefix="##",
        )
    )
    tokenizer.normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def _byte_pair_words(tokenizer: Tokenizer, sentence: str, encoding: Encoding) -> list[str]:
    """Joined from their tokens, which hold every byte."""
    words: dict[int | None, str] = {}
    for index, token in zip(encoding.word_ids, encoding.tokens, strict=True):
        words[index] = words.get(index, "") + token
    decoder = decoders.ByteLevel()
    return [decoder.decode([word.removesuffix(_SUFFIX)]) for word in words.values()]


def _word_piece_words(tokenizer: Tokenizer, sentence: str, encoding: Encoding) -> list[str]:
    """Before they become tokens, since [UNK] does not say what it stands for."""
    assert tokenizer.normalizer is not None and tokenizer.pre_tokenizer is not None
    text = tokenizer.normalizer.normalize_str(sentence)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


KINDS = {
    "clip-bpe": Kind(
        owner="CLIP",
        positions=77,
        start=START_TOKEN,
        end=END_TOKEN,
        pad=END_TOKEN,
        truncation="keep-end",
        settings=_CLIP,
        build=_clip_bpe,
        words=_byte_pair_words,
    ),
    "bert-wordpiece": Kind(
        owner="BERT",
        positions=512,
        start="[CLS]",
        end="[SEP]",
        pad="[PAD]",
        truncation="cut",
        settings=_BERT,
        build=_checked_wordpiece,
        words=_word_piece_words,
    ),
}
