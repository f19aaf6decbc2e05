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

__all__ = ["CategoryDataset"]


class CategoryDataset(Dataset[dict[str, torch.Tensor]]):
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

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ref = self._pictures[index]
        things = []
        for ann_id, category, outline in self._objects[self._ids[index]]:
            mask = segmentation_mask(outline, ref.height, ref.width, ann_id)
            things.append((int(mask.sum()), category, mask_to_size(mask, self.preprocessing)))
        seen = np.zeros(self.preprocessing.size, dtype=np.int64)
        for _, category, mask in sorted(things, key=lambda thing: -thing[0]):
            seen[mask] = 1 + self.names.index(category)
        image = picture_to_tensor(load_image(ref.image_path), self.preprocessing)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "categories": torch.from_numpy(seen),
        }
