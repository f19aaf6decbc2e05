"""Masked decoder: queries that each become an instance, words that change beside them, the heads.

What is whose: see `tfanet.model.instalign.config`. N are the queries, C the decoder's width, L the
tokens of a sentence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.instalign.attention import BLOCKED, MLP, Attention, sine_positions
from tfanet.model.instalign.config import InstAlignConfig
from tfanet.model.instalign.pixel_decoder import MAPS, DecodedPixels
from tfanet.model.layers.wide import wide

__all__ = ["Predictor", "State"]


class State(NamedTuple):
    """Queries (B, N, C), after `decoder_norm`, and words (B, L, C) as a layer leaves them."""

    queries: Tensor
    words: Tensor


class Memory(NamedTuple):
    """A map as queries see it: keys and values (B, h w, C), and the features (B, C, h, w)."""

    keys: Tensor
    values: Tensor
    features: Tensor


class CrossAttention(nn.Module):
    """Q = LN(Q + attention to unblocked pixels + attention to words).

    The first is [Mask2Former]'s, the second stands beside it as in [VATEX].
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, heads)
        self.multihead_attn_text = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        place: Tensor,
        memory: Memory,
        blocked: Tensor,
        words: Tensor,
        padding: Tensor,
    ) -> Tensor:
        placed = queries + place
        seen = self.multihead_attn(placed, memory.keys, memory.values, blocked)
        read = self.multihead_attn_text(placed, words, words, padding)
        return self.norm(queries + seen + read)


class TextAttention(nn.Module):
    """T = LN(T + attention to queries): bidirectional [paper], in this form [ours]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, words: Tensor, queries: Tensor, place: Tensor) -> Tensor:
        return self.norm(words + self.multihead_attn(words, queries + place, queries))


class SelfAttention(nn.Module):
    """Q = LN(Q + attention among queries) [Mask2Former]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, place: Tensor) -> Tensor:
        placed = queries + place
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FeedForward(nn.Module):
    """Q = LN(Q + MLP(Q)) [Mask2Former]."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, inner)
        self.linear2 = nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


class Predictor(nn.Module):
    """K layers of the decoder, and what is read of the queries. Names are [Mask2Former]'s."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        dim, heads, layers = config.decoder_dim, config.decoder_heads, config.decoder_layers
        self.query_feat = nn.Embedding(config.queries, dim)
        self.query_embed = nn.Embedding(config.queries, dim)
        self.level_embed = nn.Embedding(MAPS, dim)
        self.lang_proj = nn.Linear(config.text.width, dim)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(dim, heads) for _ in range(layers)
        )
        self.transformer_text_attention_layers = nn.ModuleList(
            TextAttention(dim, heads) for _ in range(layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(dim, heads) for _ in range(layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(dim, config.decoder_inner) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.mask_embed = MLP(dim, dim, dim, dim)
        self.class_embed = nn.Linear(dim, 1)
        self.mask_act = nn.PReLU()
        self.nt_embed = MLP(2 * dim, dim, 2)

    def forward(self, pixels: DecodedPixels, words: Tensor, word_mask: Tensor) -> list[State]:
        """The states before the first and after each layer, K + 1 of them; the last one counts.

        Args:
            words: (B, L, T), the language encoder's. word_mask: (B, L), 1 on real words.
        """
        memories = [self._memory(pixels, level) for level in range(MAPS)]
        padding = (word_mask == 0).unsqueeze(1)  # (B, 1, L)
        words = self.lang_proj(words)  # T_0
        queries = self.query_feat.weight.expand(words.shape[0], -1, -1)  # Q_0
        place = self.query_embed.weight  # E
        states = [State(self.decoder_norm(queries), words)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_text_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for k, (see, change_words, compare, feed_forward) in enumerate(layers):
            memory = memories[k % MAPS]
            blocked = self.blocked_pixels(states[-1].queries, memory.features)
            queries = see(queries, place, memory, blocked, words, padding)
            words = change_words(words, queries, place)
            queries = feed_forward(compare(queries, place))
            states.append(State(self.decoder_norm(queries), words))
        return states

    def _memory(self, pixels: DecodedPixels, level: int) -> Memory:
        """Of one map. The features come at its size.

        A query's mask is a product with features, so resizing these once resizes all masks of all
        layers: no layer but the last needs them at full size.
        """
        m = pixels.maps[level]
        size = (m.shape[2], m.shape[3])
        values = m.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        keys = values + sine_positions(size, m.shape[1]).to(m.device)
        features = F.interpolate(pixels.features, size, mode="bilinear", align_corners=False)
        return Memory(keys, values, features)

    def blocked_pixels(self, queries: Tensor, features: Tensor) -> Tensor:
        """Pixels (B, N, h w) outside of each query's mask; a query without any sees them all."""
        with torch.no_grad():
            outside = wide(self.instance_logits(queries, features)).flatten(2) < 0
            return outside & ~outside.all(dim=-1, keepdim=True)

    def instance_logits(self, queries: Tensor, features: Tensor) -> Tensor:
        """s = mask_embed(Q) . features: (B, N, C) and (B, C, h, w) to (B, N, h, w)."""
        size = (features.shape[2], features.shape[3])
        return (self.mask_embed(queries) @ features.flatten(2)).unflatten(2, size)

    def relevance_logit(self, queries: Tensor) -> Tensor:
        """Of each query, that it is meant: (B, N). Its sigmoid p is the relevance [paper]."""
        return self.class_embed(queries).squeeze(2)

    def merged_logit(self, relevance: Tensor, instances: Tensor) -> Tensor:
        """sum_i p_i PReLU(s_i) [paper]: (B, N) and (B, N, h, w) to (B, 1, h, w)."""
        active = wide(self.mask_act(instances)).flatten(2)
        merged = wide(relevance).unsqueeze(1) @ active  # (B, 1, h w)
        return merged.unflatten(2, (instances.shape[2], instances.shape[3]))

    def no_target_logits(self, relevance: Tensor, state: State, word_mask: Tensor) -> Tensor:
        """MLP([sum_i p_i Q_i ; mean of the real words]) [paper], two classes as in [ReLA]: (B, 2).

        Class 1 means that nothing in the picture is meant.
        """
        mask = word_mask.to(state.words.dtype).unsqueeze(1)  # (B, 1, L)
        words = (mask @ state.words).squeeze(1) / mask.sum(2)  # T_sen, (B, C)
        whole = (relevance.unsqueeze(1) @ state.queries).squeeze(1)  # Q_global, (B, C)
        return self.nt_embed(torch.cat([whole, words], 1))

    def alignment(self, state: State, word_mask: Tensor) -> Tensor:
        """R = softmax(Q T^T / sqrt(C)) over the real words [paper]: (B, N, L).

        Of the last layer it says which words a query claims [ours].
        """
        logits = state.queries * state.queries.shape[2] ** -0.5 @ state.words.transpose(1, 2)
        return torch.where((word_mask == 0).unsqueeze(1), BLOCKED, logits).softmax(dim=-1)
