"""The two graphs of a network in ONNX: the sentence's and the picture's.

They are separate so that a sentence is encoded once and used on many pictures: in `tfanet-base`,
123 of 268 million parameters are the text encoder's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from tfanet.export.enlarge import convolve_before_enlarging
from tfanet.export.trace import EXAMPLE_BATCH, IR_VERSION, export_graph
from tfanet.model.checkpoint import family_of
from tfanet.plugins import attach, expand_ss2d
from tfanet.runtime.backends.choose import MAX_BATCH
from tfanet.runtime.bundle.contract import Tokenization
from tfanet.runtime.bundle.graphs import image_feed, random_tokens

__all__ = ["export_image", "export_text"]


class _TextGraph(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Any:
        return self.model.encode_text(token_ids)


class _ImageGraph(nn.Module):
    def __init__(self, model: Any, places: list[int]) -> None:
        super().__init__()
        self.model, self.places = model, places

    def forward(self, *inputs: Tensor) -> Any:
        given = self.model.segment(*inputs)
        return tuple(given[n] for n in self.places) if isinstance(given, tuple) else given


def _example_tokens(tokens: Tokenization, batch: int) -> Tensor:
    ids, _ = random_tokens(np.random.default_rng(0), tokens, tokens.length - 2)
    return torch.from_numpy(ids).expand(batch, -1)


def export_text(
    model: Any,
    *,
    tokens: Tokenization | None = None,
    dynamic_batch: bool = True,
    opset: int = 20,
) -> ModelProto:
    """text.onnx: token_ids (batch, L) int64 to the family's features of words and sentence.

    `tokens` are the bundle's; by default those of the shipped tokenizer.
    """
    family = family_of(model)
    tokens = tokens or family.tokenization(model.config)
    ids = _example_tokens(tokens, EXAMPLE_BATCH if dynamic_batch else 1)
    names = ("token_ids",)
    return _export(_TextGraph(model), (ids,), names, family.text_outputs, dynamic_batch, opset)


def export_image(
    model: Any,
    size: tuple[int, int],
    *,
    tokens: Tokenization | None = None,
    outputs: Iterable[str] = ("mask", "no_target"),
    function: str = "sequential",
    fuse: bool = True,
    dynamic_batch: bool = True,
    opset: int = 20,
) -> ModelProto:
    """image.onnx: image, text features and word mask to mask_logit (batch, 1, h, w) and others.

    Args:
        size: (H, W), fixed in the graph. tokens: as for `export_text`. outputs: roles of what it
            gives, those of them that the family has. function: the scan's body, see
            `tfanet.plugins.attach`. fuse: one tfanet::SS2D node per 2-D scan, else its parts around
            tfanet::SelectiveScan.
    """
    family = family_of(model)
    tokens = tokens or family.tokenization(model.config)
    batch = EXAMPLE_BATCH if dynamic_batch else 1
    with torch.no_grad():
        features = family.run_text(model, _example_tokens(tokens, batch))
    image, mask = torch.zeros(batch, 3, *size), torch.ones(batch, tokens.length)
    feed = image_feed(family.image_inputs, image, features, mask)
    kept = [n for n, role in enumerate(family.image_outputs.values()) if role in outputs]
    names = [name for n, name in enumerate(family.image_outputs) if n in kept]
    graph = _export(
        _ImageGraph(model, kept), tuple(feed.values()), feed, names, dynamic_batch, opset
    )
    convolve_before_enlarging(graph)
    graph = attach(graph if fuse else expand_ss2d(graph), function)
    graph.ir_version = IR_VERSION
    return graph


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Iterable[str],
    outputs: Iterable[str],
    dynamic_batch: bool,
    opset: int,
) -> ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes: Any = None
    if dynamic_batch:
        shapes = tuple({0: batch} for _ in example)
        shapes = (shapes,) if isinstance(module, _ImageGraph) else shapes  # one *inputs
    return export_graph(module, example, tuple(inputs), tuple(outputs), shapes, opset)
