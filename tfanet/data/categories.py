"""Pictures with the category of every pixel: all annotated objects, said or not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tfanet.data.masks import mask_to_size, segmentation_mask
from tfanet.data.refer import ReferFiles, field
from tfanet.data.safe_pickle import DataError
from tfanet.runtime.bundle.contract import Preprocessing
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor
from tfanet.runtime.tokenizer import TextTokenizer

__all__ = ["CategoryDataset", "ObjectDataset"]


class CategoryDataset(Dataset[dict[str, Any]]):
    """The pictures of one split of a dataset in the REFER layout; arguments as of `ReferDataset`.

    An item: image (3, H, W) float32 and categories (H, W) int64, 0 where nothing is annotated and
    k on an object of `names[k - 1]`, the ids that instances.json has, in order. Where objects
    overlap, the smaller one is seen. Regions of crowds are left out.

    Raises DataError on every missing or malformed file, and where no object has a category.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str | None = None,
        split: str = "train",
        *,
        preprocessing: Preprocessing,
        split_by: str | None = None,
        images: str | Path | None = None,
    ) -> None:
        files = ReferFiles(Path(root), dataset, split_by, images)
        self.preprocessing = preprocessing
        refs = {ref.image_path.name: ref for ref in files.refs(split)}
        self._pictures = list(refs.values())
        if not self._pictures:
            raise DataError(f"{files.path} has no entry in the split {split!r}")
        numbers = {image.get("file_name"): number for number, image in files.images.items()}
        self._ids = [numbers[name] for name in refs]
        self._objects: dict[int, list[tuple[int, int, Any]]] = defaultdict(list)
        for ann_id, annotation in files.annotations.items():
            if annotation.get("iscrowd"):
                continue
            here = f"{files.instances_path}: annotation {ann_id}"
            category = field(annotation, "category_id", int, here)
            outline = field(annotation, "segmentation", (list, dict), here)
            picture = field(annotation, "image_id", int, here)
            self._objects[picture].append((ann_id, category, outline))
        mine = (thing for number in self._ids for thing in self._objects[number])
        self.names = sorted({category for _, category, _ in mine})
        if not self.names:
            raise DataError(f"{files.instances_path} has no object in pictures of {split!r}")

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seen = np.zeros(self.preprocessing.size, dtype=np.int64)
        for _, category, mask in sorted(self._things(index), key=lambda thing: -thing[0]):
            seen[mask] = category
        return {"image": self._image(index), "categories": torch.from_numpy(seen)}

    def _image(self, index: int) -> torch.Tensor:
        image = load_image(self._pictures[index].image_path)
        return torch.from_numpy(np.ascontiguousarray(picture_to_tensor(image, self.preprocessing)))

    def _things(self, index: int) -> list[tuple[int, int, np.ndarray]]:
        """Of each object its own pixels, k as above, and its mask (H, W) bool at this size."""
        ref = self._pictures[index]
        things = []
        for ann_id, category, outline in self._objects[self._ids[index]]:
            mask = segmentation_mask(outline, ref.height, ref.width, ann_id)
            number = 1 + self.names.index(category)
            things.append((int(mask.sum()), number, mask_to_size(mask, self.preprocessing)))
        return things


class ObjectDataset(CategoryDataset):
    """The same pictures with each object by itself, and a sentence of theirs.

    An item: image (3, H, W) float32; token_ids and word_mask (L,) of one of its sentences;
    instances (n, H, W) float32 in {0, 1}, those with a pixel left at this size, and their
    categories (n,) int64, from 1.
    """

    def __init__(self, *args: Any, tokenizer: TextTokenizer, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokenizer = tokenizer

    def __getitem__(self, index: int) -> dict[str, Any]:
        things = [(number, mask) for _, number, mask in self._things(index) if mask.any()]
        instances = np.array([mask for _, mask in things], dtype=np.float32)
        ids, words = self.tokenizer([self._pictures[index].sentences[0]])
        return {
            "image": self._image(index),
            "token_ids": torch.from_numpy(ids[0]),
            "word_mask": torch.from_numpy(words[0]),
            "instances": torch.from_numpy(instances.reshape(-1, *self.preprocessing.size)),
            "categories": torch.tensor([number for number, _ in things], dtype=torch.int64),
        }
