"""Reader of the REFER layout: RefCOCO, RefCOCO+, G-Ref (umd, google), gRefCOCO, both shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.data.masks import segmentation_mask
from tfanet.data.safe_pickle import DataError, load_pickle, read_bytes
from tfanet.errors import shown, suggestion
from tfanet.runtime.picture import MAX_PIXELS, MAX_SIDE

__all__ = ["DATASETS", "NO_TARGET", "Layout", "Ref", "ReferDataset", "Sample"]

_UNC = ("train", "val", "testA", "testB")
NO_TARGET = -1


@dataclass(frozen=True)
class Layout:
    """One dataset.

    Attributes:
        files: for each way of splitting it, names that its file may have: the first that is there.
        splits: of each way. generalised: sentences may mean several things, or none.
    """

    files: dict[str, tuple[str, ...]]
    splits: dict[str, tuple[str, ...]]
    generalised: bool = False

    @property
    def default(self) -> str:
        return next(iter(self.files))


DATASETS: dict[str, Layout] = {
    "refcoco": Layout(
        {"unc": ("refs(unc).p",), "google": ("refs(google).p",)},
        {"unc": _UNC, "google": ("train", "val", "test")},
    ),
    "refcoco+": Layout({"unc": ("refs(unc).p",)}, {"unc": _UNC}),
    "refcocog": Layout(
        {"umd": ("refs(umd).p",), "google": ("refs(google).p",)},
        {"umd": ("train", "val", "test"), "google": ("train", "val")},
    ),
    "grefcoco": Layout({"unc": ("grefs(unc).p", "grefs(unc).json")}, {"unc": _UNC}, True),
    "shapes": Layout({"unc": ("refs(unc).p",)}, {"unc": _UNC}),
    "gshapes": Layout({"unc": ("grefs(unc).json",)}, {"unc": _UNC}, True),
}
_PICTURE_FOLDERS = ("images/train2014", "images/mscoco/images/train2014")


@dataclass(frozen=True)
class Ref:
    """One referred object (several, or none, in generalised data) and all sentences for it.

    `no_target` says that the sentences name nothing in the picture. Without it, `annotations` may
    still be empty in gRefCOCO: where all that is listed are crowd regions, which are never masked.
    """

    ref_id: int
    split: str
    image_path: Path
    height: int
    width: int
    annotations: tuple[tuple[int, Any], ...]
    sentences: tuple[str, ...]
    sent_ids: tuple[int, ...]
    no_target: bool = False

    def masks(self) -> np.ndarray:
        """Boolean (n, height, width) of n annotations. Raises DataError naming a bad one."""
        masks = np.zeros((len(self.annotations), self.height, self.width), dtype=bool)
        for mask, (ann_id, segmentation) in zip(masks, self.annotations, strict=True):
            mask[:] = segmentation_mask(segmentation, self.height, self.width, ann_id)
        return masks

    def mask(self) -> np.ndarray:
        """Boolean (height, width): union of the annotations. Raises DataError naming a bad one."""
        return np.asarray(self.masks().any(axis=0))


@dataclass(frozen=True)
class Sample:
    """One (ref, sentence) pair, the unit of evaluation."""

    ref: Ref
    sentence: str

    @property
    def image_path(self) -> Path:
        return self.ref.image_path

    @property
    def mask(self) -> np.ndarray:
        """Boolean (height, width) at the picture's own size."""
        return self.ref.mask()


def _text(value: Any) -> Any:
    """Python 2 bytes, read as latin-1, back to the UTF-8 that they were."""
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if isinstance(value, str):
        try:
            return value.encode("latin1").decode("utf-8")
        except UnicodeError:
            return value
    return value


def field(entry: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {type(entry).__name__}, expected a dict")
    if key not in entry:
        raise DataError(f"{where} lacks the key {key!r}: it is not in the REFER format")
    value = _text(entry[key])
    huge = isinstance(value, int) and abs(value) >= 2**63
    if not isinstance(value, kinds) or isinstance(value, bool) or huge:
        raise DataError(f"{where}: {key} is {shown(value)}, which has the wrong type or size")
    return value


def _by_id(document: Any, key: str, path: Path) -> dict[int, dict[str, Any]]:
    entries = field(document, key, list, str(path))
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        number = field(entry, "id", int, f"{path}: {key}[{index}]")
        if number in found:
            raise DataError(f"{path}: two {key} have the id {number}")
        found[number] = entry
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): copy or download it again") from error


