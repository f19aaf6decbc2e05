"""InstAlign's training loss: the merged mask, the instances at each layer, whether any is meant.

    L = merged + sum_k instances_k + no_target

The parts and how queries are matched to instances are [paper]; the weights, which it does not give,
are the ancestors' where they have them. N are the queries, n the instances of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.instalign.pixel_decoder import DecodedPixels
from tfanet.model.instalign.predictor import Predictor, State
from tfanet.model.layers.losses import dice_loss
from tfanet.model.training import Batch

__all__ = ["Matched", "loss", "mask_cost", "mask_loss", "match", "matched", "phrase_distance"]

SCORE, MASK, DICE = 2.0, 5.0, 5.0  # [Mask2Former], [VATEX]
UNMATCHED = 0.1  # weight of the score of queries without an instance [Mask2Former]
PHRASE, NO_TARGET = 1.0, 2.0  # [ours]
CLASS_WEIGHTS = (0.9, 1.1)  # background and meant, and something and nothing meant [ReLA]
# Of the points at which a mask's loss looks, so many are the least certain ones among three times
# as many random ones [Mask2Former].
UNCERTAIN, CANDIDATES = 0.75, 3


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scalar loss of an `InstAlign` on a batch, and its logit z (B, 1, H, W)."""
    network: Any = model
    predictor: Predictor = network.sem_seg_head.predictor
    mask, target, nothing = batch["word_mask"], batch["target"], batch["no_target"] > 0.5
    (words,) = network.encode_text(batch["token_ids"])
    pixels = _pixels_of(network, batch["image"])
    states = predictor(pixels, words.transpose(1, 2), mask)
    instances, points = batch["instances"], network.config.loss_points
    total = torch.stack(
        [_layer_loss(predictor, pixels.features, s, mask, instances, points) for s in states]
    ).sum()

    state = states[-1]
    relevance = torch.sigmoid(predictor.relevance_logit(state.queries))
    masks = predictor.instance_logits(state.queries, pixels.features)
    merged = predictor.merged_logit(relevance, masks)
    size = (target.shape[2], target.shape[3])
    merged = F.interpolate(merged, size, mode="bilinear", align_corners=False)
    weight = torch.where(target > 0, CLASS_WEIGHTS[1], CLASS_WEIGHTS[0])
    entropy = F.binary_cross_entropy_with_logits(merged, target, weight, reduction="sum")
    total = total + MASK * entropy / weight.sum()
    meant = ~nothing
    if meant.any():  # Dice says nothing of a mask that should be empty
        total = total + DICE * dice_loss(merged[meant], target[meant])
    logits = predictor.no_target_logits(relevance, state, mask)
    class_weights = logits.new_tensor(CLASS_WEIGHTS)
    return total + NO_TARGET * F.cross_entropy(logits, nothing.long(), class_weights), merged


def _pixels_of(network: Any, image: Tensor) -> DecodedPixels:
    """`InstAlign.pixels` of a batch (B, 3, H, W), each picture that follows itself taken once.

    Words do not meet the picture before the decoder, so all sentences of a picture share what most
    of a step is spent on.
    """
    changed = (image[1:] != image[:-1]).flatten(1).any(1)
    new = torch.cat([changed.new_ones(1), changed])
    which = new.cumsum(0) - 1
    pixels = network.pixels(image[new])
    return DecodedPixels(pixels.features[which], tuple(m[which] for m in pixels.maps))


def phrase_distance(predictor: Predictor, state: State, word_mask: Tensor) -> Tensor:
    """1 - cos(Q, P), with P = R T what each query takes of the words [paper]: (B, N)."""
    phrase = predictor.alignment(state, word_mask) @ state.words
    return 1 - F.cosine_similarity(state.queries, phrase, dim=2)


