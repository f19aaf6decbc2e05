"""The shipped tokenizer file against transformers' CLIPTokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

import tfanet

ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"


@pytest.fixture(scope="module")
def both() -> tuple[Tokenizer, CLIPTokenizer, list[str]]:
    model = json.loads(ASSET.read_text(encoding="utf-8"))["model"]
    theirs = CLIPTokenizer(model["vocab"], [tuple(m.split(" ")) for m in model["merges"]])
    return Tokenizer.from_file(str(ASSET)), theirs, list(model["vocab"])


def test_known_ids(both: tuple[Tokenizer, CLIPTokenizer, list[str]]) -> None:
    ours = both[0]
    assert ours.get_vocab_size() == 49408
    # The ids that CLIP's own examples print.
    assert ours.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ours.encode("A PHOTO  of a\tCat").ids == ours.encode("a photo of a cat").ids


def test_equals_transformers_on_a_fuzzed_corpus(
    both: tuple[Tokenizer, CLIPTokenizer, list[str]],
) -> None:
    ours, theirs, vocabulary = both
    rng = Random(0)
    pieces = [word.replace("</w>", "") for word in vocabulary]
    ranges = [(32, 127), (32, 127), (1, 0x300), (0x300, 0x370), (0x370, 0x2100), (0x4E00, 0x4F00)]
    ranges += [(0xAC00, 0xAC80), (0xFB00, 0xFB10), (0x1F300, 0x1F650)]
    fixed = ["10:30 100% we'll don't", "<|endoftext|>", "E\u0301 \u00c9", "a\tb\r\n c", "", "  "]
    corpus = list(fixed)
    for _ in range(3000):
        corpus.append(" ".join(rng.choices(pieces, k=rng.randint(1, 10))))
        corpus.append(
            "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 30)))
        )
        corpus.append(f"{rng.choice(fixed)}{rng.choice(pieces)}{rng.choice(fixed)}")
    for text in corpus:
        assert ours.encode(text).ids == theirs(text)["input_ids"], repr(text)


def test_the_file_is_compact() -> None:
    assert ASSET.stat().st_size < 1_600_000
