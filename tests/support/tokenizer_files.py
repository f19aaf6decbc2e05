"""Changes to CLIP's tokenizer file after which Python and C must refuse it, and in what words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

OTHER_TOKENIZERS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda d: d["normalizer"]["normalizers"].pop(), "/normalizers/2/type is missing"),
    (lambda d: d["model"].update(end_of_word_suffix=""), "/model/end_of_word_suffix is , exp"),
    (lambda d: d["model"].update(dropout=0.1), "/model/dropout is 0.1, expected null"),
    (lambda d: d["model"]["vocab"].pop("a</w>"), "lacks the token 'a</w>'"),
    (lambda d: d["model"]["vocab"].pop("<|endoftext|>"), "lacks CLIP's start and end tokens"),
    (lambda d: d["model"]["vocab"].update(a="x"), "has a wrong type"),
    (lambda d: d["model"]["vocab"].update(a=-1), "has a wrong type"),
    (lambda d: d["model"]["vocab"].update(a=2**40), "a token id is above 2147483647"),
    (lambda d: d["model"]["vocab"].update(a={}), "a token id is no number"),
    (lambda d: d["model"]["merges"].append("ab"), "a merge has no space"),
    (lambda d: d["model"]["merges"].append(["a"]), "a merge has no second part"),
    (lambda d: d["model"]["merges"].append("a qqqq"), "lacks the token 'qqqq'"),
    (lambda d: d.update({"model/vocab": d["model"].pop("vocab")}), "lacks CLIP's start"),
    (lambda d: d.update({"x" * 201: 1}), "a setting has a name of more than 200 bytes"),
    (lambda d: d.update(x=json.loads("[" * 16 + "]" * 16)), "it is nested too deeply"),
    (lambda d: d["added_tokens"].append({"content": "x"}), "/added_tokens/2/content is x"),
    (lambda d: d.update(truncation={"max_length": 5}), "/truncation/max_length is 5"),
    (lambda d: d.update(padding={"strategy": {"Fixed": 2**31}}), "/padding/strategy/Fixed is 2"),
    (lambda d: d["model"].update(type="WordPiece"), "/model/type is WordPiece, expected BPE"),
    (lambda d: d["model"].update(unk_token="a"), "/model/unk_token is a, expected <|endoftext"),
    (lambda d: d["model"].update(max_input_chars_per_word=1), "is 1, expected nothing"),
    (lambda d: d.update(normalizer=None), "/normalizer/type is missing, expected Sequence"),
    (lambda d: d["added_tokens"][0].update(lstrip=True), "/added_tokens/0/lstrip is true, exp"),
    (lambda d: d.pop("pre_tokenizer"), "/pre_tokenizer/type is missing"),
    (lambda d: d["model"].update(merges=[1]), "has a wrong type"),
    (lambda d: d["model"].update(vocab=[]), "lacks CLIP's start and end tokens"),
    (lambda d: d.clear(), "/added_tokens/0/content is missing, expected <|startoftext|>"),
]
