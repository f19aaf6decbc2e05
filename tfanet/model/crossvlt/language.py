"""The language stages of CrossVLT: BERT's layers, of which every later stage looks at the picture.

Names are the official ones. `proj` is the alignment loss's.
"""

from __future__ import annotations

from torch import Tensor, nn

from tfanet.model.crossvlt.config import CrossVLTConfig
from tfanet.model.layers.bert import (
    BertAttention,
    BertEmbeddings,
    BertEncoder,
    BertIntermediate,
    BertLayer,
    BertOutput,
)

__all__ = ["FirstStage", "LaterStage"]


class Encoder(BertEncoder):
    """The first stage's layers, beside the projection of the alignment loss."""

    def __init__(self, config: CrossVLTConfig) -> None:
        text = config.text
        super().__init__(text.layers[0], text.width, text.heads, text.intermediate)
        self.proj = nn.Linear(text.width, config.align_dim)


class FirstStage(nn.Module):
    """BERT's embeddings and first layers, which never see the picture."""

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__()
        text = config.text
        self.embeddings = BertEmbeddings(text.vocabulary, text.positions, text.types, text.width)
        self.encoder = Encoder(config)

    @property
    def proj(self) -> nn.Linear:
        """The projection of the alignment loss, which later stages hold themselves."""
        return self.encoder.proj

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) int64 and their `key_mask` (B, 1, 1, L) to (B, L, T)."""
        return self.encoder(self.embeddings(token_ids), mask)


class LaterStage(nn.Module):
    """One layer of attention to the pixels, then BERT's own.

    Args:
        index: 1 to 3. It sees what vision stage `index` starts from.
    """

    def __init__(self, config: CrossVLTConfig, index: int) -> None:
        super().__init__()
        text = config.text
        width, inner = text.width, text.intermediate
        self.crossattention = BertAttention(width, text.heads, config.dims[index])
        self.intermediate = BertIntermediate(width, inner)
        self.output = BertOutput(inner, width)
        self.layer = nn.ModuleList(
            BertLayer(width, text.heads, inner) for _ in range(text.layers[index])
        )
        self.proj = nn.Linear(width, config.align_dim)

    def forward(self, words: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """Words (B, L, T), pixels (B, N, C) and `key_mask` (B, 1, 1, L) to words (B, L, T)."""
        words = self.crossattention(words, pixels, None)
        words = self.output(self.intermediate(words), words)
        for layer in self.layer:
            words = layer(words, mask)
        return words
