"""The runtime's tokenizers against those of transformers, cut and padded the same way."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import every_change, outcome
from tokenizer_files import OF_BERT, OF_CLIP, STILL_BERT
from tokenizers import Tokenizer
from transformers import BertTokenizer, CLIPTokenizer

import tfanet
from tfanet.errors import InputError
from tfanet.runtime import TextError, TextTokenizer

ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
BERT = ASSET.with_name("bert_tokenizer.json")
PIECES = [
    "red", "Left", "the", "10:30", "100%", "don't", "é", "e\u0301", "naïve", "日本", "🙂", "\t",
    "\n", "  ", "...", "A.B", "'s", "&amp;", "#1", "ﬁ", "“", "x" * 30, "İ", "ß", "<|endoftext|>x",
]  # fmt: skip


def bert(length: int, content: bytes | None = None, **rules: Any) -> TextTokenizer:
    return TextTokenizer(BERT, length, content, kind="bert-wordpiece", **rules)


def random_texts(rng: random.Random) -> Iterator[str]:
    for _ in range(300):
        text = "".join(
            rng.choice(PIECES) + rng.choice(["", " "]) for _ in range(rng.randint(1, 12))
        )
        if text.strip():
            yield text


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    model = json.loads(ASSET.read_text())["model"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize("length", [3, 17, 77])
@pytest.mark.filterwarnings("ignore:the sentence has")
def test_equals_transformers_on_random_strings(oracle, length):
    rng = random.Random(length)
    tokenizer = TextTokenizer(ASSET, length)
    for text in random_texts(rng):
        expected = oracle(text, padding="max_length", max_length=length, truncation=True)
        ids, mask = tokenizer(text)
        valid = int(mask.sum())
        assert ids[0, :valid].tolist() == expected["input_ids"][: sum(expected["attention_mask"])]
        assert (ids[0, valid:] == 49407).all()
        assert ids[0, 0] == 49406 and ids[0, valid - 1] == 49407
        assert mask[0].tolist() == [1.0] * valid + [0.0] * (length - valid)


@pytest.mark.parametrize("length", [3, 20, 512])
@pytest.mark.filterwarnings("ignore:the sentence has")
def test_bert_equals_transformers_on_random_strings(length):
    """Encoded with start and end, then cut: the recipe of CrossVLT and ReLA."""
    rng = random.Random(length)
    oracle = BertTokenizer(json.loads(BERT.read_text())["model"]["vocab"])
    tokenizer = bert(length)
    for text in random_texts(rng):
        expected = oracle(text)["input_ids"][:length]
        ids, mask = tokenizer(text)
        assert ids[0].tolist() == expected + [0] * (length - len(expected))
        assert mask[0].tolist() == [1.0] * len(expected) + [0.0] * (length - len(expected))


def test_what_bert_knows_by_its_brackets_is_text():
    text = "[CLS] the [SEP] [PAD][UNK] [MASK] ##s [unused1]"
    oracle = Tokenizer.from_file(str(BERT))
    oracle.encode_special_tokens = True
    ids, mask = bert(40)(text)
    count = int(mask.sum())
    assert ids[0, :count].tolist() == oracle.encode(text).ids
    assert not {0, 100, 101, 102, 103} & set(ids[0, 1 : count - 1].tolist())


def test_known_sentences_of_bert():
    ids, mask = bert(8)(["hello world", "unaffable Résumé"])
    assert ids.tolist() == [
        [101, 7592, 2088, 102, 0, 0, 0, 0],
        [101, 14477, 20961, 3468, 13746, 102, 0, 0],
    ]
    assert mask.sum(1).tolist() == [4, 6]
    # Of the golden files of CrossVLT and InstAlign.
    golden = [101, 1996, 2417, 4418, 2187, 1997, 2732, 102]
    assert bert(21)("the red circle left of star")[0].tolist() == [golden + [0] * 13]


@pytest.mark.filterwarnings("ignore:the sentence has")
def test_both_rules_for_a_longer_sentence_in_both_kinds():
    words = "a red dog"
    for make, start, end in ((bert, 101, 102), (clip, 49406, 49407)):
        one, two, three = make(5)(words)[0][0, 1:4].tolist()
        for length, truncation, expected in (
            (3, "cut", [start, one, two]),
            (4, "cut", [start, one, two, three]),  # every word is there, the end is lost
            (3, "keep-end", [start, one, end]),
            (4, "keep-end", [start, one, two, end]),
        ):
            ids, mask = make(length, truncation=truncation)(words)
            assert ids.tolist() == [expected] and mask.all()


def test_the_dropped_words_are_named_by_what_has_room():
    with pytest.warns(UserWarning, match="has 3 tokens, the model takes 2: dropped 'Dóg'$"):
        bert(3)("a réd Dóg")
    with pytest.warns(UserWarning, match="has 3 tokens, the model takes 1: dropped 'réd Dóg'$"):
        bert(3, truncation="keep-end")("a réd Dóg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bert(4)("a réd Dóg")


def clip(length: int, **rules: Any) -> TextTokenizer:
    return TextTokenizer(ASSET, length, **rules)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_words_are_the_whole_text_and_count_every_token(kind):
    """By the marks that the tokens bear, and by the groups of the library, file read by itself."""
    oracle = Tokenizer.from_file(str(BERT if kind == "bert" else ASSET))
    oracle.encode_special_tokens = kind == "bert"
    tokenizer, split = bert(512) if kind == "bert" else clip(77), 0
    for text in random_texts(random.Random(kind)):
        encoding = oracle.encode(text, add_special_tokens=False)
        if len(encoding.ids) > tokenizer.length - 2:
            continue
        counts: list[int] = []
        begins = True
        for token in encoding.tokens:
            if kind == "bert":
                begins = not token.startswith("##")
            counts += [0] if begins else []
            counts[-1] += 1
            begins = token.endswith("</w>") or token == "<|endoftext|>"
        words = tokenizer.words(text)
        assert [count for _, count in words] == counts, text
        assert counts == list(Counter(encoding.word_ids).values())
        assert "".join(word for word, _ in words) == "".join(
            oracle.normalizer.normalize_str(text).split()
        )
        split += max(counts) > 1
    assert split > 50


def test_known_words():
    """Unknown ones are read, too; of what is cut there are only the tokens that have room."""
    text = "Unbelievably Café, 🙂x"
    short = bert(8)  # room for 7
    assert short.words(text) == (("unbelievably", 5), ("cafe", 1), (",", 1))
    assert short.words(text.replace(",", "")) == (("unbelievably", 5), ("cafe", 1), ("🙂x", 1))
    assert bert(6, truncation="keep-end").words(text) == (("unbelievably", 4),)
    other = clip(6)  # room for 4
    assert other.words(text.encode()) == (("unbelievably", 1), ("café", 1), (",", 1), ("🙂", 1))
    assert other.words("a<|endoftext|>\0") == (("a", 1), ("<|endoftext|>", 1), ("\0", 1))
    for bad in ("", "\u0301", b"\xff"):
        with pytest.raises(TextError):
            short.words(bad)


def test_other_pad_ids():
    """ASDA pads CLIP's tokens with 0."""
    tokenizer = clip(6, pad_id=0)
    ids, mask = tokenizer("red")
    assert ids.tolist() == [[49406, 736, 49407, 0, 0, 0]] and mask.sum() == 3
    assert (tokenizer.sos_id, tokenizer.eos_id, tokenizer.pad_id) == (49406, 49407, 0)
    assert (bert(5).sos_id, bert(5).eos_id, bert(5).pad_id) == (101, 102, 0)
    for pad_id in (-1, 49408, 2**31, 10**400):
        with pytest.raises(InputError, match=r"pad id is .*, which is no token of .*\.json: give"):
            clip(6, pad_id=pad_id)


