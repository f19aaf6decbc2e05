"""InstAlign: from a picture and a sentence to the instances that it means, several or none.

"Phrase-Instance Alignment for Generalized Referring Segmentation" (arXiv 2411.15087), reconstructed
from the paper and from the code of its ancestors; see `tfanet.model.instalign.config`.

    res_1..4 = Swin(image);  features, maps = pixel decoder(res)
    T_0 = lang_proj(BERT(sentence));  Q_0 learned;  Q_k, T_k = layer_k(Q_k-1, T_k-1, maps)
    s = mask_embed(Q) . features;  p = sigmoid(class_embed(Q));  z = sum_i p_i PReLU(s_i)
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.config import check_image_size
from tfanet.model.instalign.config import InstAlignConfig
from tfanet.model.instalign.pixel_decoder import DecodedPixels, PixelDecoder
from tfanet.model.instalign.predictor import Predictor
from tfanet.model.layers.bert import BertEmbeddings, BertEncoder, init_bert, key_mask
from tfanet.model.layers.swin import (
    PatchEmbed,
    PatchMerging,
    drop_path_rates,
    init_swin,
    swin_blocks,
)

__all__ = ["PAD_ID", "InstAlign"]

PAD_ID = 0
PATCH_STRIDE = 4


class Stage(nn.Module):
    """Swin's blocks of a stage, and the merging after it where another follows."""

    def __init__(self, config: InstAlignConfig, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        dim = config.dims[index]
        self.blocks = swin_blocks(dim, config.heads[index], config.window, drop_paths)
        self.downsample = PatchMerging(dim) if index < len(config.dims) - 1 else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, H W, C) of a map of `size` (H, W) to the same."""
        for block in self.blocks:
            x = block(x, size)
        return x


class Backbone(nn.Module):
    """Swin with a norm for each stage's output, by [Mask2Former]'s names."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        rates = drop_path_rates(config.depths, config.drop_path)
        self.layers = nn.ModuleList(Stage(config, i, rate) for i, rate in enumerate(rates))
        for i, dim in enumerate(config.dims):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to four maps (B, C_i, H / 2^(i+2), W / 2^(i+2))."""
        height, width = image.shape[2] // PATCH_STRIDE, image.shape[3] // PATCH_STRIDE
        x = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(cast(list[Stage], list(self.layers))):
            x = stage(x, (height, width))
            out = getattr(self, f"norm{i}")(x)
            maps.append(out.transpose(1, 2).unflatten(2, (height, width)))
            if stage.downsample is not None:
                x = stage.downsample(x, (height, width))
                height, width = height // 2, width // 2
        return maps


class TextEncoder(nn.Module):
    """BERT without its pooler, by its own names."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        sizes = config.text
        self.embeddings = BertEmbeddings(
            sizes.vocabulary, sizes.positions, sizes.types, sizes.width
        )
        self.encoder = BertEncoder(sizes.layers, sizes.width, sizes.heads, sizes.intermediate)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L), padded with `PAD_ID`, to (B, L, T)."""
        return self.encoder(self.embeddings(token_ids), key_mask(token_ids != PAD_ID))


class Head(nn.Module):
    """The two decoders, under [Mask2Former]'s names."""

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config)
        self.predictor = Predictor(config)


class InstAlign(nn.Module):
    """Generalised referring segmentation; see the module's docstring.

    Words meet the picture in the decoder only [ours], so a sentence is encoded once and used on
    many pictures.
    """

    def __init__(self, config: InstAlignConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = TextEncoder(config)
        self.backbone = Backbone(config)
        self.sem_seg_head = Head(config)
        self.text_encoder.apply(init_bert)
        self.backbone.apply(init_swin)

    def forward(self, image: Tensor, token_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Logit z of the merged mask, (B, 1, H, W); a pixel is meant where z > 0.

        Args:
            image: (B, 3, H, W) normalised RGB, H and W multiples of 32.
            token_ids: (B, L) int64. word_mask: (B, L), 1 on every real token, else 0.

        Raises:
            InputError: for a size that is not a multiple of 32, or another text length than L.
        """
        return self.segment(image, *self.encode_text(token_ids), word_mask)[0]

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor]:
        """Token ids (B, L) to word features (B, T, L), which no picture changes."""
        if token_ids.shape[-1] != self.config.text_length:
            raise InputError(
                f"token_ids have length {token_ids.shape[-1]}: this model takes "
                f"{self.config.text_length}"
            )
        return (self.text_encoder(token_ids).transpose(1, 2),)

    def pixels(self, image: Tensor) -> DecodedPixels:
        """What the pixel decoder gives of pictures (B, 3, H, W), before any word.

        Raises:
            InputError: for a size that is not a multiple of 32.
        """
        check_image_size((image.shape[2], image.shape[3]))
        return self.sem_seg_head.pixel_decoder(self.backbone(image))

    def segment(
        self, image: Tensor, words: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The merged mask, and what it was made of.

        Args:
            image: (B, 3, H, W). words: (B, T, L), of `encode_text`. word_mask: (B, L).

        Returns:
            The logit z (B, 1, H, W); the logit that nothing is meant (B, 1); the relevance p of
            each query (B, N), from 0 to 1; their masks' logits s (B, N, H/4, W/4); the share of
            each word in each query, R (B, N, L).
        """
        predictor, pixels = self.sem_seg_head.predictor, self.pixels(image)
        state = predictor(pixels, words.transpose(1, 2), word_mask)[-1]
        instances = predictor.instance_logits(state.queries, pixels.features)
        relevance = torch.sigmoid(predictor.relevance_logit(state.queries))
        # The sum has one channel, the instances a hundred: it is what is resized [ours].
        merged = predictor.merged_logit(relevance, instances)
        size = (image.shape[2], image.shape[3])
        logit = F.interpolate(merged, size, mode="bilinear", align_corners=False)
        nothing = predictor.no_target_logits(relevance, state, word_mask)
        alignment = predictor.alignment(state, word_mask)
        return logit, nothing[:, 1:] - nothing[:, :1], relevance, instances, alignment
