"""InstAlign's loss: matching against every assignment, gradients, and what a few steps teach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from small_instalign import SMALL
from torch.nn import functional as F

from tfanet.model.instalign.loss import loss, mask_cost, match
from tfanet.model.instalign.network import InstAlign
from tfanet.model.instalign.objects import traits_of


def batch(size: int = 64) -> dict[str, Any]:
    """Two squares, one square and nothing: the picture shows what each sentence's word means."""
    ids = torch.zeros(3, 8, dtype=torch.int64)
    ids[:, 0], ids[:, 2] = 1, 2
    ids[:, 1] = torch.tensor([10, 11, 12])
    image = torch.full((3, 3, size, size), -1.0)
    instances = [torch.zeros(n, size, size) for n in (2, 1, 0)]
    a, b = slice(4, size // 2 - 4), slice(size // 2 + 4, size - 4)
    for channel, place in enumerate(((a, a), (b, b), (a, b))):
        image[:, channel, place[0], place[1]] = 1
    instances[0][0][a, a] = instances[0][1][b, b] = instances[1][0][a, b] = 1
    return {
        "image": image,
        "token_ids": ids,
        "word_mask": (ids != 0).float(),
        "target": torch.stack([one.sum(0, keepdim=True) for one in instances]),
        "instances": instances,
        "no_target": torch.tensor([0.0, 0.0, 1.0]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_the_best_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, count = 5, seed % 4 + 1
    cost = torch.randn(queries, count, generator=generator)
    best = min(
        sum(cost[q, i].item() for i, q in enumerate(chosen))
        for chosen in permutations(range(queries), count)
    )
    rows, columns = match(cost)
    assert sorted(columns.tolist()) == list(range(count))
    assert len(set(rows.tolist())) == count
    assert cost[rows, columns].sum().item() == pytest.approx(best)


def test_a_cost_that_is_no_number_is_the_last_choice() -> None:
    rows, _ = match(torch.tensor([[float("nan")], [3.0], [float("inf")]]))
    assert rows.tolist() == [1]


def test_the_cost_is_the_loss_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, generator=generator)
    masks = (torch.rand(2, 50, generator=generator) > 0.5).float()
    cost = mask_cost(logits, masks)
    for q in range(3):
        for i in range(2):
            p, t = logits[q].sigmoid(), masks[i]
            entropy = F.binary_cross_entropy(p, t)
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            assert cost[q, i].item() == pytest.approx((5 * entropy + 5 * dice).item(), rel=1e-4)


@pytest.mark.parametrize("points", [0, 300])
def test_every_parameter_learns(points: int) -> None:
    torch.manual_seed(0)
    model = InstAlign(replace(SMALL, loss_points=points)).train()
    for name, parameter in model.named_parameters():  # zero at first, what they multiply unheard
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    examples = batch()
    value, logit = loss(model, examples)
    assert logit.shape == examples["target"].shape
    value.backward()
    assert value.isfinite()
    without = {
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()
    }
    assert without == set()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_sentences_of_a_picture_share_its_pixels() -> None:
    """Side by side they cost one picture, and loss and gradients are those of pictures apart."""
    torch.manual_seed(3)
    model = InstAlign(SMALL).double().eval()
    three = {
        k: v.double() if k in ("image", "word_mask", "target") else v for k, v in batch().items()
    }
    three["instances"] = [masks.double() for masks in three["instances"]]
    three["image"][1] = -three["image"][1]

    def order(*rows: int) -> dict[str, Any]:
        return {
            k: [v[row] for row in rows] if isinstance(v, list) else v[list(rows)]
            for k, v in three.items()
        }

    counts: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    found = []
    for rows in ((0, 2, 1), (0, 1, 2)):
        value, logit = loss(model, order(*rows))
        gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        found.append((value, logit[rows.index(2)], gradients))
    assert counts == [2, 3]
    (value, logit, gradients), (apart, logit_apart, gradients_apart) = found
    torch.testing.assert_close(value, apart)
    torch.testing.assert_close(logit, logit_apart)
    for one, other in zip(gradients, gradients_apart, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_without_any_instance_has_a_loss() -> None:
    torch.manual_seed(1)
    nothing = {k: v[2:] for k, v in batch().items()}
    value, _ = loss(InstAlign(SMALL).train(), nothing)
    value.backward()
    assert value.isfinite()


def test_points_estimate_the_loss_of_all_pixels() -> None:
    """Of a mask that is the same everywhere: where one looks does not matter."""
    torch.manual_seed(2)
    model = InstAlign(SMALL).eval()
    torch.nn.init.zeros_(model.sem_seg_head.pixel_decoder.mask_features.weight)
    everywhere = batch()
    everywhere["instances"] = [torch.ones(1, 64, 64)] * 3
    everywhere["target"] = torch.ones(3, 1, 64, 64)
    everywhere["no_target"] = torch.zeros(3)
    with torch.no_grad():
        whole, _ = loss(model, everywhere)
        model.config = replace(SMALL, loss_points=16 * 16)
        sampled, _ = loss(model, everywhere)
    # Beyond the centre of the outermost pixels the masks fade.
    assert sampled.item() == pytest.approx(whole.item(), rel=1e-2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a network is slower on two, by far where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_few_steps_find_two_targets_one_and_none(one_thread: None) -> None:
    torch.manual_seed(3)
    model = InstAlign(SMALL).train()
    examples = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(60):
        value, _ = loss(model, examples)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.35 * values[0]
    model.eval()
    with torch.no_grad():
        (words,) = model.encode_text(examples["token_ids"])
        logit, nothing, relevance, instances, _ = model.segment(
            examples["image"], words, examples["word_mask"]
        )
    assert (nothing[:, 0] > 0).tolist() == [False, False, True]
    assert (relevance > 0.5).sum(1).tolist() == [2, 1, 0]
    for b in range(2):
        got, target = logit[b, 0] > 0, examples["target"][b, 0] > 0
        assert (got & target).sum() / (got | target).sum() > 0.8
    pair = instances[0, relevance[0] > 0.5] > 0  # the two squares, one each
    assert not (pair[0] & pair[1]).any()


def test_traits_are_colour_place_and_size() -> None:
    generator = np.random.default_rng(4)
    picture, masks = generator.normal(size=(3, 6, 10)), generator.random((4, 6, 10)) > 0.5
    found = traits_of(torch.from_numpy(picture), torch.from_numpy(masks.astype(np.float64)))
    for row, mask in zip(found.numpy(), masks, strict=True):
        y, x = np.nonzero(mask)
        x, y = (2 * x + 1) / 10 - 1, (2 * y + 1) / 6 - 1
        expected = [*picture[:, mask].mean(1), x.mean(), x.std(), y.mean(), y.std()]
        np.testing.assert_allclose(row, expected, atol=1e-6)
