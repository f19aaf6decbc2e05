"""The REFER reader: right answers on a hand-written dataset, one clear line for every fault."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfanet.data import DATASETS, DataError, ReferDataset, check

Files = tuple[list[dict[str, Any]], dict[str, Any]]
Writer = Callable[..., Path]


def test_samples_are_all_pairs_with_right_masks(small: Files, write_refer: Writer) -> None:
    root = write_refer(*small)
    val = ReferDataset(root, "refcoco", "val")
    assert [s.sentence for s in val] == ["thing 1", "that 1", "thing 2", "that 2"]
    assert len(val) == 4
    assert len(val.refs) == 2
    assert val.refs[0].sent_ids == (2, 3)

    # The picture's name is that of instances.json, not the suffixed one of the ref.
    assert val[0].image_path.name == "COCO_train2014_000000000009.jpg"
    two_boxes = np.zeros((40, 60), dtype=bool)
    two_boxes[20:24, 40:44] = two_boxes[20:24, 54:58] = True
    assert (val[0].mask == two_boxes).all()
    runs = np.zeros((20, 10), dtype=bool)
    runs[15:20, 1] = runs[0:5, 2] = True
    assert (val[2].mask == runs).all()

    train = ReferDataset(root, "refcoco", "train")
    box = np.zeros((40, 60), dtype=bool)
    box[5:15, 10:30] = True
    assert (train[0].mask == box).all()
    assert [s.sentence for s in train[0:2]] == ["thing 0", "that 0"]


def test_compressed_rle_equals_uncompressed(small: Files, write_refer: Writer) -> None:
    from pycocotools import mask as coco

    refs, instances = small
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        mask = rng.random((20, 10)) < density
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": [20, 10], "counts": runs["counts"].decode()}
        instances["annotations"][2]["segmentation"] = segmentation
        assert (ReferDataset(write_refer(refs, instances))[2].mask == mask).all()


def test_python_2_text_is_decoded(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    words = refs[0]["sentences"][0]
    words["sent"] = "cafe"
    data = pickle.dumps(refs, protocol=2)
    old = data.replace(b"X\x04\x00\x00\x00cafe", b"U\x05caf\xc3\xa9")
    assert old != data
    (root / "refcoco" / "refs(unc).p").write_bytes(old)
    assert ReferDataset(root, split="train")[0].sentence == "caf\u00e9"


@pytest.mark.parametrize("pictures", ["images/train2014", "images/mscoco/images/train2014"])
def test_both_usual_picture_places(small: Files, write_refer: Writer, pictures: str) -> None:
    root = write_refer(*small, pictures=pictures)
    assert ReferDataset(root)[0].image_path.parent == root / pictures


def test_picture_folder_as_an_option(small: Files, write_refer: Writer, tmp_path: Path) -> None:
    root = write_refer(*small, pictures="elsewhere")
    with pytest.raises(DataError, match="no picture folder"):
        ReferDataset(root)
    assert ReferDataset(root, images=tmp_path / "elsewhere")[0].image_path.is_file()


def test_gref_has_two_ways_of_splitting(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances, "refcocog", "refs(google).p")
    umd = [dict(ref, split="test") for ref in refs]
    write_refer(umd, instances, "refcocog", "refs(umd).p")
    assert len(ReferDataset(root, "refcocog", "test")) == 6
    assert len(ReferDataset(root, "refcocog", "val", split_by="google")) == 4
    with pytest.raises(DataError, match=r"'test' is unknown for refcocog \(google\)"):
        ReferDataset(root, "refcocog", "test", split_by="google")
    with pytest.raises(DataError, match="not split by 'unc'"):
        ReferDataset(root, "refcocog", "val", split_by="unc")


def test_refcoco_has_two_ways_of_splitting(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    write_refer([dict(ref, split="test") for ref in refs], instances, name="refs(google).p")
    assert len(ReferDataset(root, "refcoco", "test", split_by="google")) == 6
    assert len(ReferDataset(root, "refcoco", "val")) == 4
    report = check(root, split_by="google")
    assert report["splits"]["test"]["published_refs"] == 5000
    assert report["splits"]["test"]["published_sentences"] is None
    assert "refcoco val has 0 refs, published are 5,000 (-5,000)" in report["warnings"]
    with pytest.raises(DataError, match=r"'testA' is unknown for refcoco \(google\)"):
        ReferDataset(root, split="testA", split_by="google")


def test_the_split_test_is_all_of_its_parts(small: Files, write_refer: Writer) -> None:
    """As in REFER: "test" is every ref whose split has "test" in its name."""
    refs, instances = small
    for ref, split in zip(refs, ("testA", "val", "testB"), strict=True):
        ref["split"] = split
    data = ReferDataset(write_refer(refs, instances), split="test")
    assert [(ref.ref_id, ref.split) for ref in data.refs] == [(0, "testA"), (2, "testB")]


def test_refs_without_sentences_give_no_sample(small: Files, write_refer: Writer) -> None:
    """gRefCOCO holds some as published; loaders go over sentences, and never see them."""
    refs, instances = small
    refs[1].update(sentences=[], sent_ids=[])
    root = write_refer(refs, instances)
    data = ReferDataset(root)
    assert [ref.ref_id for ref in data.refs] == [2]
    assert [s.sentence for s in data] == ["thing 2", "that 2"]
    report = check(root)
    assert (report["splits"]["val"]["refs"], report["splits"]["val"]["sentences"]) == (1, 2)
    assert report["warnings"][0] == "1 refs have no sentence, and are left out"
    refs[2].update(sentences=[], sent_ids=[])
    with pytest.raises(DataError, match="has no entry in the split 'val'"):
        ReferDataset(write_refer(refs, instances))


def test_crowd_regions_of_grefcoco_are_not_masked(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    crowd = {"size": [40, 60], "counts": [0, 40, 40 * 59]}
    annotation = {"id": 904700010881, "image_id": 9, "iscrowd": 1, "segmentation": crowd}
    instances["annotations"].append(annotation)
    for ref, ann_ids in zip(refs, ([904700010881, 100], [904700010881], [-1]), strict=True):
        ref.update(ann_id=ann_ids, split="val")
    data = ReferDataset(write_refer(refs, instances, "grefcoco", "grefs(unc).json"))
    box = np.zeros((40, 60), dtype=bool)
    box[5:15, 10:30] = True
    assert (data.refs[0].mask() == box).all()
    # A ref of crowds alone is one of a target that no prediction can match.
    assert not data.refs[1].mask().any()
    assert [ref.no_target for ref in data.refs] == [False, False, True]
    # Elsewhere the one annotation is the target, whatever its kind.
    refs[0]["ann_id"], refs[1:] = 904700010881, []
    refcoco = ReferDataset(write_refer(refs, instances), "refcoco").refs[0]
    assert refcoco.mask().sum() == 40 and not refcoco.no_target


def test_grefcoco_prefers_the_pickle(small: Files, write_refer: Writer) -> None:
    """As its authors' loader does, which looks for grefs(unc).p first."""
    refs, instances = small
    for ref in refs:
        ref.update(ann_id=[ref["ann_id"]], split="val")
    root = write_refer(refs[:1], instances, "grefcoco", "grefs(unc).json")
    assert [ref.ref_id for ref in ReferDataset(root).refs] == [0]
    write_refer(refs[1:], instances, "grefcoco", "grefs(unc).p")
    assert [ref.ref_id for ref in ReferDataset(root).refs] == [1, 2]
    (root / "grefcoco" / "grefs(unc).p").unlink()
    (root / "grefcoco" / "grefs(unc).json").unlink()
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json is missing"):
        ReferDataset(root)


