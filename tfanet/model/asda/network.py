"""ASDA: "Adaptive Selection based Referring Image Segmentation" (ACM Multimedia, 2024).

Built from the facts of its official code, which differs from the paper in places (docs/asda.md).
The sentence selects one of several layers of the vision tower for each of two maps of the pyramid:

    s_i = vis_select(x_i[class]) * t_i[end],   low = x_i of the largest feature_selector_l(s_i)

x_i and t_i are the states after block i of the vision and the text tower; mid likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.asda.attention import Encoder, WordAttention
from tfanet.model.asda.clip import Block
from tfanet.model.asda.config import ASDAConfig
from tfanet.model.asda.fpn import CBR, FPN, Fusion, MaskDecoder

__all__ = ["ASDA"]

FUTURE = -10_000.0  # added to the logits of later words; finite, so that float16 stays defined


class ASDA(nn.Module):
    """Referring image segmentation; see the module's docstring. Parameters by the official names.

    B pictures of (H, W), patches in a map of (h, w); V, T, D, L, n as in `ASDAConfig`; K layers of
    which the text states are needed, `config.low` then `config.mid`.
    """

    future: Tensor

    def __init__(self, config: ASDAConfig) -> None:
        super().__init__()
        self.config = config
        v, t, d = config.vision_width, config.text_width, config.width
        tokens = config.grid[0] * config.grid[1] + 1
        self.visumodel = VisionTower(config)
        self.positional_embedding = nn.Parameter(v**-0.5 * torch.randn(1, tokens, v))
        self.textmodel = Blocks(config.layers, t, config.text_heads, config.mlp_ratio)
        # CLIP's own 0.02 drowns in what fresh blocks add.
        self.textmodel_token_embedding = nn.Embedding(config.vocabulary, t)
        self.textmodel_pos_embed = nn.Parameter(0.1 * torch.randn(1, config.text_length, t))
        self.textmodel_ln_final = nn.LayerNorm(t)
        self.vis_select = nn.Linear(v, t, bias=False)
        self.feature_selector_l = nn.Linear(t, 1)
        self.feature_selector_m = nn.Linear(t, 1)
        self.fusion = Fusion(v, t)
        self.fpn = FPN(v, d)
        self.encoder = Encoder(config.grid, d, config.heads, config.encoder_layers)
        self.mask_decoder = MaskDecoder(d, config.masks)
        self.fc_2 = nn.Linear(t, d, bias=False)
        self.lang_tf_enc = WordAttention(d, config.heads)
        self.proj1, self.proj2 = CBR(d, d, 3), CBR(d, d, 3)
        self.proj3 = nn.Conv2d(d, config.masks, 3, padding=1)
        self.projout = nn.Linear((tokens - 1) * config.masks, config.masks, bias=False)
        self._begin_dark()
        future = torch.full((config.text_length, config.text_length), FUTURE).triu(1)
        self.register_buffer("future", future, persistent=False)

    def _begin_dark(self) -> None:
        """Fresh weights by which a quarter of the masks darkens the picture and the rest lightens.

        Most pixels are not meant. Coefficients of random signs all fall to -1 within some hundred
        steps, where tanh has no gradient left, and then no logit ever is above 0.
        """
        dark = torch.arange(self.config.masks) % 4 == 0
        sign = torch.where(dark, -2.0, 1.0)
        added, lit = self.proj3.bias, self.mask_decoder.proj.bias
        assert added is not None
        assert lit is not None
        with torch.no_grad():
            # What projout adds up is 1 on average, so that each coefficient begins at tanh(sign).
            added.fill_(1.0)
            self.projout.weight.mul_(0.1).add_(sign[:, None] / self.projout.in_features)
            lit.copy_(torch.where(dark, 1.5, 0.0))

    def forward(self, image: Tensor, token_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Logit z of the mask, (B, 1, 8h, 8w), half the picture's size; meant: sigmoid(z) > 0.35.

        Args:
            image: (B, 3, H, W) normalised RGB. token_ids: (B, L) int64, padded with id 0.
            word_mask: not looked at: padding is attended to as in the official code.

        Raises:
            InputError: for another image size or text length than the configuration's.
        """
        return self.segment(image, *self.encode_text(token_ids))

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 to word features (B, T, L) and the sentence feature.

        The sentence feature (B, (1 + K) T) holds the final state at the end token, then the states
        there inside the tower, after each of the K blocks that a selection needs.
        """
        length = self.config.text_length
        if token_ids.shape[-1] != length:
            raise InputError(
                f"token_ids have length {token_ids.shape[-1]}: this model takes {length}"
            )
        end = _end_of_sentence(token_ids).to(self.textmodel_pos_embed.dtype)  # (B, 1, L)
        x = self.textmodel_token_embedding(token_ids) + self.textmodel_pos_embed  # (B, L, T)
        ends = []
        for block in self.textmodel.resblocks:
            x = block(x, self.future)
            ends.append(end @ x)  # (B, 1, T)
        words = self.textmodel_ln_final(x)
        states = [end @ words, *(ends[i] for i in (*self.config.low, *self.config.mid))]
        return words.transpose(1, 2), torch.cat(states, dim=1).flatten(1)

    def segment(self, image: Tensor, word_features: Tensor, sentence_feature: Tensor) -> Tensor:
        """Image (B, 3, H, W) and both results of `encode_text` to the logit z (B, 1, 8h, 8w)."""
        low, mid, high, _ = self._look(image, sentence_feature)
        sentence = sentence_feature.narrow(1, 0, self.config.text_width)
        fused = self.fpn(self.fusion(high, sentence), mid, low)  # (B, D, h, w)
        encoded = self.encoder(F.relu(fused).flatten(2).transpose(1, 2))  # (B, h w, D)
        masks = F.relu(self.mask_decoder(self._as_map(encoded)))  # (B, n, 8h, 8w)
        words = F.relu(self.fc_2(word_features.transpose(1, 2)))  # (B, L, D)
        y = self.proj2(self.proj1(self._as_map(self.lang_tf_enc(encoded, words))))
        flat = self.proj3(y).permute(0, 2, 3, 1).flatten(1)  # (B, h w n): place by place
        coefficients = self.projout(flat).tanh()  # (B, n)
        return (coefficients.unflatten(1, (-1, 1, 1)) * masks).sum(1, keepdim=True)

    def selection(self, image: Tensor, sentence_feature: Tensor) -> dict[str, Tensor]:
        """Scores of the layers of each group, in the configuration's order: {"low": (B, K_low),
        "mid": (B, K_mid)}. The first largest is the layer that `segment` uses."""
        return self._look(image, sentence_feature)[3]

    def maps(self, image: Tensor) -> list[Tensor]:
        """Of pictures (B, 3, H, W), every map (B, V, h, w) that the rest may be given."""
        config, layers = self.config, self._layers(image)
        used = sorted({*config.low, *config.mid, config.layers - 1})
        return [self._pixels(layers[i]) for i in used]

    def _look(
        self, image: Tensor, sentence_feature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The maps low, mid and high, each (B, V, h, w), and the scores."""
        config, layers = self.config, self._layers(image)
        x = layers[-1]
        chosen = [layers[i] for i in (*config.low, *config.mid)]
        classes = torch.cat([layer.narrow(1, 0, 1) for layer in chosen], dim=1)  # (B, K, V)
        states = sentence_feature.unflatten(1, (-1, config.text_width))  # (B, 1 + K, T)
        s = self.vis_select(classes) * states.narrow(1, 1, len(chosen))  # (B, K, T)
        k = len(config.low)
        low = self.feature_selector_l(s.narrow(1, 0, k))  # (B, K_low, 1)
        mid = self.feature_selector_m(s.narrow(1, k, len(chosen) - k))
        tokens = _first_largest(low, chosen[:k]), _first_largest(mid, chosen[k:]), x
        maps = [self._pixels(each) for each in tokens]
        return maps[0], maps[1], maps[2], {"low": low.squeeze(2), "mid": mid.squeeze(2)}

    def _layers(self, image: Tensor) -> list[Tensor]:
        """The vision tower's states after each block, (B, 1 + h w, V)."""
        if tuple(image.shape[2:]) != self.config.image_size:
            raise InputError(
                f"image size is {tuple(image.shape[2:])}: {self.config.name} takes "
                f"{self.config.image_size} alone"
            )
        x = self.visumodel.tokens(image, self.positional_embedding)
        layers = []
        for block in self.visumodel.transformer.resblocks:
            x = block(x)
            layers.append(x)
        return layers

    def _pixels(self, layer: Tensor) -> Tensor:
        """A layer's states (B, 1 + h w, V), but for the class's, as a map (B, V, h, w)."""
        return self._as_map(layer.narrow(1, 1, layer.shape[1] - 1))

    def _as_map(self, tokens: Tensor) -> Tensor:
        """(B, h w, C) to (B, C, h, w)."""
        return tokens.transpose(1, 2).unflatten(2, self.config.grid)


