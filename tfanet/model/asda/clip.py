"""CLIP's transformer: the block of its two towers, by the official names.

"Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021). C is
a block's width, h its heads, N the tokens. Q, k and v are three projections here, one in the
official files: a part of a weight would be cut out anew in every run of a graph.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Attention", "Block"]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(C / h) + mask) v, projected; PyTorch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query (B, N, C), key and value (B, M, C), mask (N, M) or None, to (B, N, C)."""
        q = self._split(self.q(query) * self.head_width**-0.5)  # (B, h, N, C / h)
        k, v = self._split(self.k(key)), self._split(self.v(value))
        logits = q @ k.transpose(2, 3)  # (B, h, N, M)
        if mask is not None:
            logits = logits + mask.to(logits.dtype)
        out = logits.softmax(dim=-1) @ v
        return self.out_proj(out.transpose(1, 2).reshape(-1, query.shape[1], query.shape[2]))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, h, N, C / h)."""
        return x.reshape(-1, x.shape[1], self.heads, self.head_width).transpose(1, 2)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * (1.702 * x).sigmoid()


class MLP(nn.Module):
    """c_proj(QuickGELU(c_fc(x)))."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, ratio * width)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C); mask (N, N) is added to the logits."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, mask)
        return x + self.mlp(self.ln_2(x))