def find_layout(root: Path, dataset: str | None, split_by: str | None) -> tuple[str, str]:
    """(dataset, split_by), found in the folder where not given. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the one that holds refcoco, shapes, ...")
    if dataset is None:
        there = [name for name in DATASETS if (root / name).is_dir()]
        if len(there) != 1:
            raise DataError(f"{root} holds {there or 'no dataset'}: name one of {list(DATASETS)}")
        dataset = there[0]
    if dataset not in DATASETS:
        like = suggestion(dataset, DATASETS)
        raise DataError(f"dataset {dataset!r} is unknown: choose one of {list(DATASETS)}{like}")
    layout = DATASETS[dataset]
    split_by = split_by or layout.default
    if split_by not in layout.files:
        raise DataError(f"{dataset} is not split by {split_by!r}: choose from {list(layout.files)}")
    return dataset, split_by


def find_pictures(root: Path, images: str | Path | None) -> Path:
    """The picture folder: `images` where given, else one of the two usual places."""
    folders = [Path(images)] if images else [root / place for place in _PICTURE_FOLDERS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(
        f"no picture folder at {' or '.join(map(str, folders))}: pass its path as images"
    )


class ReferFiles:
    """The files of one dataset, read and indexed; `make_ref` checks one entry at a time."""

    def __init__(
        self, root: Path, dataset: str | None, split_by: str | None, images: str | Path | None
    ) -> None:
        self.dataset, self.split_by = find_layout(root, dataset, split_by)
        layout = DATASETS[self.dataset]
        self.splits, self.generalised = layout.splits[self.split_by], layout.generalised
        self.path = _first(root / self.dataset, layout.files[self.split_by])
        self.entries: list[Any] = (
            _read_json(self.path) if self.path.suffix == ".json" else load_pickle(self.path)
        )
        if not isinstance(self.entries, list):
            raise DataError(f"{self.path} holds {type(self.entries).__name__}, expected a list")
        self.instances_path = root / self.dataset / "instances.json"
        document = _read_json(self.instances_path)
        self.images = _by_id(document, "images", self.instances_path)
        self.annotations = _by_id(document, "annotations", self.instances_path)
        self.pictures = find_pictures(root, images)

    def members(self, split: str) -> tuple[str, ...]:
        """The splits that a name stands for: "test" is testA and testB where there is no other.

        Raises DataError where the dataset has none of that name.
        """
        parts = tuple(s for s in self.splits if s == split or (split == "test" and split in s))
        if not parts:
            raise DataError(
                f"split {split!r} is unknown for {self.dataset} ({self.split_by}): "
                f"choose from {list(self.splits)}{suggestion(split, self.splits)}"
            )
        return parts

    def refs(self, split: str) -> list[Ref]:
        """The refs of a split that have sentences; REFER's loaders give no sample of others."""
        parts = self.members(split)
        chosen = (n for n in range(len(self.entries)) if self.split_of(n) in parts)
        return [ref for ref in map(self.make_ref, chosen) if ref.sentences]

    def split_of(self, index: int) -> str:
        where = f"{self.path}: entry {index}"
        split = str(field(self.entries[index], "split", str, where))
        if split not in self.splits:
            raise DataError(f"{where}: split {shown(split)} is not one of {list(self.splits)}")
        return split

    def make_ref(self, index: int) -> Ref:
        """Entry `index` as a Ref. Raises DataError naming the entry and the fault."""
        entry, where = self.entries[index], f"{self.path}: entry {index}"
        ref_id = field(entry, "ref_id", int, where)
        where = f"{self.path}: ref {ref_id}"
        image_id = field(entry, "image_id", int, where)
        image = self.images.get(image_id)
        if image is None:
            raise DataError(f"{where}: image_id {image_id} is not in {self.instances_path.name}")
        here = f"{self.instances_path}: image {image_id}"
        height, width = (field(image, key, int, here) for key in ("height", "width"))
        if height < 1 or width < 1:
            raise DataError(f"{here} has size {width}x{height}: both must be 1 or more")
        if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
            raise DataError(
                f"{here} has size {width}x{height}: a picture may have {MAX_SIDE:,} pixels a side "
                f"and {MAX_PIXELS:,} in all"
            )
        name = field(image, "file_name", str, here)
        if not _is_file_name(name):
            raise DataError(f"{here}: file_name {shown(name)} must be a name without folders")
        ann_ids = field(entry, "ann_id", (int, list), where)
        listed = ann_ids if isinstance(ann_ids, list) else [ann_ids]
        sentences = field(entry, "sentences", list, where)
        texts = [_sentence(sentence, where) for sentence in sentences]
        return Ref(
            ref_id=ref_id,
            split=self.split_of(index),
            image_path=self.pictures / name,
            height=height,
            width=width,
            annotations=tuple(self._targets(listed, image_id, where)),
            sentences=tuple(text for text, _ in texts),
            sent_ids=tuple(sent_id for _, sent_id in texts),
            no_target=self.generalised and set(listed) == {NO_TARGET},
        )

    def _targets(self, listed: list[Any], image_id: int, where: str) -> Iterable[tuple[int, Any]]:
        if not listed:
            raise DataError(f"{where} lists no ann_id: no target is written [-1]")
        for ann_id in listed:
            if self.generalised and ann_id == NO_TARGET:
                continue
            annotation = self.annotations.get(ann_id) if isinstance(ann_id, int) else None
            if annotation is None:
                raise DataError(
                    f"{where}: ann_id {shown(ann_id)} is not in {self.instances_path.name}"
                )
            here = f"{self.instances_path}: annotation {ann_id}"
            owner = field(annotation, "image_id", int, here)
            if owner != image_id:
                raise DataError(
                    f"{where}: ann_id {ann_id} belongs to image {owner}, not {image_id}"
                )
            # gRefCOCO lists regions of crowds beside the targets, and its authors skip them. In
            # the other datasets the one annotation is the target, whatever its kind.
            if not (self.generalised and annotation.get("iscrowd")):
                yield ann_id, field(annotation, "segmentation", (list, dict), here)