class Blocks(nn.Module):
    """A tower's blocks, by the official name."""

    def __init__(self, layers: int, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))


class VisionTower(nn.Module):
    """CLIP's ViT without its last norm and projection; its positions stand in `ASDA`."""

    def __init__(self, config: ASDAConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(config.layers, width, config.vision_heads, config.mlp_ratio)

    def tokens(self, image: Tensor, positions: Tensor) -> Tensor:
        """What the first block takes: (B, 3, H, W) and (1, 1 + h w, V) to (B, 1 + h w, V)."""
        patches = self.conv1(image).flatten(2).transpose(1, 2)  # (B, h w, V)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return self.ln_pre(torch.cat([first, patches], dim=1) + positions)


def _end_of_sentence(token_ids: Tensor) -> Tensor:
    """1 at the first largest id, else 0: (B, L) to (B, 1, L) bool.

    That is the end token; a sentence may spell out a second one. No argmax, which some runtimes
    let find any of several.
    """
    length = token_ids.shape[1]
    place = torch.arange(length - 1, -1, -1, device=token_ids.device)
    unique = token_ids * length + place
    return (unique == unique.amax(dim=1, keepdim=True)).unsqueeze(1)


def _first_largest(scores: Tensor, layers: list[Tensor]) -> Tensor:
    """Of K layers (B, N, V) the one with the largest of scores (B, K, 1), the first of equals.

    By comparisons alone: a gather by argmax would leave ties to the runtime.
    """
    best, found = scores.narrow(1, 0, 1), layers[0]  # (B, 1, 1)
    for i, layer in enumerate(layers[1:], 1):
        score = scores.narrow(1, i, 1)
        larger = score > best
        found = torch.where(larger, layer, found)
        best = torch.where(larger, score, best)
    return found