@pytest.mark.parametrize("text", ["\u0301", "\u200b", "\x01 \u0300\ufffd"])
def test_a_sentence_without_a_word(text):
    with pytest.raises(TextError, match="nothing but accents and control characters: say what"):
        bert(5)(text)


def test_rules_that_are_not_known():
    for rules, message in (
        ({"kind": "unigram"}, "the tokenizer is 'unigram': choose clip-bpe or bert-wordpiece"),
        ({"truncation": "left"}, "the truncation is 'left': choose keep-end or cut"),
    ):
        with pytest.raises(InputError, match=message):
            clip(6, **rules)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(ASSET, 8)


def test_batches():
    ids, mask = TextTokenizer(ASSET, 10)(["red", "the big star"])
    assert ids.shape == mask.shape == (2, 10)
    assert ids.dtype == np.int64 and mask.dtype == np.float32
    assert mask.sum(1).tolist() == [3, 5]


def test_bad_files_and_lengths(tmp_path):
    with pytest.raises(InputError, match="text length is 78"):
        TextTokenizer(ASSET, 78)
    with pytest.raises(InputError, match="length is 513: BERT has 512 positions, give 3 to 512"):
        bert(513)
    for path in (tmp_path / "none.json", tmp_path, "\0"):
        with pytest.raises(InputError, match=r"cannot be read .*: check its path"):
            TextTokenizer(path, 10)