def _first(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that is there, or the last name."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])


def _is_file_name(name: str) -> bool:
    """Whether it names a file in a folder, and nothing elsewhere."""
    try:
        short = 0 < len(os.fsencode(name)) < 256
    except UnicodeError:
        return False
    return short and Path(name).name == name and name != ".." and "\0" not in name


def _sentence(entry: Any, where: str) -> tuple[str, int]:
    text = field(
        entry, "sent" if isinstance(entry, dict) and "sent" in entry else "raw", str, where
    )
    if not text.strip():
        raise DataError(f"{where} has an empty sentence")
    return text, field(entry, "sent_id", int, where)


class ReferDataset(Sequence[Sample]):
    """All (ref, sentence) pairs of one split; `refs` lists the refs themselves.

    `dataset` is one of `DATASETS` (found by itself where `root` holds one only), `split_by` one of
    its splits' names (G-Ref: "umd", the default, or "google"; RefCOCO: "unc", the default, or
    "google"), `images` the picture folder where it is not at a usual place; `generalised` says
    that sentences may mean several things or none. Refs without sentences are left out. Raises
    DataError on every missing or malformed file.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str | None = None,
        split: str = "val",
        *,
        split_by: str | None = None,
        images: str | Path | None = None,
    ) -> None:
        files = ReferFiles(Path(root), dataset, split_by, images)
        self.dataset, self.split, self.split_by = files.dataset, split, files.split_by
        self.generalised = files.generalised
        self.refs = files.refs(split)
        if not self.refs:
            raise DataError(f"{files.path} has no entry in the split {split!r}")
        self._pairs = [(r, s) for r, ref in enumerate(self.refs) for s in range(len(ref.sentences))]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        ref, sentence = self._pairs[index]
        return Sample(self.refs[ref], self.refs[ref].sentences[sentence])
