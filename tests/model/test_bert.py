"""BERT's layers against transformers' BertModel, and attention to a memory of another width."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from tfanet.model.layers.bert import (
    BertAttention,
    BertEmbeddings,
    BertEncoder,
    init_bert,
    key_mask,
)

VOCABULARY, POSITIONS, TYPES = 50, 24, 2


class Bert(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(VOCABULARY, POSITIONS, TYPES, width)
        self.encoder = BertEncoder(layers, width, heads, inner)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "inner", "length"),
    [(1, 12, 3, 20, 7), (3, 32, 4, 64, 24), (2, 16, 1, 8, 1)],
)
def test_bert_is_transformers_bert(layers, width, heads, inner, length):
    torch.manual_seed(width)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=inner, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    theirs = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3)
    ours = Bert(layers, width, heads, inner).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, VOCABULARY, (3, length))
    mask = (torch.arange(length) < torch.tensor([[length], [max(1, length // 2)], [1]])).long()
    with torch.no_grad():
        got = ours.encoder(ours.embeddings(ids), key_mask(mask))
        expected = theirs(ids, attention_mask=mask).last_hidden_state
    real = mask.bool()  # what padding itself becomes is nobody's business
    torch.testing.assert_close(got[real], expected[real], rtol=1e-5, atol=1e-5)


def test_attention_to_a_memory_of_another_width():
    """By its formula in float64, head by head."""
    torch.manual_seed(0)
    width, heads, memory_width = 12, 3, 10
    module = BertAttention(width, heads, memory_width).double()
    x, memory = torch.randn(2, 5, width).double(), torch.randn(2, 9, memory_width).double()
    attend = module.self
    heads_out = []
    for h in range(heads):
        rows = slice(4 * h, 4 * h + 4)
        q = x @ attend.query.weight[rows].T + attend.query.bias[rows]
        k = memory @ attend.key.weight[rows].T + attend.key.bias[rows]
        v = memory @ attend.value.weight[rows].T + attend.value.bias[rows]
        weights = torch.softmax(torch.einsum("bld,bnd->bln", q, k) / 2, -1)
        heads_out.append(torch.einsum("bln,bnd->bld", weights, v))
    out = module.output.dense(torch.cat(heads_out, -1)) + x
    norm = module.output.LayerNorm
    expected = F.layer_norm(out, (width,), norm.weight, norm.bias, 1e-12)
    torch.testing.assert_close(module(x, memory, None), expected)


def test_fresh_weights():
    torch.manual_seed(0)
    encoder = BertEncoder(1, 64, 2, 128).apply(init_bert)
    query = encoder.layer[0].attention.self.query
    assert query.weight.std().item() == pytest.approx(0.02, rel=0.1) and query.bias.abs().max() == 0
