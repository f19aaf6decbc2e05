"""Builds tfanet/assets/clip_tokenizer.json from the published CLIP vocabulary.

    python tools/make_tokenizer.py bpe_simple_vocab_16e6.txt.gz tfanet/assets/clip_tokenizer.json

The vocabulary (OpenAI, MIT licence) ships inside the PyPI packages clip-anytorch and
open_clip_torch. The result equals transformers' CLIPTokenizer, which the tests check.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
VOCABULARY_SIZE = 49408


def byte_symbols() -> list[str]:
    """The 256 symbols that stand for bytes, printable ones first: CLIP's order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = range(0x100 - len(shown))
    return [chr(b) for b in shown] + [chr(0x100 + n) for n in rest]


def read_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token to id, merges in order of rank) from `bpe_simple_vocab_16e6.txt.gz`."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    symbols = byte_symbols()
    merge_count = VOCABULARY_SIZE - 2 * len(symbols) - 2
    merges = []
    for line in lines[1 : 1 + merge_count]:
        left, right = line.split()
        merges.append((left, right))
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != VOCABULARY_SIZE:
        raise SystemExit(f"{path} gives {len(vocabulary)} tokens, expected {VOCABULARY_SIZE}")
    return vocabulary, merges


def build(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The CLIP tokenizer: NFC, lower case, words or single digits, byte pairs, both specials."""
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (START, END)])
    tokenizer.post_processor = RobertaProcessing(
        (END, vocabulary[END]),
        (START, vocabulary[START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    document = json.loads(build(*read_vocabulary(arguments.vocabulary)).to_str())
    # "a b" loads like ["a", "b"] and is shorter; no CLIP token holds a space.
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
