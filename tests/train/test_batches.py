"""Training batches: a function of seed and position, shared out over processes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tfanet.data import Ref, ReferDataset, make_shapes
from tfanet.data.batches import make_loader
from tfanet.data.masks import mask_to_size
from tfanet.model.family import find_family
from tfanet.model.tfanet.config import PRESETS
from tfanet.runtime.preprocess import picture_to_tensor

Batch = dict[str, Any]
FAMILY = find_family("tfanet")
CONFIG = replace(PRESETS["tfanet-tiny"], text_length=16)
STRETCHED = FAMILY.preprocessing((64, 96))
BOXED = replace(STRETCHED, resize="letterbox-area", padding=(124, 116, 104))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=4, val=0, testA=0, testB=0)
    return ReferDataset(root, split="train")


def batches(source: ReferDataset, **changes: object) -> list[Batch]:
    settings = {"batch": 3, "first_step": 0, "steps": 8, "seed": 0, "preprocessing": STRETCHED}
    tokenizer = FAMILY.make_tokenizer(CONFIG)
    return list(make_loader(source, tokenizer=tokenizer, **(settings | changes)))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def equal(a: Batch, b: Batch) -> bool:
    assert a.keys() == b.keys()
    instances = zip(a["instances"], b["instances"], strict=True)
    tensors = [(a[name], b[name]) for name in a if name != "instances"]
    return all(torch.equal(x, y) for x, y in (*instances, *tensors))


def test_shapes_and_types(source: ReferDataset) -> None:
    batch = batches(source)[0]
    shapes = {"image": (3, 3, 64, 96), "token_ids": (3, 16), "word_mask": (3, 16)}
    shapes |= {"target": (3, 1, 64, 96), "no_target": (3,)}
    assert batch.keys() == {*shapes, "instances"}
    for name, shape in shapes.items():
        kind = {"token_ids": torch.int64, "no_target": torch.bool}.get(name, torch.float32)
        assert (tuple(batch[name].shape), batch[name].dtype) == (shape, kind), name
    assert set(batch["target"].unique().tolist()) == {0.0, 1.0}
    assert batch["no_target"].tolist() == [False] * 3
    assert torch.equal(torch.stack(batch["instances"]), batch["target"])


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
        {
            name: a[name] + b[name] if name == "instances" else torch.cat([a[name], b[name]])
            for name in a
        }
        for a, b in zip(*both, strict=True)
    ]
    assert same(together, batches(source, batch=4))


def small_mask(ref: Ref) -> np.ndarray:
    mask = Image.fromarray(ref.mask()).resize((96, 64), Image.Resampling.NEAREST)
    return np.asarray(mask, dtype=np.float32)


def test_an_epoch_sees_every_ref_once_with_one_of_its_sentences(source: ReferDataset) -> None:
    tokenizer = FAMILY.make_tokenizer(CONFIG)
    drawn = batches(source, batch=1, steps=len(source.refs))
    seen = {b["target"][0, 0].numpy().tobytes(): b["token_ids"][0].tolist() for b in drawn}
    assert len(seen) == len(source.refs)
    for ref in source.refs:
        # The mask is resized by nearest neighbour, so it is equal to the bit.
        assert seen[small_mask(ref).tobytes()] in tokenizer(list(ref.sentences))[0].tolist()


def test_all_sentences_sees_every_pair_once(source: ReferDataset) -> None:
    tokenizer = FAMILY.make_tokenizer(CONFIG)
    drawn = batches(source, batch=1, steps=len(source), all_sentences=True)
    found = sorted(tuple(batch["token_ids"][0].tolist()) for batch in drawn)
    assert found == sorted(tuple(i) for i in tokenizer([s.sentence for s in source])[0].tolist())


def test_by_picture_keeps_a_picture_together(source: ReferDataset) -> None:
    drawn = batches(source, batch=1, steps=2 * len(source.refs), by_picture=True)
    images = [batch["image"].numpy().tobytes() for batch in drawn]
    for epoch in (images[: len(source.refs)], images[len(source.refs) :]):
        changes = sum(a != b for a, b in pairwise(epoch))
        assert changes == len(set(epoch)) - 1 == 3
    masks = {b["target"][0, 0].numpy().tobytes() for b in drawn[: len(source.refs)]}
    assert masks == {small_mask(ref).tobytes() for ref in source.refs}


def test_a_mask_lies_where_its_picture_does_in_a_letterbox(tmp_path: Path) -> None:
    """The target covers the thing that is drawn: a picture of the mask itself shows the same."""
    make_shapes(tmp_path, train=3, val=0, testA=0, testB=0, seed=4)
    source = ReferDataset(tmp_path, split="train")
    for size in ((64, 96), (96, 64), (100, 100)):
        boxed = replace(BOXED, size=size)
        for ref in source.refs:
            mask = ref.mask()
            picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
            black = replace(boxed, mean=(0, 0, 0), std=(1, 1, 1), padding=(0, 0, 0))
            shown = picture_to_tensor(picture, black)[0] > 0.5
            found = mask_to_size(mask, boxed)
            assert found.shape == size
            assert found.dtype == bool
            # Nearest pixels and averages differ along the edge only.
            plane = Image.fromarray(found)
            grown = np.asarray(plane.filter(ImageFilter.MaxFilter(3)))
            shrunk = np.asarray(plane.filter(ImageFilter.MinFilter(3)))
            assert not ((found != shown) & (grown == shrunk)).any()
    drawn = batches(source, batch=1, steps=len(source.refs), preprocessing=BOXED)
    expected = {mask_to_size(ref.mask(), BOXED).tobytes() for ref in source.refs}
    assert {(b["target"][0, 0].numpy() > 0).tobytes() for b in drawn} == expected


def test_several_targets_and_none(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=8, val=0, testA=0, testB=0, generalised=True)
    source = ReferDataset(tmp_path, split="train")
    drawn = batches(source, batch=4, steps=len(source.refs) // 4)
    numbers: list[int] = []
    for batch in drawn:
        assert len(batch["instances"]) == 4
        for row, instances in enumerate(batch["instances"]):
            numbers.append(len(instances))
            assert instances.shape[1:] == (64, 96)
            assert instances.dtype == torch.float32
            assert instances.flatten(1).any(1).all()
            union = instances.sum(0, keepdim=True)
            assert torch.equal(union.clamp_max(1), batch["target"][row])
            assert bool(batch["no_target"][row]) == (len(instances) == 0)
    assert sorted(numbers) == sorted(len(ref.annotations) for ref in source.refs)
    assert {0, 1, 2} <= set(numbers)
    assert same(drawn, batches(source, batch=4, steps=len(source.refs) // 4, workers=2))


def test_what_has_no_pixel_left_is_no_instance(source: ReferDataset) -> None:
    tiny = batches(source, batch=1, steps=4, preprocessing=FAMILY.preprocessing((2, 2)))
    assert 0 in [len(batch["instances"][0]) for batch in tiny]
    for batch in tiny:
        assert batch["target"].any() == bool(len(batch["instances"][0]))
        assert batch["no_target"].tolist() == [False]
