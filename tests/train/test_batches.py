"""Training batches: a function of seed and position, shared out over processes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from tfanet.data import Ref, ReferDataset, make_shapes
from tfanet.data.batches import make_loader
from tfanet.runtime.tokenizer import TextTokenizer
from tfanet.training.train import TOKENIZER

Batch = list[torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=4, val=0, testA=0, testB=0)
    return ReferDataset(root, split="train")


def batches(source: ReferDataset, **changes: object) -> list[Batch]:
    settings = {"batch": 3, "first_step": 0, "steps": 8, "seed": 0} | changes
    tokenizer = TextTokenizer(TOKENIZER, 16)
    return list(make_loader(source, size=(64, 96), tokenizer=tokenizer, **settings))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


def test_shapes_and_types(source: ReferDataset) -> None:
    image, ids, words, target = batches(source)[0]
    assert (image.shape, image.dtype) == ((3, 3, 64, 96), torch.float32)
    assert (ids.shape, ids.dtype) == ((3, 16), torch.int64)
    assert (words.shape, words.dtype) == ((3, 16), torch.float32)
    assert (target.shape, target.dtype) == ((3, 1, 64, 96), torch.float32)
    assert set(target.unique().tolist()) == {0.0, 1.0}


def test_any_step_can_be_the_first(source: ReferDataset) -> None:
    whole = batches(source)
    assert same(whole, batches(source))
    assert same(whole[5:], batches(source, first_step=5))
    assert not same(whole, batches(source, seed=1))


def test_workers_change_nothing(source: ReferDataset) -> None:
    assert same(batches(source), batches(source, workers=2))


def test_processes_share_the_global_batch(source: ReferDataset) -> None:
    both = [batches(source, batch=2, rank=rank, processes=2) for rank in (0, 1)]
    together = [
        [torch.cat(parts) for parts in zip(a, b, strict=True)] for a, b in zip(*both, strict=True)
    ]
    assert same(together, batches(source, batch=4))


def small_mask(ref: Ref) -> np.ndarray:
    mask = Image.fromarray(ref.mask()).resize((96, 64), Image.Resampling.NEAREST)
    return np.asarray(mask, dtype=np.float32)


def test_an_epoch_sees_every_ref_once_with_one_of_its_sentences(source: ReferDataset) -> None:
    tokenizer = TextTokenizer(TOKENIZER, 16)
    drawn = batches(source, batch=1, steps=len(source.refs))
    seen = {target[0, 0].numpy().tobytes(): ids[0].tolist() for _, ids, _, target in drawn}
    assert len(seen) == len(source.refs)
    for ref in source.refs:
        # The mask is resized by nearest neighbour, so it is equal to the bit.
        assert seen[small_mask(ref).tobytes()] in tokenizer(list(ref.sentences))[0].tolist()


def test_all_sentences_sees_every_pair_once(source: ReferDataset) -> None:
    tokenizer = TextTokenizer(TOKENIZER, 16)
    drawn = batches(source, batch=1, steps=len(source), all_sentences=True)
    found = sorted(tuple(ids[0].tolist()) for _, ids, _, _ in drawn)
    assert found == sorted(tuple(i) for i in tokenizer([s.sentence for s in source])[0].tolist())


def test_by_picture_keeps_a_picture_together(source: ReferDataset) -> None:
    drawn = batches(source, batch=1, steps=2 * len(source.refs), by_picture=True)
    images = [image.numpy().tobytes() for image, _, _, _ in drawn]
    for epoch in (images[: len(source.refs)], images[len(source.refs) :]):
        changes = sum(a != b for a, b in pairwise(epoch))
        assert changes == len(set(epoch)) - 1 == 3
    masks = {target[0, 0].numpy().tobytes() for *_, target in drawn[: len(source.refs)]}
    assert masks == {small_mask(ref).tobytes() for ref in source.refs}
