"""A stratified, seeded subset of a REFER split, streamed one picture at a time."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.data.refer import Ref, ReferFiles
from tfanet.errors import InputError
from tfanet.runtime.bundle.read import Bundle
from tfanet.runtime.picture import MAX_PIXELS, load_image
from tfanet.runtime.preprocess import picture_to_tensor
from tfanet.runtime.tokenizer import tokenizer_of

__all__ = ["FEW", "CalibrationSet", "Item", "choose", "warn_if_small"]

FEW = 32  # ranges from fewer pictures miss too much of what others show
PARTS = 3  # small, middle and large objects; short, middle and long sentences


@dataclass(frozen=True)
class Item:
    """One picture with one sentence, and its stratum (size, length, category)."""

    ref: Ref
    sentence: str
    sent_id: int
    stratum: tuple[int, int, int]


@dataclass(frozen=True)
class CalibrationSet:
    """The chosen items in a fixed order, and what is needed to choose them again."""

    items: tuple[Item, ...]
    dataset: str
    split_by: str
    split: str
    seed: int

    def facts(self) -> dict[str, Any]:
        """Plain JSON: where the items are from, their sentence ids, and a fingerprint of both."""
        ids = [item.sent_id for item in self.items]
        names = [item.ref.image_path.name for item in self.items]
        described = repr((self.dataset, self.split, ids, names, [i.sentence for i in self.items]))
        return {
            "dataset": self.dataset,
            "split_by": self.split_by,
            "split": self.split,
            "seed": self.seed,
            "count": len(ids),
            "sent_ids": ids,
            "fingerprint": hashlib.sha256(described.encode()).hexdigest(),
        }

    def tensors(self, bundle: Bundle) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Image (1, 3, H, W) float32, token ids (1, L) int64 and word mask (1, L) float32 of each.

        They are prepared as the runtime prepares them, and none is kept.
        """
        facts = bundle.manifest.preprocessing
        tokenizer = tokenizer_of(bundle)
        for item in self.items:
            image = picture_to_tensor(load_image(item.ref.image_path), facts)
            yield np.ascontiguousarray(image[None]), *tokenizer([item.sentence])


def choose(
    data: str | Path,
    dataset: str | None = None,
    split: str = "train",
    *,
    count: int = 128,
    seed: int = 0,
    split_by: str | None = None,
    images: str | Path | None = None,
    sent_ids: Sequence[int] | None = None,
) -> CalibrationSet:
    """Choose items in proportion to their strata, each of another picture where there are enough.

    Strata are the object's size (thirds), the sentence's length (thirds) and the category. The
    same seed and data give the same items.

    Args:
        data: the folder that holds refcoco, shapes, ... count: items to take. sent_ids: take
            exactly these sentences instead, as a saved calibration recorded them.

    Raises:
        InputError: for a bad count, an empty split, or an id that the split does not hold.
        DataError: for a missing or malformed file.
    """
    if count < 1:
        raise InputError(f"count is {count}: give the number of calibration pictures, 1 or more")
    files = ReferFiles(Path(data), dataset, split_by, images)
    items = _items(files.refs(split), files)
    if not items:
        raise InputError(f"{files.path} has nothing to calibrate with in the split {split!r}")
    chosen = _by_id(items, sent_ids, split) if sent_ids is not None else _draw(items, count, seed)
    return CalibrationSet(tuple(chosen), files.dataset, files.split_by, split, seed)


def warn_if_small(chosen: CalibrationSet, count: int) -> None:
    """Warn where a set holds fewer pictures than `count`, or than ranges need."""
    pictures = len({item.ref.image_path for item in chosen.items})
    if pictures < max(FEW, count):
        warnings.warn(
            f"the calibration set has {pictures} pictures, {count} were asked for and at least "
            f"{FEW} are advised: ranges may miss what more pictures would show",
            stacklevel=3,
        )


def _items(refs: list[Ref], files: ReferFiles) -> list[Item]:
    """Every sentence of every ref, with its stratum."""
    pairs = [(ref, *pair) for ref in refs for pair in zip(ref.sentences, ref.sent_ids, strict=True)]
    areas = _thirds([_area(ref, files) for ref, _, _ in pairs])
    lengths = _thirds([len(sentence.split()) for _, sentence, _ in pairs])
    return [
        Item(ref, sentence, sent_id, (area, length, _category(ref, files)))
        for (ref, sentence, sent_id), area, length in zip(pairs, areas, lengths, strict=True)
    ]


def _area(ref: Ref, files: ReferFiles) -> float:
    """Share of the picture that the target's box covers; boxes are cheaper than masks."""
    area = 0.0
    for ann_id, _ in ref.annotations:
        box = files.annotations[ann_id].get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(map(_is_side, box)):
            area += float(box[2]) * float(box[3])
    return area / (ref.height * ref.width)


def _is_side(value: object) -> bool:
    """Whether it is a number that a box in a picture may hold."""
    return isinstance(value, int | float) and abs(value) <= MAX_PIXELS


def _category(ref: Ref, files: ReferFiles) -> int:
    if not ref.annotations:
        return -1
    category = files.annotations[ref.annotations[0][0]].get("category_id")
    return category if isinstance(category, int) else -1


def _thirds(values: Sequence[float]) -> list[int]:
    """0, 1 or 2 by rank; equal values are in one part."""
    if not values:
        return []
    edges = np.quantile(values, np.arange(1, PARTS) / PARTS)
    return [int(part) for part in np.searchsorted(edges, values, side="left")]


def _draw(items: list[Item], count: int, seed: int) -> list[Item]:
    """Evenly spaced places of a list sorted by stratum: each gets its share, rounded."""
    rng = np.random.default_rng(seed)
    shuffled = [items[n] for n in rng.permutation(len(items))]
    pictures = {item.ref.image_path.name: item for item in shuffled}
    pool = list(pictures.values()) if len(pictures) >= count else shuffled
    pool.sort(key=lambda item: item.stratum)  # stable: at random within a stratum
    taken = min(count, len(pool))
    start = rng.random()
    places = ((np.arange(taken) + start) * len(pool) / taken).astype(int)
    return [pool[place] for place in places]


def _by_id(items: list[Item], sent_ids: Sequence[int], split: str) -> list[Item]:
    known = {item.sent_id: item for item in items}
    missing = [sent_id for sent_id in sent_ids if sent_id not in known]
    if missing:
        raise InputError(
            f"the split {split!r} lacks {len(missing)} of {len(sent_ids)} sentence ids of the "
            f"calibration, the first is {missing[0]}: give the data that it was made with"
        )
    if not sent_ids:
        raise InputError("the list of sentence ids is empty: a calibration needs pictures")
    return [known[sent_id] for sent_id in sent_ids]
