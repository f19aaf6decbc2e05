"""The tokenizer in C++ equals `tokenizers` with the same file, on all kinds of text."""

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
from tokenizer_files import OF_CLIP
from tokenizers import Tokenizer

import tfanet
from tfanet.runtime import TextError
from tfanet.runtime.tokenizer import check_text

ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
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
]
# Runs of code points with rules of their own.
BLOCKS = [
    (0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
    (0x1100, 0x1200), (0x1E00, 0x2070), (0x2100, 0x2300), (0x3040, 0x3100), (0x4E00, 0x4F00),
    (0xA640, 0xABC0), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0xFF00, 0xFFF0), (0x10400, 0x10500),
    (0x1D100, 0x1D800), (0x1F300, 0x1FA00), (0x2F800, 0x2FA20), (0, 0x110000),
]  # fmt: skip
WORDS = (
    "the a left right red man's dog's woman who isn't 2nd 10 TV T-shirt café über 3/4 ... ' \" "
    "<|endoftext|>"
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


@pytest.mark.full
def test_100_000_texts_uncut(compile_parts: Callable[..., Path], reference: Tokenizer) -> None:
    """Every token of every text, up to 10 kB."""
    program = compile_parts("print_tokens.cpp")
    corpus = ["", *texts(100_000, seed=1)]
    rng = random.Random(2)
    for size in (1_000, 4_000, 10_000):
        for low, high in BLOCKS:
            chars = (chr(rng.randrange(low, high)) for _ in range(size // 2))
            corpus.append("".join(c for c in chars if not 0xD800 <= ord(c) < 0xE000))
        corpus.append("a" * size)
        corpus.append(" ".join(rng.choice(WORDS.split(" ")) for _ in range(size // 4)))
    encoded = [text.encode() for text in corpus]
    stream = b"".join(b"%d\n%s" % (len(text), text) for text in encoded)
    output = subprocess.run(
        [program, ASSET], input=stream, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    lines = output.splitlines()
    assert len(lines) == len(corpus)
    for text, line in zip(corpus, lines, strict=True):
        assert list(map(int, line.split())) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.full
def test_tables_are_those_of_tokenizers() -> None:
    """What the C++ code knows about Unicode is what the installed `tokenizers` does."""
    root = Path(__file__).resolve().parents[2]
    made = runpy.run_path(str(root / "tools" / "make_unicode_tables.py"))["text"]()
    assert made == (root / "runtime/cpp/src/unicode_tables.inc").read_text()
