"""Synthetic referring datasets in the REFER layout, read by the same reader as real data."""

from __future__ import annotations

import glob
import json
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np

from tfanet.data.draw import draw_scene
from tfanet.data.generalised import SHARES, Meaning, meanings
from tfanet.data.refer import NO_TARGET
from tfanet.data.scene import MANY, SHAPES, Scene, Thing, make_scene
from tfanet.data.sentences import describe
from tfanet.errors import InputError
from tfanet.files import move
from tfanet.progress import Progress
from tfanet.runtime.bundle.leftovers import abandoned
from tfanet.runtime.bundle.write import check_folder, new_folder

__all__ = ["make_shapes"]

NAMES = ("shapes", "gshapes")
PICTURES = Path("images") / "train2014"
_SPLITS = ("train", "val", "testA", "testB")
_SENTENCES_PER_REF = 3
_REFS_PER_PICTURE = 3
_GENERAL_REFS = 4  # per picture


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _annotation(thing: Thing, ann_id: int, image_id: int) -> dict[str, object]:
    outline = np.round(thing.outline(), 2)
    low, high = outline.min(0), outline.max(0)
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": SHAPES.index(thing.shape) + 1,
        "segmentation": [outline.ravel().tolist()],
        "area": round(_area(outline), 2),
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "iscrowd": 0,
    }


def _described(rng: np.random.Generator) -> tuple[Scene, list[Meaning]]:
    """A scene with at least two things that sentences can single out, and those sentences."""
    while True:
        scene = make_scene(rng)
        refs: list[Meaning] = []
        for index in rng.permutation(len(scene.things)):
            sentences = describe(scene, scene.things[index], _SENTENCES_PER_REF, rng)
            if sentences:
                refs.append(((int(index),), sentences))
            if len(refs) == _REFS_PER_PICTURE:
                break
        if len(refs) >= 2:
            return scene, refs


def _described_generally(rng: np.random.Generator) -> tuple[Scene, list[Meaning]]:
    """A scene, and sentences that mean one thing, several or none, of kinds drawn by `SHARES`."""
    # Kinds are drawn once: a scene that lacks one must not make it rarer.
    kinds = [
        str(kind) for kind in rng.choice(list(SHARES), size=_GENERAL_REFS, p=list(SHARES.values()))
    ]
    while True:
        scene = make_scene(rng, MANY)
        refs = meanings(scene, kinds, rng)
        if refs is not None:
            return scene, refs


def make_shapes(
    output: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    testA: int = 100,
    testB: int = 100,
    seed: int = 0,
    generalised: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Write the dataset `shapes` (split by "unc") under `output`.

    With `generalised` it is `gshapes`, in gRefCOCO's format: of its sentences about 45 % mean one
    thing, 35 % several ("both red circles") and 20 % none (a star of a colour that only other
    things have). The two datasets may lie side by side.

    `train`, `val`, `testA` and `testB` are numbers of pictures. A picture depends on the seed, its
    split and its index alone, so a split's first pictures stay the same whatever the numbers are.
    Returns {split: {"images", "refs", "sentences"}}.

    The dataset appears when all of it is drawn; one that was there is replaced then.

    Raises InputError where a number is negative, all are zero, or the dataset is there already
    and `overwrite` is off; StorageError where nothing may be written.
    """
    counts = dict(zip(_SPLITS, (train, val, testA, testB), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise InputError(f"{split} is {count}: give a number of pictures, 0 or more")
    if not any(counts.values()):
        raise InputError("all splits are 0 pictures: ask for at least one picture")
    if seed < 0:
        raise InputError(f"seed is {seed}: give a whole number, 0 or more")
    root = check_folder(output)
    name = NAMES[generalised]
    refs_name = "grefs(unc).json" if generalised else "refs(unc).p"
    files = [Path(name) / file for file in ("instances.json", refs_name)]
    if any((root / file).exists() for file in files) and not overwrite:
        raise InputError(
            f"{root / name} holds a dataset: name another folder, or give --overwrite "
            "(overwrite=True)"
        )
    # Drawn beside its place: what is interrupted leaves nothing, and what was there stays.
    beside = root / name if root.exists() else root
    beside.parent.mkdir(parents=True, exist_ok=True)
    _sweep(beside)
    with new_folder(beside) as work:
        summary = _draw(work, name, refs_name, counts, seed, generalised, progress)
        if root.exists():
            _move_in(work, root, files)
        else:
            work.chmod(0o755)  # mkdtemp makes it private
            work.rename(root)
    return summary


def _sweep(place: Path) -> None:
    """Remove what a killed drawing left beside its place."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.????????.partial"):
        if left.is_symlink() or not {p.name for p in left.iterdir()} <= {*NAMES, PICTURES.parts[0]}:
            continue
        with abandoned(left) as free:
            if free:
                shutil.rmtree(left)