def mask_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """What it costs to take a query's mask for an instance's: (N, n).

    Args:
        logits: (N, P) of the masks, at P points. masks: (n, P), the instances at the same points.
    """
    inside = F.softplus(-logits) @ masks.T  # -log(sigmoid) where the instance is
    outside = F.softplus(logits) @ (1 - masks).T
    p = logits.sigmoid()
    dice = 1 - (2 * p @ masks.T + 1) / (p.sum(1)[:, None] + masks.sum(1) + 1)
    return MASK * (inside + outside) / masks.shape[1] + DICE * dice


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and instances, one to one, whose costs (N, n) add up to the least."""
    from scipy.optimize import linear_sum_assignment  # of the extra `train`: export needs no SciPy

    # A loss that is not a number is told by training; the solver would stop with its own words.
    finite = cost.detach().double().nan_to_num(1e9).cpu().numpy()
    queries, instances = linear_sum_assignment(finite)
    device = cost.device
    return torch.as_tensor(queries, device=device), torch.as_tensor(instances, device=device)


class Matched(NamedTuple):
    """Which queries of a sample hold which of its instances, and what their masks are there.

    Attributes:
        sample: its index in the batch.
        queries, order: (n,) indices of queries and of the instances that they hold.
        logits, masks: (n, P), of those queries and of those instances, at the same P points.
    """

    sample: int
    queries: Tensor
    order: Tensor
    logits: Tensor
    masks: Tensor


def matched(
    features: Tensor,
    embedded: Tensor,
    instances: Sequence[Tensor],
    alone: Sequence[Tensor],
    points: int,
) -> list[Matched]:
    """Each sample's instances, matched to queries at the least total cost; none where none are.

    Args:
        features: (B, C, h, w). embedded: (B, N, C), of which the product with features is a mask.
        instances: (n, H, W) of each sample. alone: (N, n) or (N, 1) of each sample, what a match
            costs besides the mask. points: as `InstAlignConfig.loss_points`.
    """
    found = []
    # Of each sample. Unbound once: the gradient of `features[b]` is as large as all features.
    parts = zip(features.unbind(), embedded.unbind(), instances, alone, strict=True)
    for sample, (pixels, embeddings, masks, other) in enumerate(parts):
        if not len(masks):
            continue
        seen, there = _at_shared_points(pixels, masks, points)
        with torch.no_grad():
            cost = other + mask_cost(embeddings @ seen, there)
        queries, order = match(cost)
        if points:
            full = torch.einsum("nc,chw->nhw", embeddings[queries], pixels)
            at = _uncertain_points(full.detach(), points)
            logits, masks = _read(full, at), _read(masks[order], at)
        else:
            logits, masks = embeddings[queries] @ seen, there[order]
        found.append(Matched(sample, queries, order, logits, masks))
    return found


def mask_loss(found: Sequence[Matched]) -> Tensor:
    """Cross-entropy and Dice of all matched masks, a scalar."""
    x, t = (torch.cat([getattr(one, name) for one in found]) for name in ("logits", "masks"))
    return MASK * F.binary_cross_entropy_with_logits(x, t) + DICE * dice_loss(x, t)


def _layer_loss(
    predictor: Predictor,
    features: Tensor,
    state: State,
    word_mask: Tensor,
    instances: Sequence[Tensor],
    points: int,
) -> Tensor:
    """Of the instances, at one layer: scores of all queries, masks and phrases of matched ones.

    A match costs what the loss of the pair would be [paper].
    """
    scores = predictor.relevance_logit(state.queries)  # (B, N)
    distances = phrase_distance(predictor, state, word_mask)  # (B, N)
    alone = (SCORE * F.softplus(-scores) + PHRASE * distances).detach().unsqueeze(2)
    embedded = predictor.mask_embed(state.queries)  # (B, N, C)
    found = matched(features, embedded, instances, alone.unbind(), points)
    held = torch.zeros_like(scores)
    for one in found:
        held[one.sample, one.queries] = 1
    weight = torch.where(held > 0, 1.0, UNMATCHED)
    entropy = F.binary_cross_entropy_with_logits(scores, held, weight, reduction="sum")
    total = SCORE * entropy / weight.sum()
    if found:
        phrases = torch.cat([distances[one.sample, one.queries] for one in found])
        total = total + PHRASE * phrases.mean() + mask_loss(found)
    return total


def _at_shared_points(features: Tensor, masks: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Features (C, P) and instances (n, P) at random points, or at all pixels of the features."""
    if not points:
        size = (features.shape[1], features.shape[2])
        return features.flatten(1), F.interpolate(masks[None], size, mode="area")[0].flatten(1)
    at = torch.rand(1, points, 2, device=features.device)
    return _read(features, at.expand(len(features), -1, -1)), _read(
        masks, at.expand(len(masks), -1, -1)
    )


def _uncertain_points(logits: Tensor, points: int) -> Tensor:
    """For masks (n, h, w), points (n, P, 2), most of them where the logit is near 0."""
    count = len(logits)
    candidates = torch.rand(count, CANDIDATES * points, 2, device=logits.device)
    near = int(UNCERTAIN * points)
    nearest = _read(logits, candidates).abs().topk(near, dim=1, largest=False).indices
    chosen = candidates.gather(1, nearest.unsqueeze(2).expand(-1, -1, 2))
    rest = torch.rand(count, points - near, 2, device=logits.device)
    return torch.cat([chosen, rest], 1)


def _read(maps: Tensor, at: Tensor) -> Tensor:
    """Maps (n, h, w) at points (n, P, 2), x and y from 0 to 1 over the picture: (n, P)."""
    got = F.grid_sample(maps.unsqueeze(1), 2 * at.unsqueeze(1) - 1, align_corners=False)
    return got[:, 0, 0]
