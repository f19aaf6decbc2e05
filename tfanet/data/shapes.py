"""A synthetic referring dataset in the REFER layout, read by the same reader as real data."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import numpy as np

from tfanet.data.draw import draw_scene
from tfanet.data.scene import SHAPES, Scene, Thing, make_scene
from tfanet.data.sentences import describe
from tfanet.errors import InputError
from tfanet.progress import Progress

__all__ = ["make_shapes"]

_SPLITS = ("train", "val", "testA", "testB")
_SENTENCES_PER_REF = 3
_REFS_PER_PICTURE = 3


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


def _described(rng: np.random.Generator) -> tuple[Scene, list[tuple[int, list[str]]]]:
    """A scene with at least two things that sentences can single out, and those sentences."""
    while True:
        scene = make_scene(rng)
        refs = []
        for index in rng.permutation(len(scene.things)):
            sentences = describe(scene, scene.things[index], _SENTENCES_PER_REF, rng)
            if sentences:
                refs.append((int(index), sentences))
            if len(refs) == _REFS_PER_PICTURE:
                break
        if len(refs) >= 2:
            return scene, refs


def make_shapes(
    output: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    testA: int = 100,
    testB: int = 100,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Write the dataset `shapes` (split by "unc") under `output`.

    `train`, `val`, `testA` and `testB` are numbers of pictures. A picture depends on the seed, its
    split and its index alone, so a split's first pictures stay the same whatever the numbers are.
    Returns {split: {"images", "refs", "sentences"}}.

    Raises InputError where a number is negative, all are zero, or the dataset is there already
    and `overwrite` is off.
    """
    counts = dict(zip(_SPLITS, (train, val, testA, testB), strict=True))
    for split, count in counts.items():
        if count < 0:
            raise InputError(f"{split} is {count}: give a number of pictures, 0 or more")
    if not any(counts.values()):
        raise InputError("all splits are 0 pictures: ask for at least one picture")
    if seed < 0:
        raise InputError(f"seed is {seed}: give a whole number, 0 or more")
    root = Path(output)
    folder, pictures = root / "shapes", root / "images" / "train2014"
    known = [folder / name for name in ("instances.json", "refs(unc).p")]
    if any(path.exists() for path in known) and not overwrite:
        raise InputError(
            f"{folder} holds a dataset already: choose another folder or pass overwrite"
        )
    try:
        for path in known:  # not the folder: whatever else is in it is not ours
            path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}") from error

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
            scene, described = _described(rng)
            image_id = len(images) + 1
            name = f"COCO_train2014_{split}_{index:06d}.jpg"
            quality = int(rng.integers(82, 97))
            draw_scene(scene, rng).save(pictures / name, quality=quality)
            images.append(
                {"id": image_id, "file_name": name, "height": scene.height, "width": scene.width}
            )
            first = len(annotations) + 1
            for offset, thing in enumerate(scene.things):
                annotations.append(_annotation(thing, first + offset, image_id))
            for thing_index, sentences in described:
                ids = list(range(sentence_count, sentence_count + len(sentences)))
                sentence_count += len(sentences)
                ann_id = first + thing_index
                refs.append(
                    {
                        "ref_id": len(refs),
                        "ann_id": ann_id,
                        "image_id": image_id,
                        # The published files carry this suffix too: it is not the picture's name.
                        "file_name": name.replace(".jpg", f"_{ann_id}.jpg"),
                        "category_id": annotations[ann_id - 1]["category_id"],
                        "split": split,
                        "sent_ids": ids,
                        "sentences": [
                            {"sent_id": i, "raw": s, "sent": s, "tokens": s.split()}
                            for i, s in zip(ids, sentences, strict=True)
                        ],
                    }
                )
            done += 1
            if progress is not None:
                progress(f"drawing {split}", done, total)
        summary[split] = {
            "images": count,
            "refs": len(refs) - before[0],
            "sentences": sentence_count - before[1],
        }
    categories = [{"id": n, "name": shape} for n, shape in enumerate(SHAPES, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(document, separators=(",", ":")))
    return summary
