"""Changes to a tokenizer file after which Python and C must refuse it, and in what words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

OF_CLIP: list[tuple[Callable[[Any], Any], str]] = [
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
    (lambda d: d["model"].update(type="WordLevel"), "/model/type is WordLevel, expected BPE"),
    (
        lambda d: d["model"].update(type="WordPiece"),
        "is a bert-wordpiece tokenizer, the model takes clip-bpe: give the file that the model was",
    ),
    (lambda d: d["model"].update(unk_token="a"), "/model/unk_token is a, expected <|endoftext"),
    (lambda d: d["model"].update(max_input_chars_per_word=1), "is 1, expected nothing"),
    (lambda d: d.update(normalizer=None), "/normalizer/type is missing, expected Sequence"),
    (lambda d: d["added_tokens"][0].update(lstrip=True), "/added_tokens/0/lstrip is true, exp"),
    (lambda d: d.pop("pre_tokenizer"), "/pre_tokenizer/type is missing"),
    (lambda d: d["model"].update(merges=[1]), "has a wrong type"),
    (lambda d: d["model"].update(vocab=[]), "lacks CLIP's start and end tokens"),
    (lambda d: d.clear(), "/added_tokens/0/content is missing, expected <|startoftext|>"),
]

OF_BERT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda d: d["normalizer"].update(lowercase=False), "/normalizer/lowercase is false, exp"),
    (lambda d: d["normalizer"].update(strip_accents=False), "/normalizer/strip_accents is false"),
    (lambda d: d["normalizer"].pop("clean_text"), "/normalizer/clean_text is missing"),
    (lambda d: d["model"].update(max_input_chars_per_word=50), "is 50, expected 100"),
    (lambda d: d["model"].update(continuing_subword_prefix=""), "is , expected ##"),
    (lambda d: d["model"].update(merges=["a b"]), "a vocabulary of word pieces has no merges"),
    (lambda d: d["model"].update(merges=5), "/model/merges is 5, expected nothing"),
    (lambda d: d["model"]["vocab"].pop("[CLS]"), "lacks BERT's [PAD], [UNK], [CLS] or [SEP]"),
    (lambda d: d["model"]["vocab"].update(a=-1), "has a wrong type"),
    (lambda d: d["added_tokens"].append({"content": "x"}), "/added_tokens/5/content is x"),
    (lambda d: d["added_tokens"].reverse(), "/added_tokens/0/content is [MASK], expected [PAD]"),
    (lambda d: d["added_tokens"][4].update(content="x"), "/added_tokens/4/content is x, expected"),
    (lambda d: d.update(truncation={"max_length": 5}), "/truncation/max_length is 5"),
    (lambda d: d.update(padding={"strategy": {"Fixed": 2**31}}), "/padding/strategy/Fixed is 2"),
    (lambda d: d.update(pre_tokenizer=None), "/pre_tokenizer/type is missing"),
    (lambda d: d["model"].pop("type"), "is another tokenizer than BERT's (/model/type is missing"),
    (
        lambda d: d["model"].update(type="BPE"),
        "is a clip-bpe tokenizer, the model takes bert-wordpiece: give the file that the model was",
    ),
]
# Changes that change nothing.
STILL_BERT: list[Callable[[Any], Any]] = [
    lambda d: d["added_tokens"].pop(),
    lambda d: d.update(post_processor={"type": "BertProcessing"}, decoder=None),
    lambda d: d["normalizer"].pop("strip_accents"),
    lambda d: d["added_tokens"][0].update(id=5),
    lambda d: d["model"].update(merges=[]),
]
