"""vocab.txt to tokenizer.json: what transformers reads of it, and which files do not fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer

import tfanet
from tfanet.errors import InputError
from tfanet.runtime import TextTokenizer
from tfanet.runtime.bert_vocabulary import wordpiece_from_vocab

ASSET = Path(tfanet.__file__).parent / "assets" / "bert_tokenizer.json"
PUBLISHED = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # vocab.txt
SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "##der", "\u2028", "é"]


def written(path: Path, tokens: list[str], end: str = "\n") -> Path:
    path = path / "vocab.txt"
    path.write_bytes("".join(token + end for token in tokens).encode())
    return path


def test_the_shipped_file_comes_of_its_vocabulary(tmp_path: Path) -> None:
    vocabulary = json.loads(ASSET.read_text(encoding="utf-8"))["model"]["vocab"]
    path = written(tmp_path, sorted(vocabulary, key=vocabulary.__getitem__))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PUBLISHED
    assert wordpiece_from_vocab(path, 30522) == ASSET.read_bytes()
    # `tokenizers` makes the same of it by its own recipe.
    ours, theirs = Tokenizer.from_file(str(ASSET)), BertWordPieceTokenizer(str(path))
    for text in ("The reddest café", "[MASK] no. 5 [SEP]", "日本 ##s"):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.encode(text, "too").type_ids == theirs.encode(text, "too").type_ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_lines_are_tokens(tmp_path: Path, start: str, end: str) -> None:
    path = written(tmp_path, [start + SMALL[0], *SMALL[1:]], end)
    for content in (path.read_bytes(), path.read_bytes().removesuffix(end.encode())):
        path.write_bytes(content)
        made = wordpiece_from_vocab(path, len(SMALL))
        assert json.loads(made)["model"]["vocab"] == {t: i for i, t in enumerate(SMALL)}
        ids, _ = TextTokenizer("t.json", 7, made, kind="bert-wordpiece")("The redder [SEP]")
        assert ids.tolist() == [[2, 4, 5, 6, 1, 1, 1]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([*SMALL, "the"], "has 'the' at lines 5 and 10: copy the vocab.txt again"),
        ([*SMALL, "", "x"], "is empty at line 10"),
        ([""], "is empty at line 1"),
        ([], "is empty at line 1"),
        ([t for t in SMALL if t != "[SEP]"], r"has no line \[SEP\]: give BERT's vocab.txt"),
        (['{"model": {}}'], r"has no line \[PAD\]"),
        ([*SMALL, "x"], "has 10 tokens, the model has 9: give the vocabulary that it was trained"),
        (SMALL[:-1], "has 8 tokens, the model has 9"),
        ([*SMALL, "x" * (2 << 20)], "has more than 2,097,152 bytes: give BERT's vocab.txt"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, tokens: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        wordpiece_from_vocab(written(tmp_path, tokens), 9)
    assert str(caught.value).startswith(str(tmp_path))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"is not UTF-8 \(.*position 6.*\): copy the vocab"):
        wordpiece_from_vocab(path)
    for missing in (tmp_path, tmp_path / "none.txt", "\0"):
        with pytest.raises(InputError, match=r"cannot be read .*: check its path"):
            wordpiece_from_vocab(missing)