def _move_in(work: Path, root: Path, files: list[Path]) -> None:
    """Pictures first, annotations last: whatever else is in the folder is not ours."""
    for file in files:
        (root / file).unlink(missing_ok=True)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / PICTURES).mkdir(parents=True, exist_ok=True)
    for picture in (work / PICTURES).iterdir():
        picture.replace(root / PICTURES / picture.name)
    for file in reversed(files):
        move(work / file, root / file)


def _draw(
    root: Path,
    name: str,
    refs_name: str,
    counts: dict[str, int],
    seed: int,
    generalised: bool,
    progress: Progress | None,
) -> dict[str, dict[str, int]]:
    """Write the dataset into an empty folder; returns the summary."""
    folder, pictures = root / name, root / PICTURES
    for path in (folder, pictures):
        path.mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    refs: list[dict[str, object]] = []
    sentence_count = 0
    summary: dict[str, dict[str, int]] = {}
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        before = len(refs), sentence_count
        for index in range(count):
            rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
            scene, described = (_described_generally if generalised else _described)(rng)
            image_id = len(images) + 1
            file_name = f"COCO_train2014_{'g' if generalised else ''}{split}_{index:06d}.jpg"
            quality = int(rng.integers(82, 97))
            draw_scene(scene, rng).save(pictures / file_name, quality=quality)
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "height": scene.height,
                    "width": scene.width,
                }
            )
            first = len(annotations) + 1
            for offset, thing in enumerate(scene.things):
                annotations.append(_annotation(thing, first + offset, image_id))
            for targets, sentences in described:
                ids = list(range(sentence_count, sentence_count + len(sentences)))
                sentence_count += len(sentences)
                ref: dict[str, object] = {
                    "ref_id": len(refs),
                    "ann_id": NO_TARGET,
                    "image_id": image_id,
                    "file_name": file_name,
                    "category_id": NO_TARGET,
                    "split": split,
                    "sent_ids": ids,
                    "sentences": [
                        {"sent_id": i, "raw": s, "sent": s, "tokens": s.split()}
                        for i, s in zip(ids, sentences, strict=True)
                    ],
                }
                ann_ids = [first + target for target in targets]
                categories = [annotations[n - 1]["category_id"] for n in ann_ids]
                if generalised:
                    ref["ann_id"] = ann_ids or [NO_TARGET]
                    ref["category_id"] = categories or [NO_TARGET]
                    ref["no_target"] = not targets
                else:
                    (ref["ann_id"],), (ref["category_id"],) = ann_ids, categories
                    # Published files carry this suffix: it is not the picture's name.
                    ref["file_name"] = file_name.replace(".jpg", f"_{ann_ids[0]}.jpg")
                refs.append(ref)
            done += 1
            if progress is not None:
                progress(f"drawing {split}", done, total)
        summary[split] = {
            "images": count,
            "refs": len(refs) - before[0],
            "sentences": sentence_count - before[1],
        }
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": shape} for n, shape in enumerate(SHAPES, start=1)],
    }
    written = json.dumps(refs).encode() if generalised else pickle.dumps(refs, protocol=2)
    (folder / refs_name).write_bytes(written)
    (folder / "instances.json").write_text(json.dumps(document, separators=(",", ":")))
    return summary
