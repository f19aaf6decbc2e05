"""The generalised dataset: sentences for one thing, several and none, read by another reader."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from understanding import is_name, meant, named

from tfanet.cli import main
from tfanet.data import DataError, ReferDataset, check, make_shapes
from tfanet.data.generalised import SHARES, meanings
from tfanet.data.scene import MANY, Scene, make_scene


def drawn(seed: int, *kinds: str) -> list[tuple[Scene, tuple[int, ...], list[str]]]:
    """(scene, targets, sentences) of a scene that has all of these kinds."""
    rng = np.random.default_rng(seed)
    while True:
        scene = make_scene(rng, MANY)
        found = meanings(scene, kinds, rng)
        if found is not None:
            assert len(found) == len(kinds)
            return [(scene, targets, sentences) for targets, sentences in found]


def test_every_sentence_means_its_targets_and_nothing_else() -> None:
    seen: Counter[str] = Counter()
    for seed in range(150):
        kinds = ("one", "several", "none", "several", "one", "none")
        rows = drawn(seed, *kinds)
        for (scene, targets, sentences), kind in zip(rows, kinds, strict=True):
            assert {"one": 1, "none": 0}.get(kind, len(targets)) == len(targets)
            assert kind != "several" or len(targets) > 1
            for sentence in sentences:
                expected = {scene.things[n] for n in targets}
                assert meant(sentence, scene) == expected, (sentence, scene)
                seen[kind] += 1
        assert len({targets for _, targets, _ in rows if targets}) == 4
    assert min(seen.values()) > 300


def test_every_form_of_sentence_is_there_and_no_target_is_near_a_target() -> None:
    said: list[str] = []
    misses: Counter[str] = Counter()
    for seed in range(150):
        for scene, targets, sentences in drawn(seed, "several", "none", "several", "none"):
            said += sentences
            for sentence in sentences:
                phrase = re.sub("^the ", "", sentence)
                if targets or not is_name(phrase):
                    continue
                *adjectives, noun = phrase.split()
                with_other_shape = adjectives and named(
                    " ".join([*adjectives, "thing"]), scene.things
                )
                with_other_colour = any(
                    named(" ".join([*rest, noun]), scene.things)
                    for n in range(len(adjectives))
                    for rest in [adjectives[:n] + adjectives[n + 1 :]]
                )
                misses["other shape"] += bool(with_other_shape)
                misses["other colour or size"] += with_other_colour
                misses["both"] += bool(with_other_shape) and with_other_colour
    forms = ("^all the ", "^all ", "^every ", "^both ", "^the two ", "^the three ", " and the ")
    forms += ("^everything but ", "^everything except ", "on the left$", "at the bottom$")
    for form in forms:
        assert sum(bool(re.search(form, sentence)) for sentence in said) > 5, form
    assert min(misses.values()) > 100, misses


def test_shares_and_format(tmp_path: Path) -> None:
    summary = make_shapes(tmp_path, train=250, val=3, testA=0, testB=0, generalised=True)
    report = check(tmp_path)
    assert (report["dataset"], report["warnings"], report["pictures"]) == ("gshapes", [], 253)
    data = ReferDataset(tmp_path, split="train")
    assert data.generalised
    assert summary["train"] == {"images": 250, "refs": len(data.refs), "sentences": len(data)}
    kinds = Counter(
        "none" if sample.ref.no_target else "one" if len(sample.ref.annotations) == 1 else "several"
        for sample in data
    )
    for kind, share in SHARES.items():
        assert kinds[kind] / len(data) == pytest.approx(share, abs=0.04), kind
    for ref in data.refs:
        masks = ref.masks()
        assert masks.shape == (len(ref.annotations), ref.height, ref.width)
        assert masks.any((1, 2)).all()
        assert np.array_equal(masks.any(0), ref.mask())
        assert ref.mask().any() != ref.no_target

    entries = json.loads((tmp_path / "gshapes" / "grefs(unc).json").read_text())
    assert {type(entry["ann_id"]) for entry in entries} == {list}
    for entry in entries:
        assert entry["no_target"] == (entry["ann_id"] == [-1])
        assert len(entry["category_id"]) == len(entry["ann_id"])
        assert (tmp_path / "images" / "train2014" / entry["file_name"]).is_file()
        assert set(entry) == {
            "ref_id",
            "ann_id",
            "image_id",
            "file_name",
            "category_id",
            "split",
            "sent_ids",
            "sentences",
            "no_target",
        }


def test_a_picture_depends_on_seed_split_and_index_alone(tmp_path: Path) -> None:
    for name, counts in {"a": (2, 4), "b": (2, 4), "c": (0, 2)}.items():
        train, val = counts
        root = tmp_path / name
        make_shapes(root, train=train, val=val, testA=0, testB=0, seed=7, generalised=True)
    files = [f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*.*") if f.is_file()]
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    few, many = (ReferDataset(tmp_path / name, split="val") for name in ("c", "a"))
    assert [s.sentence for s in few] == [s.sentence for s in many][: len(few)]
    for ref, other in zip(few.refs, many.refs, strict=False):
        assert ref.image_path.read_bytes() == other.image_path.read_bytes()
        assert np.array_equal(ref.mask(), other.mask())


def test_both_datasets_lie_side_by_side(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=1, val=0, testA=0, testB=0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    command = ["data", "make-shapes", "--generalised", "--output", str(tmp_path)]
    assert main([*command, "--train", "1", "--val", "0", "--testA", "0", "--testB", "0"]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not ReferDataset(tmp_path, "shapes", "train").generalised
    assert ReferDataset(tmp_path, "gshapes", "train").generalised
    with pytest.raises(DataError, match="name one of"):
        ReferDataset(tmp_path, split="train")
