"""BERT's encoder: parameter names, shapes and function of the official models.

"BERT: Pre-training of Deep Bidirectional Transformers" (Devlin et al., 2019), with the names of its
PyTorch form. T is the width, L the tokens of a sentence, h the heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BertAttention",
    "BertEmbeddings",
    "BertEncoder",
    "BertIntermediate",
    "BertLayer",
    "BertOutput",
    "init_bert",
    "key_mask",
]

EPS = 1e-12
PADDING = -10_000.0  # finite, so that float16 stays defined


def key_mask(word_mask: Tensor) -> Tensor:
    """Word mask (B, L), 1 on words and 0 on padding, to what is added to logits: (B, 1, 1, L)."""
    return (1 - word_mask.float())[:, None, None] * PADDING


def init_bert(module: nn.Module) -> None:
    """Fresh weights as BERT starts with; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class BertEmbeddings(nn.Module):
    """LN(word + position + type of sentence 0).

    Args:
        vocabulary, positions, types: entries of the three tables. width: T.
    """

    def __init__(self, vocabulary: int, positions: int, types: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(types, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) int64 to (B, L, T)."""
        place = self.position_embeddings.weight[: token_ids.shape[1]]
        fixed = place + self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(token_ids) + fixed)


class BertSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(T / h) + mask) v, each a projection of all heads side by side."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(memory)), self.value(memory)
        logits = (q * self.head_width**-0.5) @ k.transpose(2, 3)  # (B, h, L, N)
        if mask is not None:
            logits = logits + mask.to(logits.dtype)
        out = logits.softmax(dim=-1) @ self._split(v)  # (B, h, L, T / h)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, T) to (B, h, N, T / h)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_width).transpose(1, 2)


class BertOutput(nn.Module):
    """LN(dense(x) + residual), from `inner` to T."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, L, inner) and (B, L, T) to (B, L, T)."""
        return self.LayerNorm(self.dense(x) + residual)


class BertAttention(nn.Module):
    """Attention to the sentence itself, or to a memory of another width, and what follows it.

    Args:
        width: T. heads: h. memory_width: of what is attended to; None: T.
    """

    def __init__(self, width: int, heads: int, memory_width: int | None = None) -> None:
        super().__init__()
        self.self = BertSelfAttention(width, heads, memory_width or width)
        self.output = BertOutput(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, T), memory (B, N, M), mask (B, 1, 1, N) or None, to (B, L, T)."""
        return self.output(self.self(x, memory, mask), x)


class BertIntermediate(nn.Module):
    """GELU(dense(x)), from T to `inner`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, T) to (B, L, inner)."""
        return F.gelu(self.dense(x))


class BertLayer(nn.Module):
    """x = LN(x + Attention(x)); x = LN(x + MLP(x)).

    Args:
        width: T. heads: h. inner: width inside the MLP.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = BertAttention(width, heads)
        self.intermediate = BertIntermediate(width, inner)
        self.output = BertOutput(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, T) and `key_mask` (B, 1, 1, L) to (B, L, T)."""
        x = self.attention(x, x, mask)
        return self.output(self.intermediate(x), x)


class BertEncoder(nn.Module):
    """Layers one after the other. layers: how many; the rest as for `BertLayer`."""

    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(width, heads, inner) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, T) and `key_mask` (B, 1, 1, L) to (B, L, T)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x