def test_grefcoco_unites_targets_and_knows_no_target(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    for ref, ann_ids in zip(refs, ([100, 101], [-1], [102]), strict=True):
        ref.update(ann_id=ann_ids, category_id=[1], split="val", no_target=ann_ids == [-1])
    root = write_refer(refs, instances, "grefcoco", "grefs(unc).json")
    data = ReferDataset(root, "grefcoco", "val")
    assert [ref.no_target for ref in data.refs] == [False, True, False]
    assert data.refs[0].mask().sum() == 20 * 10 + 2 * 16
    assert not data.refs[1].mask().any()
    assert data.refs[1].mask().shape == (40, 60)
    assert check(root)["splits"]["val"]["refs"] == 3


def test_every_published_dataset_has_a_layout() -> None:
    assert set(DATASETS) >= {"refcoco", "refcoco+", "refcocog", "grefcoco", "shapes"}


Mutation = Callable[[list[dict[str, Any]], dict[str, Any]], Any]


def _polygon(*polygons: Any) -> Mutation:
    def change(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
        instances["annotations"][1]["segmentation"] = list(polygons)

    return change


def _rle(**fields: Any) -> Mutation:
    return lambda r, i: i["annotations"][2]["segmentation"].update(fields)


FAULTS: dict[str, tuple[Mutation, str]] = {
    "no ref_id": (lambda r, i: r[1].pop("ref_id"), r"entry 1 lacks the key 'ref_id'"),
    "no image_id": (lambda r, i: r[1].pop("image_id"), r"ref 1 lacks the key 'image_id'"),
    "no ann_id": (lambda r, i: r[1].pop("ann_id"), r"ref 1 lacks the key 'ann_id'"),
    "no split": (lambda r, i: r[1].pop("split"), r"entry 1 lacks the key 'split'"),
    "no sentences": (lambda r, i: r[1].pop("sentences"), r"ref 1 lacks the key 'sentences'"),
    "blank": (lambda r, i: r[1]["sentences"][0].update(sent=" "), r"ref 1 has an empty sentence"),
    "no text": (
        lambda r, i: [r[1]["sentences"][0].pop(k) for k in ("sent", "raw")],
        r"ref 1 lacks the key 'raw'",
    ),
    "text type": (lambda r, i: r[1]["sentences"][0].update(sent=3), r"sent is 3, .* wrong type"),
    "entry type": (lambda r, i: r.__setitem__(1, [1]), r"entry 1 is list, expected a dict"),
    "id type": (lambda r, i: r[1].update(image_id="9"), r"image_id is '9', .* wrong type"),
    "id size": (lambda r, i: r[1].update(image_id=10**5000), r"image_id is a huge int, .* size"),
    "unknown split": (lambda r, i: r[1].update(split="dev"), r"split 'dev' is not one of"),
    "unknown ann": (lambda r, i: r[1].update(ann_id=7), r"ref 1: ann_id 7 is not in instances"),
    "unknown image": (lambda r, i: r[1].update(image_id=8), r"ref 1: image_id 8 is not in"),
    "wrong image": (
        lambda r, i: r[1].update(image_id=25),
        r"ann_id 101 belongs to image 9",
    ),
    "no target": (lambda r, i: r[1].update(ann_id=-1), r"ref 1: ann_id -1 is not in"),
    "empty list": (lambda r, i: r[1].update(ann_id=[]), r"ref 1 lists no ann_id"),
    "no images": (lambda r, i: i.pop("images"), r"instances.json lacks the key 'images'"),
    "no annotations": (lambda r, i: i.pop("annotations"), r"lacks the key 'annotations'"),
    "no image key": (lambda r, i: i["images"][0].pop("height"), r"image 9 lacks the key 'height'"),
    "no file name": (lambda r, i: i["images"][0].pop("file_name"), r"lacks the key 'file_name'"),
    "twice": (lambda r, i: i["images"].append(i["images"][0]), r"two images have the id 9"),
    "no size": (lambda r, i: i["images"][0].update(width=0), r"image 9 has size 0x40"),
    "folder name": (lambda r, i: i["images"][0].update(file_name=".."), r"name without folders"),
    "NUL in name": (lambda r, i: i["images"][0].update(file_name="a\0b"), r"without folders"),
    "half a pair": (lambda r, i: i["images"][0].update(file_name="\ud800"), r"without folders"),
    "long number": (
        _polygon([1, 2, 3, 10**400, 5, 6]),
        r"annotation 101: coordinate 1000.*0000 is",
    ),
    "no segmentation": (
        lambda r, i: i["annotations"][1].pop("segmentation"),
        r"annotation 101 lacks the key 'segmentation'",
    ),
    "two points": (_polygon([1, 1, 9, 9]), r"annotation 101: no polygon has three points"),
    "no polygon": (_polygon(), r"annotation 101: no polygon has three points"),
    "outside": (_polygon([70, 50, 80, 50, 80, 60]), r"annotation 101: its mask is empty"),
    "odd": (_polygon([1, 2, 3, 4, 5, 6, 7]), r"annotation 101: a polygon must be a list of x, y"),
    "not a list": (_polygon({"a": 1}), r"annotation 101: a polygon must be"),
    "word": (_polygon([1, 2, 3, "4", 5, 6]), r"annotation 101: coordinate '4' is not a number"),
    "infinite": (_polygon([1, 2, 3, float("inf"), 5, 6]), r"annotation 101: coordinate inf"),
    "far": (_polygon([1, 2, 3, 1e9, 5, 6]), r"annotation 101: coordinate 1000000000.0"),
    "rle size": (_rle(size=[10, 20]), r"annotation 102: its RLE is for size \[10, 20\]"),
    "rle sum": (_rle(counts=[35, 10, 1550]), r"annotation 102: its RLE covers 1595 pixels of 200"),
    "rle sign": (_rle(counts=[35, -10, 175]), r"annotation 102: its RLE counts"),
    "rle empty": (_rle(counts=[200]), r"annotation 102: its mask is empty"),
    "rle text": (_rle(counts="\x00\x7f"), r"annotation 102: its compressed RLE is damaged"),
    "rle cut": (_rle(counts="P"), r"annotation 102: its compressed RLE is cut short"),
    "rle type": (_rle(counts=None), r"annotation 102: its RLE counts"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_clear_line(name: str, small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    mutate, message = FAULTS[name]
    mutate(refs, instances)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(DataError, match=message) as caught:
        [sample.mask for sample in ReferDataset(root, "refcoco", "val")]
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        check(root)


def test_a_picture_name_cannot_leave_its_folder(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    instances["images"][0]["file_name"] = "../../secret.jpg"
    write = (root / "refcoco" / "instances.json").write_text
    write(json.dumps(instances))
    with pytest.raises(DataError, match="must be a name without folders"):
        ReferDataset(root)


def test_missing_and_damaged_files(small: Files, write_refer: Writer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        ReferDataset(tmp_path / "none")
    with pytest.raises(DataError, match="no dataset"):
        ReferDataset(tmp_path)
    root = write_refer(*small)
    with pytest.raises(DataError, match="dataset 'coco' is unknown"):
        ReferDataset(root, "coco")
    with pytest.raises(DataError, match="split 'dev' is unknown"):
        ReferDataset(root, "refcoco", "dev")
    with pytest.raises(DataError, match="has no entry in the split 'testB'"):
        ReferDataset(root, "refcoco", "testB")
    instances, refs = root / "refcoco" / "instances.json", root / "refcoco" / "refs(unc).p"
    for data, message in ((b"{", "is not JSON"), (b"\xff\xfe\x00", "is not JSON"), (b"[]", "list")):
        instances.write_bytes(data)
        with pytest.raises(DataError, match=message):
            ReferDataset(root)
    instances.write_bytes(b"[" * 100_000)
    with pytest.raises(DataError, match="is not JSON"):
        ReferDataset(root)
    instances.unlink()
    with pytest.raises(DataError, match=r"instances\.json is missing"):
        ReferDataset(root)
    refs.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(DataError, match="holds dict, expected a list"):
        ReferDataset(root)
    refs.unlink()
    with pytest.raises(DataError, match=r"refs\(unc\)\.p is missing"):
        ReferDataset(root)


def test_check_counts_and_warns_with_numbers(small: Files, write_refer: Writer) -> None:
    report = check(write_refer(*small), "refcoco")
    val = report["splits"]["val"]
    assert (val["refs"], val["sentences"]) == (2, 4)
    assert (val["published_refs"], val["published_sentences"]) == (3811, 10834)
    assert report["pictures"] == 2
    assert "refcoco val has 4 sentences, published are 10,834 (-10,830)" in report["warnings"]


def test_pictures_larger_than_any_that_is_read(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    for size in ((60_000, 60_000), (2, 65_536), (10**15, 1)):
        instances["images"][0]["height"], instances["images"][0]["width"] = size
        next(root.glob("*/instances.json")).write_text(json.dumps(instances))
        with pytest.raises(DataError, match=r"image 9 has size .* 65,535 pixels a side"):
            check(root)


def test_check_looks_at_pictures_and_counts_faults(small: Files, write_refer: Writer) -> None:
    refs, instances = small
    root = write_refer(refs, instances)
    pictures = root / "images" / "train2014"
    first, second = sorted(pictures.iterdir())
    Image.new("RGB", (61, 40)).save(first)
    with pytest.raises(DataError, match=r"is 61x40, instances\.json says 60x40"):
        check(root)
    first.write_bytes(b"not a picture")
    second.unlink()
    with pytest.raises(DataError, match=r"is not a picture.*\(and 1 more faults\)") as caught:
        check(root)
    assert "\n" not in str(caught.value)
    refs[1]["ref_id"] = 0
    write_refer(refs, instances)
    with pytest.raises(DataError, match="two entries have the ref_id 0"):
        check(root)
