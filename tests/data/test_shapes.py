"""The synthetic dataset: format, determinism, and every sentence understood by another reader."""

from __future__ import annotations

import hashlib
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from understanding import understood

from tfanet.data import DataError, ReferDataset, check, make_shapes
from tfanet.data.draw import draw_scene
from tfanet.data.scene import COLOURS, SHAPES, Thing, make_scene
from tfanet.data.sentences import describe
from tfanet.errors import InputError


def test_every_sentence_fits_its_target_alone() -> None:
    seen: dict[str, int] = {}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng)
        for target in scene.things:
            for sentence in describe(scene, target, 4, rng):
                assert understood(sentence, scene) is target, (sentence, scene)
                kind = "of" if " the " in sentence[3:] else "plain"
                seen[kind] = seen.get(kind, 0) + 1
    assert min(seen["of"], seen["plain"]) > 300


def test_language_is_needed_and_things_stay_apart() -> None:
    alike = 0
    for seed in range(200):
        scene = make_scene(np.random.default_rng(seed))
        assert 2 <= len(scene.things) <= 4
        for n, a in enumerate(scene.things):
            corners = a.outline()
            assert corners.min() >= 0
            assert (corners <= (scene.width, scene.height)).all()
            for b in scene.things[n + 1 :]:
                assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
                alike += a.shape == b.shape or a.colour == b.colour
    assert alike > 200


def test_shapes_have_the_areas_of_geometry() -> None:
    expected = {
        "circle": math.pi,
        "square": 2.0,
        "triangle": 3 * math.sqrt(3) / 4,
        "star": 10 * 0.5 * 0.46 * math.sin(math.pi / 5),
        # Two bars, 2 * 0.36 wide and 2 * sqrt(1 - 0.36^2) long, less the square they share.
        "cross": 2 * (0.72 * 2 * math.sqrt(1 - 0.36**2)) - 0.72**2,
    }
    for shape in SHAPES:
        x, y = Thing(shape, "red", "small", 50, 60, 10, 0.3).outline().T
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        assert area == pytest.approx(100 * expected[shape], rel=0.01)


def test_masks_cover_what_is_drawn() -> None:
    """Inside a mask, away from its edge, colours stand off the background outside it."""
    from tfanet.data.masks import segmentation_mask

    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng)
        pixels = np.asarray(draw_scene(scene, rng), dtype=float)
        masks = [
            segmentation_mask([t.outline().ravel().tolist()], scene.height, scene.width, 1)
            for t in scene.things
        ]
        outside = pixels[~np.any(masks, axis=0)].mean(0)
        for thing, mask in zip(scene.things, masks, strict=True):
            inside = pixels[mask].mean(0)
            assert np.linalg.norm(inside - outside) > 25
            anchors = np.array(COLOURS[thing.colour])
            assert np.linalg.norm(anchors - inside, axis=1).min() < 110


def test_written_dataset_reads_back(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    summary = make_shapes(
        tmp_path, train=4, val=3, testA=2, testB=1, progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == ("drawing testB", 10, 10)
    report = check(tmp_path)
    assert report["dataset"] == "shapes"
    assert report["warnings"] == []
    assert report["pictures"] == 10
    for split, images in (("train", 4), ("val", 3), ("testA", 2), ("testB", 1)):
        data = ReferDataset(tmp_path, split=split)
        assert summary[split] == {
            "images": images,
            "refs": len(data.refs),
            "sentences": len(data),
        }
        assert len({ref.image_path for ref in data.refs}) == images
        with Image.open(data[0].image_path) as picture:
            assert (picture.height, picture.width) == data[0].mask.shape
            assert picture.mode == "RGB"
    raw = (tmp_path / "shapes" / "refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"
    entry = pickle.loads(raw)[0]
    assert set(entry) == {
        "ref_id",
        "ann_id",
        "image_id",
        "file_name",
        "category_id",
        "split",
        "sent_ids",
        "sentences",
    }
    assert set(entry["sentences"][0]) == {"sent_id", "raw", "sent", "tokens"}


def test_same_seed_same_bytes_and_splits_do_not_depend_on_counts(tmp_path: Path) -> None:
    make_shapes(tmp_path / "a", train=3, val=3, testA=0, testB=0, seed=5)
    make_shapes(tmp_path / "b", train=3, val=3, testA=0, testB=0, seed=5)
    make_shapes(tmp_path / "c", train=0, val=5, testA=0, testB=0, seed=5)
    make_shapes(tmp_path / "d", train=3, val=3, testA=0, testB=0, seed=6)

    def pictures(name: str, prefix: str) -> list[bytes]:
        folder = tmp_path / name / "images" / "train2014"
        return [f.read_bytes() for f in sorted(folder.glob(f"*_{prefix}_*"))]

    def sentences(name: str) -> list[str]:
        return [s.sentence for s in ReferDataset(tmp_path / name, split="val")]

    files = [f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 8
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert pictures("a", "val") == pictures("c", "val")[:3]
    assert sentences("a") == sentences("c")[: len(sentences("a"))]
    assert pictures("a", "val") != pictures("a", "train")
    assert pictures("a", "val") != pictures("d", "val")


def test_the_data_that_the_shipped_weights_learnt_from_stay_as_they_are(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=12, val=4, testA=2, testB=2, seed=3)
    digests = {
        name: hashlib.sha256((tmp_path / "shapes" / name).read_bytes()).hexdigest()[:16]
        for name in ("refs(unc).p", "instances.json")
    }
    assert digests == {"refs(unc).p": "0cc4d01ad72b56c0", "instances.json": "4e282734e9d31a88"}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train is -1"):
        make_shapes(tmp_path, train=-1)
    with pytest.raises(InputError, match="all splits are 0"):
        make_shapes(tmp_path, train=0, val=0, testA=0, testB=0)
    with pytest.raises(InputError, match="seed is -3"):
        make_shapes(tmp_path, seed=-3)
    make_shapes(tmp_path / "x", train=1, val=0, testA=0, testB=0)
    with pytest.raises(InputError, match="holds a dataset: name another folder, or give --ov"):
        make_shapes(tmp_path / "x", train=1)
    make_shapes(tmp_path / "x", train=2, val=0, testA=0, testB=0, overwrite=True)
    assert len(ReferDataset(tmp_path / "x", split="train").refs) >= 4
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a directory: name another place"):
        make_shapes(tmp_path / "file" / "deeper", train=1)
    with pytest.raises(DataError, match="no entry in the split 'val'"):
        ReferDataset(tmp_path / "x", split="val")