@pytest.mark.parametrize(
    ("kind", "asset", "change", "message"),
    [("clip-bpe", ASSET, *case) for case in OF_CLIP]
    + [("bert-wordpiece", BERT, *case) for case in OF_BERT],
)
def test_other_tokenizers_are_refused_in_the_words_of_c(kind, asset, change, message):
    data = json.loads(asset.read_text())
    change(data)
    with pytest.raises(InputError, match=r"^t\.json ") as caught:
        TextTokenizer("t.json", 10, json.dumps(data).encode(), kind=kind)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_the_other_kind():
    with pytest.raises(InputError, match="is a bert-wordpiece tokenizer, the model takes clip-bpe"):
        TextTokenizer(BERT, 10)
    with pytest.raises(InputError, match="is a clip-bpe tokenizer, the model takes bert-wordpiece"):
        TextTokenizer(ASSET, 10, kind="bert-wordpiece")


@pytest.mark.parametrize("change", STILL_BERT)
def test_what_is_not_used_may_differ(change):
    data = json.loads(BERT.read_text())
    change(data)
    ids, _ = bert(6, json.dumps(data).encode())("hello [MASK]")
    assert ids.tolist() == [[101, 7592, 1031, 7308, 1033, 102]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a tokenizer file"),
        (b"\xff", "not a tokenizer file"),
        ("{}".encode("utf-16"), "not a tokenizer file"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"version": 1, "version": 2}', "a name stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": %s}' % (b"9" * 10_000), "not a tokenizer file"),
        (b" " * (16 << 20) + b"{}", "16,777,218 bytes, the limit is 16,777,216"),
    ],
)
def test_what_is_no_such_document(content, message):
    with pytest.raises(InputError, match=message):
        TextTokenizer("t.json", 10, content)


CLIP_WORDS = {"in</w>": 600}
BERT_WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 5, "[SEP]": 6, "in": 600, "7": 278}


@pytest.mark.parametrize(
    ("kind", "asset", "words", "merges", "expected"),
    [
        ("clip-bpe", ASSET, CLIP_WORDS, ["i n</w>"], [49406, 600, 278, 49407, 49407, 49407]),
        ("bert-wordpiece", BERT, BERT_WORDS, [], [5, 600, 278, 6, 0, 0]),
    ],
)
def test_files_by_chance(kind, asset, words, merges, expected):
    """A changed file either is refused in one line, or means what its kind's does."""
    whole = json.loads(asset.read_text())
    vocabulary = whole["model"]["vocab"]
    if kind == "clip-bpe":
        words = words | {t: n for t, n in vocabulary.items() if n < 512 or n > 49405}
    whole["model"].update({"vocab": {}, "merges": []} if merges else {"vocab": {}})
    accepted = 0
    for data in (whole, *every_change(whole)):
        model = data.get("model")
        if isinstance(model, dict) and model.get("vocab") == {}:
            model["vocab"] = words
            if merges:
                model["merges"] = model.get("merges") or merges
        content = json.dumps(data).encode()
        tokenizer = outcome(
            lambda: TextTokenizer("t.json", 6, content, kind=kind),  # noqa: B023
            InputError,
        )
        if tokenizer is not None:
            accepted += 1
            assert tokenizer("in 7")[0].tolist() == [expected]
    assert accepted > 10  # what is not used may be anything


def test_warnings_of_cut_sentences_do_not_gather(tokenizer):
    def kept() -> int:
        names = (
            vars(module).get("__warningregistry__", {}) for module in list(sys.modules.values())
        )
        return sum(len(found) for found in names if isinstance(found, dict))

    before = kept() + len(globals().get("__warningregistry__", {}))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        for number in range(3000):
            tokenizer(f"one two three four five six seven eight {number}")
    assert kept() + len(globals().get("__warningregistry__", {})) == before
    assert len(tokenizer._warned) <= 1001


def test_a_cut_sentence_is_told_once_where_it_was_given(tokenizer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            tokenizer("one two three four five six seven eight nine")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="dropped"):
            tokenizer("one two three four five six seven eight nine")
