"""TFANet: from an image and a sentence to the logit that each pixel is meant.

    x_1 = stem(image)
    F_V,i = blocks_i(x_i);  F_F,i, F_LV,i = fuse_i(F_V,i, words);  x_i+1 = down_i(F_V,i + F_F,i)

(eqs. 1-3; the sum is taken at equal resolution, then goes through the backbone's own downsampling.)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.tfanet.backbone import VMamba
from tfanet.model.tfanet.cfsm import CFSM
from tfanet.model.tfanet.config import TFANetConfig, check_image_size
from tfanet.model.tfanet.mlam import MLAM, CrossAttention, FusionBlock, Gate
from tfanet.model.tfanet.text import TextEncoder
from tfanet.model.tfanet.wfdm import Decoder

__all__ = ["TFANet"]


class Fusion(nn.Module):
    """Three-stage alignment of one backbone stage: KPS (`align`, `block`), then KFS (`cfsm`)."""

    def __init__(self, config: TFANetConfig, dim: int) -> None:
        super().__init__()
        width = config.text.width
        self.align: nn.Module
        if config.alignment == "mlam":
            self.align = MLAM(dim, width, config.align_dim)
        elif config.alignment == "attention":
            self.align = CrossAttention(dim, width, config.align_dim)
        else:
            self.align = Gate(dim, width)
        self.block = FusionBlock(dim, width, config.align_dim, config.text_length)
        self.cfsm = CFSM(dim, config.grid, config.cfsm)

    def forward(
        self, image: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """F_V (B, C, H, W), F_W (B, T, L), F_T (B, T) and m (B, 1, L) to F_F, F_LV (B, C, L)."""
        f_vl, f_lv = self.align(image, words, mask)
        return self.cfsm(self.block(image, f_vl, f_lv, sentence, mask)), f_lv


class TFANet(nn.Module):
    """Referring image segmentation; see the module's docstring.

    The text and the image part are separate calls, so that a sentence is encoded once and used on
    many pictures.
    """

    def __init__(self, config: TFANetConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text)
        self.backbone = VMamba(config.dims, config.depths, config.ssm_ratio, config.drop_path)
        self.fusion = nn.ModuleList(Fusion(config, dim) for dim in config.dims)
        self.decoder = Decoder(
            config.dims, config.decoder_dim, config.text_length, config.refine, config.wfdm
        )

    def forward(self, image: Tensor, token_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Logit z of the mask, (B, 1, H, W); a pixel is meant where z > 0.

        Args:
            image: (B, 3, H, W) normalised RGB, H and W multiples of 32.
            token_ids: (B, L) int64. word_mask: (B, L), 1 from the start to the end token, else 0.

        Raises:
            InputError: for a size that is not a multiple of 32, or another text length than L.
        """
        return self.segment(image, *self.encode_text(token_ids), word_mask)

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) to word features F_W (B, T, L) and the sentence feature F_T (B, T)."""
        if token_ids.shape[-1] != self.config.text_length:
            raise InputError(
                f"token_ids have length {token_ids.shape[-1]}: this model takes "
                f"{self.config.text_length}"
            )
        return self.text(token_ids)

    def segment(self, image: Tensor, words: Tensor, sentence: Tensor, word_mask: Tensor) -> Tensor:
        """Image (B, 3, H, W), F_W, F_T and the word mask (B, L) to the logit z (B, 1, H, W)."""
        height, width = image.shape[2:]
        check_image_size((height, width))
        mask = word_mask.to(words.dtype).unsqueeze(1)  # m, (B, 1, L)
        features, aligned = [], []
        x = self.backbone.patch_embed(image)
        for stage, fusion in zip(self.backbone.stages(), self.fusion, strict=True):
            visual = stage.blocks(x)
            fused, f_lv = fusion(visual, words, sentence, mask)
            features.append(fused)
            aligned.append(f_lv)
            if len(features) < len(self.fusion):
                x = stage.downsample(visual + fused)
        z = self.decoder(features, aligned, mask)  # (B, 1, H/4, W/4)
        return F.interpolate(z, (height, width), mode="bilinear", align_corners=False)
