"""The runtime's tokenizer against transformers' CLIP tokenizer, cut and padded the same way."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

import tfanet
from tfanet.errors import InputError
from tfanet.runtime import TextTokenizer

ASSET = Path(tfanet.__file__).parent / "assets" / "clip_tokenizer.json"
PIECES = [
    "red", "Left", "the", "10:30", "100%", "don't", "é", "e\u0301", "naïve", "日本", "🙂", "\t",
    "\n", "  ", "...", "A.B", "'s", "&amp;", "#1", "ﬁ", "“", "x" * 30, "İ", "ß", "<|endoftext|>x",
]  # fmt: skip


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
    for _ in range(300):
        text = "".join(
            rng.choice(PIECES) + rng.choice(["", " "]) for _ in range(rng.randint(1, 12))
        )
        if not text.strip():
            continue
        expected = oracle(text, padding="max_length", max_length=length, truncation=True)
        ids, mask = tokenizer(text)
        valid = int(mask.sum())
        assert ids[0, :valid].tolist() == expected["input_ids"][: sum(expected["attention_mask"])]
        assert (ids[0, valid:] == 49407).all()
        assert ids[0, 0] == 49406 and ids[0, valid - 1] == 49407
        assert mask[0].tolist() == [1.0] * valid + [0.0] * (length - valid)


def test_batches():
    ids, mask = TextTokenizer(ASSET, 10)(["red", "the big star"])
    assert ids.shape == mask.shape == (2, 10)
    assert ids.dtype == np.int64 and mask.dtype == np.float32
    assert mask.sum(1).tolist() == [3, 5]


def test_bad_files_and_lengths(tmp_path):
    with pytest.raises(InputError, match="text length is 78"):
        TextTokenizer(ASSET, 78)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer file"):
        TextTokenizer(tmp_path / "t.json", 10)
