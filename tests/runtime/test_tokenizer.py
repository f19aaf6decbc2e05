"""The runtime's tokenizer against transformers' CLIP tokenizer, cut and padded the same way."""

from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from mutations import every_change, outcome
from tokenizer_files import OTHER_TOKENIZERS
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
    for path in (tmp_path / "none.json", tmp_path, "\0"):
        with pytest.raises(InputError, match=r"cannot be read .*: check its path"):
            TextTokenizer(path, 10)


@pytest.mark.parametrize(("change", "message"), OTHER_TOKENIZERS)
def test_other_tokenizers_are_refused_in_the_words_of_c(change, message):
    data = json.loads(ASSET.read_text())
    change(data)
    with pytest.raises(InputError, match=r"^t\.json ") as caught:
        TextTokenizer("t.json", 10, json.dumps(data).encode())
    assert message in str(caught.value) and "\n" not in str(caught.value)


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


def test_files_by_chance():
    """A changed file either is refused in one line, or means what CLIP's does."""
    whole = json.loads(ASSET.read_text())
    words = {token: n for token, n in whole["model"]["vocab"].items() if n < 512 or n > 49405}
    words |= {"in</w>": 600}
    whole["model"].update(vocab={}, merges=[])
    accepted = 0
    for data in (whole, *every_change(whole)):
        model = data.get("model")
        if isinstance(model, dict) and model.get("vocab") == {}:
            model.update(vocab=words, merges=model.get("merges") or ["i n</w>"])
        content = json.dumps(data).encode()
        tokenizer = outcome(lambda: TextTokenizer("t.json", 6, content), InputError)  # noqa: B023
        if tokenizer is not None:
            accepted += 1
            assert tokenizer("in 7")[0].tolist() == [[49406, 600, 278, 49407, 49407, 49407]]
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
