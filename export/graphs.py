"""TFANet's two graphs in ONNX: the sentence's and the picture's.

They are separate so that a sentence is encoded once and used on many pictures: in `tfanet-base`,
123 of 268 million parameters are the text encoder's.
"""

from __future__ import annotations

import torch
from onnx import ModelProto
from torch import Tensor, nn

from tfanet.export.trace import EXAMPLE_BATCH, IR_VERSION, export_graph
from tfanet.model.tfanet.network import TFANet
from tfanet.plugins import attach, expand_ss2d
from tfanet.runtime.backends.choose import MAX_BATCH
from tfanet.runtime.bundle.graphs import IMAGE_INPUTS, TEXT_OUTPUTS
from tfanet.runtime.tokenizer_file import END_ID, START_ID

__all__ = ["export_image", "export_text"]


class _TextGraph(nn.Module):
    def __init__(self, model: TFANet) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_text(token_ids)


class _ImageGraph(nn.Module):
    def __init__(self, model: TFANet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, words: Tensor, sentence: Tensor, mask: Tensor) -> Tensor:
        return self.model.segment(image, words, sentence, mask)


def export_text(model: TFANet, *, dynamic_batch: bool = True, opset: int = 20) -> ModelProto:
    """text.onnx: token_ids (batch, L) int64 to word_features (batch, T, L), sentence_feature."""
    batch = EXAMPLE_BATCH if dynamic_batch else 1
    ids = torch.full((batch, model.config.text_length), END_ID)
    ids[:, 0] = START_ID
    return _export(_TextGraph(model), (ids,), ("token_ids",), TEXT_OUTPUTS, dynamic_batch, opset)


def export_image(
    model: TFANet,
    size: tuple[int, int],
    *,
    function: str = "sequential",
    fuse: bool = True,
    dynamic_batch: bool = True,
    opset: int = 20,
) -> ModelProto:
    """image.onnx: image, text features and word mask to mask_logit (batch, 1, H, W).

    Args:
        size: (H, W), fixed in the graph. function: the scan's body, see `tfanet.plugins.attach`.
        fuse: one tfanet::SS2D node per 2-D scan, else its parts around tfanet::SelectiveScan.
    """
    config = model.config
    batch = EXAMPLE_BATCH if dynamic_batch else 1
    example = (
        torch.zeros(batch, 3, *size),
        torch.zeros(batch, config.text.width, config.text_length),
        torch.zeros(batch, config.text.width),
        torch.ones(batch, config.text_length),
    )
    graph = _export(
        _ImageGraph(model), example, IMAGE_INPUTS, ("mask_logit",), dynamic_batch, opset
    )
    graph = attach(graph if fuse else expand_ss2d(graph), function)
    graph.ir_version = IR_VERSION
    return graph


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic_batch: bool,
    opset: int,
) -> ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = tuple({0: batch} for _ in example) if dynamic_batch else None
    return export_graph(module, example, inputs, outputs, shapes, opset)
