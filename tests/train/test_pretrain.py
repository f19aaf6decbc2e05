"""Pretraining: the categories that it reads, the backbone that it teaches, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tfanet.cli import main
from tfanet.data import DataError, ReferDataset, make_shapes
from tfanet.data.categories import CategoryDataset, ObjectDataset
from tfanet.data.masks import mask_to_size
from tfanet.errors import InputError
from tfanet.model.checkpoint import load_model
from tfanet.model.family import FAMILIES, find_family
from tfanet.model.layers.swin import (
    PatchMerging,
    SwinBlock,
    WindowAttention,
    look_at_neighbours,
)
from tfanet.training.pretrain import PretrainOptions, category_loss, colour_loss, pretrain
from tfanet.training.train import TrainOptions, train

STRETCHED = find_family("tfanet").preprocessing((64, 96))
BOXED = replace(STRETCHED, resize="letterbox-area", padding=(124, 116, 104))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, train=6, val=2, testA=0, testB=0, seed=3)
    make_shapes(root, train=6, val=2, testA=0, testB=0, seed=3, generalised=True)
    return root


@pytest.mark.parametrize("preprocessing", [STRETCHED, BOXED], ids=["stretched", "boxed"])
@pytest.mark.parametrize("dataset", ["shapes", "gshapes"])
def test_every_target_shows_its_category(shapes: Path, dataset: str, preprocessing) -> None:
    source = CategoryDataset(shapes, dataset, preprocessing=preprocessing)
    document = json.loads((shapes / dataset / "instances.json").read_text())
    kinds = {annotation["id"]: annotation["category_id"] for annotation in document["annotations"]}
    refs = ReferDataset(shapes, dataset, "train").refs
    pictures = list(dict.fromkeys(ref.image_path for ref in refs))
    assert len(source) == len(pictures) == 6
    for picture, item in zip(pictures, source, strict=False):
        assert item["image"].shape == (3, 64, 96) and item["image"].dtype == torch.float32
        seen = item["categories"].numpy()
        assert seen.shape == (64, 96) and seen.dtype == np.int64 and (seen == 0).any()
        for ref in refs:
            if ref.image_path == picture:
                for (ann_id, _), mask in zip(ref.annotations, ref.masks(), strict=True):
                    place = mask_to_size(mask, preprocessing)
                    # Things do not overlap, but for a pixel of their borders.
                    right = seen[place] == 1 + source.names.index(kinds[ann_id])
                    assert right.mean() > 0.95


def test_bad_categories_are_named(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path, train=1, val=0, testA=0, testB=0)
    path = tmp_path / "shapes" / "instances.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = "star"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"annotation \d+: category_id is 'star'"):
        CategoryDataset(tmp_path, preprocessing=STRETCHED)
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="no object in pictures of 'train'"):
        CategoryDataset(tmp_path, preprocessing=STRETCHED)


def test_the_loss_is_the_cross_entropy_of_objects_and_a_little_of_all() -> None:
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    categories = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    loss, right = category_loss(logits, categories)
    small = categories[:, ::2, ::2].numpy()
    z = logits.double().numpy()
    chosen = np.take_along_axis(z, small[:, None], 1)[:, 0]
    entropy = np.log(np.exp(z).sum(1)) - chosen
    objects = small > 0
    assert float(loss) == pytest.approx(entropy[objects].mean() + 0.2 * entropy.mean(), rel=1e-5)
    assert float(right) == pytest.approx((z.argmax(1) == small)[objects].mean())


def test_colours_are_compared_over_the_area_of_each_pixel() -> None:
    generator = torch.Generator().manual_seed(2)
    colours = torch.randn(2, 3, 4, 6, generator=generator)
    image = torch.randn(2, 3, 8, 12, generator=generator)
    categories = torch.randint(0, 3, (2, 8, 12), generator=generator)
    loss = float(colour_loss(colours, image, categories))
    areas = image.double().numpy().reshape(2, 3, 4, 2, 6, 2).mean((3, 5))
    error = np.abs(colours.double().numpy() - areas).mean(1)
    objects = categories[:, ::2, ::2].numpy() > 0
    assert loss == pytest.approx(error[objects].mean() + 0.2 * error.mean(), rel=1e-5)


@pytest.mark.parametrize("size", [2, 5])
def test_heads_begin_as_a_convolution(size: int) -> None:
    attention = WindowAttention(18, 9, size).apply(look_at_neighbours)
    weights = attention._bias().softmax(-1)  # (heads, w^2, w^2)
    places = [divmod(p, size) for p in range(size**2)]
    for head in range(9):
        up, left = head // 3 - 1, head % 3 - 1
        for query, (y, x) in enumerate(places):
            seen = (y - up, x - left)
            if seen in places:
                assert int(weights[head, query].argmax()) == places.index(seen)
                assert weights[head, query].max() > 0.9


def test_linear_layers_of_narrow_blocks_begin_at_full_strength() -> None:
    torch.manual_seed(0)
    network = nn.ModuleList([SwinBlock(32, 2, 4, 0), PatchMerging(32), nn.Linear(32, 32)])
    other = network[2].weight.clone()
    network.apply(look_at_neighbours)
    x = torch.randn(1000, 32)
    assert (network[0].mlp.fc1(x).std() / x.std()).item() == pytest.approx(0.8, abs=0.1)
    assert network[1].reduction(torch.randn(1000, 128)).std().item() == pytest.approx(0.8, abs=0.1)
    assert torch.equal(network[2].weight, other)  # no part of Swin's


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_categories_and_trains_on(
    family: str, shapes: Path, tmp_path: Path
) -> None:
    preset = f"{family}-tiny"
    make_shapes(tmp_path / "one", train=1, val=0, testA=0, testB=0)  # the same picture in each step
    losses = []
    common = {"dataset": "shapes", "preset": preset, "batch": 1, "seed": 1}
    options = PretrainOptions(tmp_path / "one", tmp_path / "a", steps=8, lr=1e-3, **common)
    report = pretrain(
        options, progress=lambda text, *_: losses.append(float(text.split()[1].rstrip(",")))
    )
    assert len(losses) == report["steps"] == 8
    assert losses[-1] < losses[0] and math.isfinite(report["loss"])
    model = load_model(report["checkpoint"])
    torch.manual_seed(1)
    fresh, learnt = find_family(family).network(model.config).state_dict(), model.state_dict()
    moved = {name for name, value in fresh.items() if not torch.equal(value, learnt[name])}
    assert any(name.startswith(("backbone.", "visumodel.")) for name in moved)
    assert not any("text" in name for name in moved)
    common["batch"] = 2  # batch norms want more than one value
    train(TrainOptions(shapes, tmp_path / "c", init=report["checkpoint"], steps=1, **common))


def test_the_same_options_give_the_same_weights(shapes: Path, tmp_path: Path) -> None:
    common = {"dataset": "shapes", "preset": "crossvlt-tiny", "batch": 2, "steps": 3}
    runs = [pretrain(PretrainOptions(shapes, tmp_path / n, **common)) for n in "ab"]
    first, second = (load_file(run["checkpoint"]) for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = pretrain(PretrainOptions(shapes, tmp_path / "c", seed=1, **common))
    assert not torch.equal(
        load_file(other["checkpoint"])["classifier.conv1_1.weight"],
        first["classifier.conv1_1.weight"],
    )


def test_mistakes(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="steps is 0: it must be more than 0"):
        PretrainOptions(shapes, tmp_path, steps=0)
    call = ["pretrain", "--data", str(shapes), "--output", str(tmp_path), "--preset"]
    assert main([*call, "crossvlt-small"]) != 0
    assert "crossvlt-tiny" in capsys.readouterr().err
    assert main([*call, "crossvlt-tiny", "--dataset", "shapes", "--split", "valid"]) != 0
    assert "split 'valid' is unknown" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_objects_stand_each_by_itself(shapes: Path) -> None:
    """Together they are the map of categories, but for a pixel of their borders."""
    tokenizer = find_family("instalign").make_tokenizer(
        find_family("instalign").presets["instalign-tiny"]
    )
    source = ObjectDataset(shapes, "gshapes", preprocessing=STRETCHED, tokenizer=tokenizer)
    maps = CategoryDataset(shapes, "gshapes", preprocessing=STRETCHED)
    sentences = {sample.sentence for sample in ReferDataset(shapes, "gshapes", "train")}
    known = {tuple(tokenizer([sentence])[0][0]) for sentence in sentences}
    assert len(source) == len(maps) == 6
    for item, pixels in zip(source, maps, strict=False):
        assert torch.equal(item["image"], pixels["image"])
        count = len(item["categories"])
        assert item["instances"].shape == (count, 64, 96) and count > 1
        drawn = (item["instances"] * item["categories"][:, None, None]).amax(0).long()
        assert (drawn == pixels["categories"]).float().mean() > 0.99
        assert tuple(item["token_ids"].numpy()) in known
        assert item["word_mask"].sum() == (item["token_ids"] != 0).sum()


def test_queries_learn_objects_and_training_goes_on(shapes: Path, tmp_path: Path) -> None:
    common = {"dataset": "gshapes", "preset": "instalign-tiny", "batch": 2}
    start = pretrain(PretrainOptions(shapes, tmp_path / "a", steps=1, **common))
    losses: list[float] = []
    report = pretrain(
        PretrainOptions(
            shapes,
            tmp_path / "b",
            part="queries",
            init=start["checkpoint"],
            steps=12,
            lr=1e-3,
            **common,
        ),
        progress=lambda text, *_: losses.append(float(text.split()[1].rstrip(","))),
    )
    assert losses[-1] < losses[0] and 0 <= report["accuracy"] <= 100
    before, after = (load_file(run["checkpoint"]) for run in (start, report))
    for name in ("query_feat.weight", "mask_embed.layers.2.weight"):
        assert not torch.equal(*(x[f"sem_seg_head.predictor.{name}"] for x in (before, after)))
    name = "backbone.patch_embed.proj.weight"
    assert not torch.equal(before[name], after[name])
    train(TrainOptions(shapes, tmp_path / "c", init=report["checkpoint"], steps=1, **common))


def test_only_what_has_queries_teaches_them(shapes: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"preset": "crossvlt-tiny", "part": "queries"}, "CrossVLT has no queries"),
        ({"part": "heads"}, "part is 'heads': choose one of backbone, queries"),
    ):
        with pytest.raises(InputError, match=words):
            pretrain(PretrainOptions(shapes, tmp_path, dataset="gshapes", **changes))
    made = pretrain(
        PretrainOptions(
            shapes, tmp_path, preset="crossvlt-tiny", steps=1, batch=2, dataset="shapes"
        )
    )
    with pytest.raises(
        InputError, match="holds a CrossVLT, the preset instalign-tiny is a InstAlign"
    ):
        pretrain(
            PretrainOptions(
                shapes,
                tmp_path / "x",
                preset="instalign-tiny",
                init=made["checkpoint"],
                dataset="shapes",
            )
        )
