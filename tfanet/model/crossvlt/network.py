"""CrossVLT: from an image and a sentence to the logit that each pixel is meant.

"Cross-aware Early Fusion with Stage-divided Vision and Language Transformer Encoders for Referring
Image Segmentation" (Cho, Yu and Kang, 2023), as its official code computes it:

    l_1 = language_1(token ids);  x_1 = patches(image)
    l_i = language_i(l_i-1, x_i)            from the second stage on: the words see the pixels
    c_i, x_i+1 = vision_i(x_i, l_i)         the pixels attend to the words, twice
    z = decoder(c_4, c_3, c_2, c_1)
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.model.config import check_image_size
from tfanet.model.crossvlt.config import CrossVLTConfig
from tfanet.model.crossvlt.decoder import Decoder
from tfanet.model.crossvlt.fusion import Pointwise
from tfanet.model.crossvlt.language import FirstStage, LaterStage
from tfanet.model.crossvlt.vision import StageOutput, VisionStage
from tfanet.model.layers.bert import init_bert, key_mask
from tfanet.model.layers.swin import PATCH, drop_path_rates, init_swin

__all__ = ["PAD_ID", "CrossVLT", "TrainingOutputs"]

PAD_ID = 0


class TrainingOutputs(NamedTuple):
    """What the official loss compares; A is the width of the comparison.

    Attributes:
        logits: (B, 2, H, W), of the ground and of what is meant.
        pixels: of each stage, (B, A, H / 2^(i+2), W / 2^(i+2)).
        sentence: of each stage, (B, A), its [CLS] token.
    """

    logits: Tensor
    pixels: list[Tensor]
    sentence: list[Tensor]


class CrossVLT(nn.Module):
    """Referring image segmentation; see the module's docstring.

    The first language stage never sees the picture and is a call of its own, so that its half of
    the encoder runs once per sentence. Names of parameters are the official ones; `temp` and every
    `proj` outside of Swin's blocks serve the alignment loss alone.
    """

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__()
        self.config = config
        rates = drop_path_rates(config.depths, config.drop_path)
        self.backbone = nn.ModuleList(VisionStage(config, i, rates[i]) for i in range(4))
        self.lang_stage1 = FirstStage(config)
        self.lang_stage2 = LaterStage(config, 1)
        self.lang_stage3 = LaterStage(config, 2)
        self.lang_stage4 = LaterStage(config, 3)
        self.classifier = Decoder(config.dims, config.decoder_dim)
        self.temp = nn.Parameter(torch.ones(4))
        self.backbone.apply(_init_backbone)
        for stage in (self.lang_stage1, *self._later_stages()):
            stage.apply(init_bert)

    def forward(self, image: Tensor, token_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Logit z of the mask, (B, 1, H, W); a pixel is meant where z > 0.

        Args:
            image: (B, 3, H, W) normalised RGB, H and W multiples of 32.
            token_ids: (B, L) int64, 0 after the sentence. word_mask: (B, L), 1 on the sentence,
                start and end included, else 0.

        Raises:
            InputError: for a size that is not a multiple of 32, or another text length than L.
        """
        return self.segment(image, *self.encode_text(token_ids), word_mask)

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor]:
        """Token ids (B, L) to the first language stage's word features (B, T, L)."""
        if token_ids.shape[-1] != self.config.text_length:
            raise InputError(
                f"token_ids have length {token_ids.shape[-1]}: this model takes "
                f"{self.config.text_length}"
            )
        mask = key_mask(token_ids != PAD_ID)
        return (self.lang_stage1(token_ids, mask).transpose(1, 2),)

    def segment(self, image: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Image (B, 3, H, W), word features (B, T, L), mask (B, L) to the logit z (B, 1, H, W)."""
        outputs, _ = self._encode(image, words.transpose(1, 2), word_mask)
        z = self.classifier([output.map for output in outputs])  # (B, 2, H/4, W/4)
        # z_1 - z_0 > 0 is the official argmax; resizing is linear, so the difference comes first.
        return _resize(z[:, 1:] - z[:, :1], image)

    def training_outputs(
        self, image: Tensor, token_ids: Tensor, word_mask: Tensor
    ) -> TrainingOutputs:
        """What the official loss compares, of the arguments of `forward`."""
        (words,) = self.encode_text(token_ids)
        outputs, heard = self._encode(image, words.transpose(1, 2), word_mask)
        pixels = []
        for stage, output in zip(self._vision_stages(), outputs, strict=True):
            size = output.map.shape[2:]
            pixels.append(stage.layers.proj(output.pixels).transpose(1, 2).unflatten(2, size))
        stages: Any = (self.lang_stage1, *self._later_stages())
        sentence = [s.proj(w[:, 0]) for s, w in zip(stages, heard, strict=True)]
        z = self.classifier([output.map for output in outputs])
        return TrainingOutputs(_resize(z, image), pixels, sentence)

    def maps(self, image: Tensor) -> list[Tensor]:
        """Swin alone on (B, 3, H, W): of each stage (B, C_i, H / 2^(i+2), W / 2^(i+2))."""
        height, width = image.shape[2:]
        check_image_size((height, width))
        size = (height // PATCH, width // PATCH)
        x, maps = self._vision_stages()[0].patch_embed(image), []
        for stage in self._vision_stages():
            x = stage.layers.look(x, size)
            maps.append(x.transpose(1, 2).unflatten(2, size))
            if not stage.layers.last:
                x = stage.layers.downsample(x, size)
                size = (size[0] // 2, size[1] // 2)
        return maps

    def _vision_stages(self) -> list[VisionStage]:
        return cast(list[VisionStage], list(self.backbone))

    def _later_stages(self) -> tuple[LaterStage, LaterStage, LaterStage]:
        return self.lang_stage2, self.lang_stage3, self.lang_stage4

    def _encode(
        self, image: Tensor, words: Tensor, word_mask: Tensor
    ) -> tuple[list[StageOutput], list[Tensor]]:
        """All stages of both encoders: of vision, and words (B, L, T) after each of language."""
        height, width = image.shape[2:]
        check_image_size((height, width))
        size = (height // PATCH, width // PATCH)
        mask = key_mask(word_mask)  # (B, 1, 1, L)
        vision = self._vision_stages()
        x: Any = vision[0].patch_embed(image)
        outputs, heard = [], []
        for stage, language in zip(vision, (None, *self._later_stages()), strict=True):
            if language is not None:
                words = language(words, x, mask)
            output = stage(x, size, words, mask)
            x, size = output.following, (size[0] // 2, size[1] // 2)
            outputs.append(output)
            heard.append(words)
        return outputs, heard


def _resize(z: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(z, image.shape[2:], mode="bilinear", align_corners=True)


def _init_backbone(module: nn.Module) -> None:
    """Swin's start, and the official code's for the convolutions."""
    init_swin(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    if isinstance(module, Pointwise):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.Conv2d | Pointwise) and module.bias is not None:
        nn.init.zeros_(module.bias)
