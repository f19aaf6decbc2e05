"""Both tokenizers in C++ equal `tokenizers` with the same file, on all kinds of text."""

from __future__ import annotations

import json
import random
import runpy
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_files import OF_BERT, OF_CLIP, STILL_BERT
from tokenizers import Tokenizer

import tfanet
from tfanet.errors import InputError
from tfanet.runtime import TextError, TextTokenizer
from tfanet.runtime.tokenizer import check_text

ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
BERT = ASSET.with_name("bert_tokenizer.json")
ASSETS = {"clip-bpe": ASSET, "bert-wordpiece": BERT}
ROOM = 75  # tokens of a sentence of CLIP's full length, without start and end
HAND_PICKED = [
    "a",
    " a ",
    "the man in red, on the left!",
    "it's we're I'VE they'll I'd I'm don't 'S 'sx 'ſ",
    "''s 'a' \"'s\" !'s '' 're've",
    "1234 x2y 3½ ² ① ٣ Ⅷ 〇",
    "naïve café cafe\u0301 Ångström Å",
    "日本の猫 中文字符 한국어 각 \u1100\u1161\u11a8",
    "🙂👍🏽👨‍👩‍👧 flag 🇩🇪",
    "tab\there\nline\r\n end\u3000x\u2003y\xa0z\x85q",
    "<|startoftext|>",
    "a<|endoftext|>b",
    "<|STARTOFTEXT|> x",
    "!<|EndOfText|>!",
    "<|endoftext",
    "\x00\x01\x1c\x7f",
    "İSTANBUL I ı ſ ß ẞ Σίσυφος ΣΑΣ ǅ",
    "q\u0307\u0323 q\u0323\u0307 \u0344 \u0958 \ufb01 \u212b \u2126",
    "\u0301\u0301a",
    "a\u0300\u0327\u0345\u05b0b",
    "\u0dd9\u0dcf\u0dca",
    "\U0001d15e \ufdfa \ufeffbom",
    "Ꭰ ꭰ \u1c90 \u10d0 \u2c2f \U00010400 \U0001e900 \ud7ff \ue000 \U0010ffff",
    "…—–‘’“”«»¿¡",
    "don’t",
    "[SEP] [CLS]a[PAD] [MASK]s [UNK] ##s [unused1] [sep]",
    "x\u200dy a\u00adb \ufeff \u202e \ue000 \ufffd \u0378",
    "\u2028a\u2029b\u0085c\u180ed\u200be",
    "a" * 100 + " " + "a" * 101 + " " + "é" * 100 + " " + "\u0301é" * 101,
    "$5+3=8 <a|b> ^_` ~ €5 ™ ¶ § ⁂ ‿ 、。「」 ؟ ། ꧁ 𐄀 ＂＃",
    "\u302e\u0300 \U00016ff0\u0301 \U0001d165\u0301\U0001d16d \u1ab0 \u093c\u093f ํ้",
]
# Runs of code points with rules of their own.
BLOCKS = [
    (0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
    (0x1100, 0x1200), (0x1E00, 0x2070), (0x2100, 0x2300), (0x3040, 0x3100), (0x4E00, 0x4F00),
    (0xA640, 0xABC0), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0xFF00, 0xFFF0), (0x10400, 0x10500),
    (0x1D100, 0x1D800), (0x1F300, 0x1FA00), (0x2F800, 0x2FA20), (0x20000, 0x33480), (0, 0x110000),
]  # fmt: skip
WORDS = (
    "the a left right red man's dog's woman who isn't 2nd 10 TV T-shirt café über 3/4 ... ' \" "
    "<|endoftext|> [SEP] unbelievably Straße naïveté żółw červený İstanbul nguyễn крáсный "
    "красный червоний Γάτα κόκκινος πράσινη הכלב אָדֹם قطة أَحْمَر کتابچه लाल कुत्ता কুকুর ਕੁੱਤਾ நாய் "
    "కుక్క ಕೆಂಪು നായ සුනඛයා หมาแดง ໝາ ခွေး წითელი ᲬᲘᲗᲔᲚᲘ կարմիր ውሻ ᏣᎳᎩ ᖃᓂᐅᔮᖅ ឆ្កែ རྒྱལ ᠮᠣᠩᠭᠣᠯ 빨간 "
    "강아지 赤い ネコ ｱｶｲ 红色 紅色的貓 ⴰⵔⵓⵎⵉ 𐐔𐐯𐑅 𞤆𞤵𞤤 ﬁne ½ №5 x² ①"
)


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Sentences, the same with accents taken apart, and characters of all blocks in disorder."""
    yield from HAND_PICKED
    rng = random.Random(seed)
    words = WORDS.split(" ")
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.45:
                word = rng.choice(words)
                parts.append(rng.choice([word, word.upper(), word.title()]))
            elif kind < 0.55:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 6))))
            else:
                low, high = rng.choice(BLOCKS)
                parts.extend(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))
            parts.append(rng.choice(["", "", " ", " ", "  ", "\t", "\n", "'", "’", "\u0301", "-"]))
        text = "".join(parts)
        if rng.random() < 0.2:
            text = unicodedata.normalize("NFD", text)
        yield "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    return Tokenizer.from_file(str(ASSET))


@pytest.fixture(scope="module")
def references(reference: Tokenizer) -> dict[str, Tokenizer]:
    """A tokenizer for each kind, as the library itself reads the file."""
    bert = Tokenizer.from_file(str(BERT))
    bert.encode_special_tokens = True  # what a user writes in brackets is text
    return {"clip-bpe": reference, "bert-wordpiece": bert}


def lines_of(program: Path, path: Path, kind: str, corpus: list[str], *rules: object) -> list[str]:
    """What print_tokens.cpp says of each text."""
    encoded = [text.encode() for text in corpus]
    stream = b"".join(b"%d\n%s" % (len(text), text) for text in encoded)
    command = [str(program), str(path), kind, *map(str, rules)]
    output = subprocess.run(command, input=stream, stdout=subprocess.PIPE, check=True).stdout
    return output.decode().splitlines()


def tokens_of(program: Path, kind: str, corpus: list[str]) -> list[list[int]]:
    """The ids that the C++ code gives to each text, uncut."""
    lines = lines_of(program, ASSETS[kind], kind, corpus)
    return [list(map(int, line.split())) for line in lines]


def test_equal_to_tokenizers(
    open_runtime: Callable, long_bundle: Path, reference: Tokenizer
) -> None:
    runtime = open_runtime(long_bundle)
    compared = 0
    for text in texts(3000):
        if not text.strip():
            continue  # refused, see below
        expected = reference.encode(text, add_special_tokens=False).ids
        ids, mask, count = runtime.tokenize(text.encode())
        kept = expected[:ROOM]
        assert count == len(expected), repr(text)
        assert ids.tolist() == [49406, *kept, 49407] + [49407] * (ROOM - len(kept)), repr(text)
        assert mask.tolist() == [1.0] * (len(kept) + 2) + [0.0] * (ROOM - len(kept))
        compared += 1
    assert compared > 2900


def test_cut_as_in_python(open_runtime: Callable, shared_bundle: Path, python: Any) -> None:
    runtime = open_runtime(shared_bundle)
    long = "a big red ball and seven small dogs"
    with pytest.warns(UserWarning, match="dropped 'seven small dogs'|8 tokens"):
        ids, mask = python.tokenize(long)
    native_ids, native_mask, count = runtime.tokenize(long.encode())
    np.testing.assert_array_equal(native_ids, ids[0])
    np.testing.assert_array_equal(native_mask, mask[0])
    sentence = runtime.encode(long)
    assert runtime.api.sentence_dropped(sentence) == count - 6 == 2
    runtime.api.sentence_free(sentence)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  \t\n",
        "\u3000\x85\x1f".encode(),
        b"\xff",
        b"ab\x80",
        b"\xc3",
        b"\xe2\x82",
        b"\xe2\x82x",
        b"\xe2x",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf0\x9f\x99",
        b"\xf0\x80\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf0\x9f(x",
        b"a" * 4097,
        "é".encode() * 2049,
        b" " * 5000,
        b"\xff" * 5000,
        b"ok \xf8\x88\x80\x80\x80",
        b"\xe0\x9f\x80",
        b"\xf1\x80\x80",
    ],
)
def test_refused_in_the_words_of_python(
    text: bytes, open_runtime: Callable, shared_bundle: Path
) -> None:
    runtime = open_runtime(shared_bundle)
    with pytest.raises(TextError) as expected:
        check_text(text)
    with pytest.raises(Exception, match="the sentence") as caught:
        runtime.tokenize(text)
    assert str(caught.value) == str(expected.value)
    assert caught.value.status == "BAD_TEXT"


def test_longest_sentence(open_runtime: Callable, long_bundle: Path, reference: Tokenizer) -> None:
    runtime = open_runtime(long_bundle)
    for text in ("a" * 4096, "é" * 2048, "ab, " * 1024, "🙂" * 1024, "\u0301" * 2048):
        expected = reference.encode(text, add_special_tokens=False).ids
        ids, _, count = runtime.tokenize(text.encode())
        assert count == len(expected)
        assert ids[1:-1].tolist() == (expected + [49407] * ROOM)[:ROOM]


@pytest.mark.parametrize(("change", "message"), OF_CLIP)
def test_other_tokenizers_are_refused(
    change: Callable[[Any], Any], message: str, bundle: Path, seal: Callable, open_runtime: Callable
) -> None:
    data = json.loads(ASSET.read_text())
    change(data)
    (bundle / "tokenizer.json").write_text(json.dumps(data))
    seal(bundle)
    with pytest.raises(Exception, match=r"tokenizer\.json") as caught:
        open_runtime(bundle)
    assert message in str(caught.value)
    assert caught.value.status == "BAD_BUNDLE"


def test_merges_as_pairs(
    bundle: Path, seal: Callable, open_runtime: Callable, reference: Tokenizer
) -> None:
    data = json.loads(ASSET.read_text())
    data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]
    (bundle / "tokenizer.json").write_text(json.dumps(data))
    seal(bundle)
    ids, _, _ = open_runtime(bundle).tokenize(b"the reddest circles")
    expected = reference.encode("the reddest circles", add_special_tokens=False).ids
    assert ids.tolist()[1 : len(expected) + 1] == expected


@pytest.fixture(scope="module")
def program(compile_parts: Callable[..., Path]) -> Path:
    return compile_parts("print_tokens.cpp")


def test_word_pieces_equal_to_tokenizers(program: Path, references: dict[str, Tokenizer]) -> None:
    corpus = list(texts(3000, seed=3))
    reference = references["bert-wordpiece"]
    for text, ids in zip(corpus, tokens_of(program, "bert-wordpiece", corpus), strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize(
    ("kind", "length", "pad_id", "truncation"),
    [
        ("clip-bpe", 17, 0, "keep-end"),
        ("clip-bpe", 6, 49407, "cut"),
        ("bert-wordpiece", 3, None, None),
        ("bert-wordpiece", 20, 0, "cut"),
        ("bert-wordpiece", 9, 5, "keep-end"),
        ("bert-wordpiece", 512, None, None),
        ("clip-bpe", 78, None, None),
        ("bert-wordpiece", 513, None, None),
        ("bert-wordpiece", 2, None, None),
        ("bert-wordpiece", 20, 30522, None),
        ("clip-bpe", 20, -1, None),
        ("clip-bpe", 20, None, "left"),
        ("unigram", 20, None, None),
    ],
)
@pytest.mark.filterwarnings("ignore:the sentence has")
def test_rules_and_refusals_are_those_of_python(
    program: Path, kind: str, length: int, pad_id: int | None, truncation: str | None
) -> None:
    asset = ASSETS.get(kind, ASSET)
    corpus = ["\u0301", "\u200b\x07", " ", "a big dog", *texts(200, seed=4)]
    content, reference = asset.read_bytes(), Tokenizer.from_file(str(asset))
    reference.encode_special_tokens = kind == "bert-wordpiece"

    def expected() -> Iterator[str]:
        tokenizer = TextTokenizer(
            "t.json", length, content, kind=kind, pad_id=pad_id, truncation=truncation
        )
        for text in corpus:
            count = len(reference.encode(text, add_special_tokens=False).ids)
            try:
                ids, mask = tokenizer(text)
            except TextError as error:
                yield str(error)
            else:
                words = [
                    "".join(f"{byte}." for byte in word.encode()) + f":{tokens}"
                    for word, tokens in tokenizer.words(text)
                ]
                yield " ".join(map(str, [count, *ids[0].tolist(), int(mask.sum()), *words]))

    rules = (length, "" if pad_id is None else pad_id, truncation or "")
    lines = lines_of(program, asset, kind, corpus, *rules)
    if len(lines) > 1:
        assert lines == list(expected())
    else:
        with pytest.raises(InputError) as caught:
            next(expected())
        assert lines == [str(caught.value)]


@pytest.mark.parametrize(("change", "message"), OF_BERT)
def test_other_word_pieces_are_refused_in_the_words_of_python(
    change: Callable[[Any], Any], message: str, program: Path, tmp_path: Path
) -> None:
    data = json.loads(BERT.read_text())
    change(data)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    (line,) = lines_of(program, path, "bert-wordpiece", ["a"])
    with pytest.raises(InputError) as caught:
        TextTokenizer("t.json", 77, path.read_bytes(), kind="bert-wordpiece")
    assert line == str(caught.value) and message in line


@pytest.mark.parametrize("change", STILL_BERT)
def test_what_is_not_used_may_differ(
    change: Callable[[Any], Any], program: Path, tmp_path: Path
) -> None:
    data = json.loads(BERT.read_text())
    change(data)
    (tmp_path / "t.json").write_text(json.dumps(data))
    found = lines_of(program, tmp_path / "t.json", "bert-wordpiece", ["hello [MASK]"])
    assert found == ["7592 1031 7308 1033"]


def test_the_longest_sentences_of_word_pieces(program: Path) -> None:
    """Words that fall apart, or are in no vocabulary."""
    corpus = [("x" * 100 + " ") * 40, "ﷺ" * 1300, ("q" * 99 + "ɶ ") * 40, "## " * 1300, "[" * 4096]
    reference = Tokenizer.from_file(str(BERT))
    for text, ids in zip(corpus, tokens_of(program, "bert-wordpiece", corpus), strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.full
@pytest.mark.parametrize("kind", ASSETS)
def test_100_000_texts_uncut(kind: str, program: Path, references: dict[str, Tokenizer]) -> None:
    """Every token of every text, up to 10 kB."""
    corpus = ["", *texts(100_000, seed=1)]
    rng = random.Random(2)
    for size in (1_000, 4_000, 10_000):
        for low, high in BLOCKS:
            chars = (chr(rng.randrange(low, high)) for _ in range(size // 2))
            corpus.append("".join(c for c in chars if not 0xD800 <= ord(c) < 0xE000))
        corpus.append("a" * size)
        corpus.append(" ".join(rng.choice(WORDS.split(" ")) for _ in range(size // 4)))
    reference = references[kind]
    for text, ids in zip(corpus, tokens_of(program, kind, corpus), strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.full
@pytest.mark.parametrize("kind", ASSETS)
def test_every_character_alone_and_in_a_word(
    kind: str, program: Path, references: dict[str, Tokenizer]
) -> None:
    reference = references[kind]
    corpus = [f"a{chr(c)}b {chr(c)}" for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    expected = reference.encode_batch_fast(corpus, add_special_tokens=False)
    for text, ids, right in zip(corpus, tokens_of(program, kind, corpus), expected, strict=True):
        assert ids == right.ids, repr(text)


@pytest.mark.full
def test_tables_are_those_of_tokenizers() -> None:
    """What the C++ code knows about Unicode is what the installed `tokenizers` does."""
    root = Path(__file__).resolve().parents[2]
    made = runpy.run_path(str(root / "tools" / "make_unicode_tables.py"))["text"]()
    assert made == (root / "runtime/cpp/src/unicode_tables.inc").read_text()
