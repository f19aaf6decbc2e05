"""A model with a vocabulary of its own goes into a bundle with its vocab.txt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_config import SMALL as SMALL_TFANET
from small_instalign import SMALL

from tfanet.errors import InputError
from tfanet.export import export_bundle
from tfanet.model.instalign.network import InstAlign
from tfanet.model.tfanet.network import TFANet
from tfanet.runtime import TextTokenizer


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """As many tokens as the small model has, the specials at other places than BERT base's."""
    words = ["the", "red", "circle", *(f"word{n}" for n in range(SMALL.text.vocabulary - 7))]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", *words, "[CLS]", "[SEP]"]))
    return path


@pytest.mark.full
def test_a_vocabulary_of_the_model_s_own_is_what_the_bundle_reads(vocabulary, tmp_path):
    torch.manual_seed(0)
    bundle = export_bundle(InstAlign(SMALL), tmp_path / "bundle", vocab=vocabulary)
    text = bundle.manifest.text
    assert (text.pad_id, text.sos_id, text.eos_id) == (0, 48, 49)
    file = bundle.file("tokenizer.json")
    ids, _ = TextTokenizer(file, 8, kind="bert-wordpiece")("the red circle")
    assert ids.tolist() == [[48, 2, 3, 4, 49, 0, 0, 0]]
    assert bundle.manifest.parity["max_rel_error"] <= 1e-4


def test_vocabularies_that_do_not_fit(vocabulary, tmp_path):
    model = InstAlign(SMALL)
    vocabulary.write_text(vocabulary.read_text() + "\nmore")
    with pytest.raises(InputError, match="has 51 tokens, the model has 50"):
        export_bundle(model, tmp_path / "bundle", vocab=vocabulary)
    with pytest.raises(InputError, match="CLIP's byte pairs, whose vocabulary is fixed"):
        export_bundle(TFANet(SMALL_TFANET), tmp_path / "bundle", vocab=vocabulary)
    assert not (tmp_path / "bundle").exists()
