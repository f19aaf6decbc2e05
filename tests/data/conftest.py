"""Small datasets in the REFER layout, written by hand, and ways to damage them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def sentence(number: int, text: str) -> dict[str, Any]:
    return {"sent_id": number, "raw": text, "sent": text, "tokens": text.split()}


@pytest.fixture
def small() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two pictures, three annotations (polygon, two polygons, RLE), three refs."""
    # 20 high, column by column: ones are rows 15 to 19 of column 1 and rows 0 to 4 of column 2.
    counts = [35, 10, 155]
    instances = {
        "images": [
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 40, "width": 60},
            {"id": 25, "file_name": "COCO_train2014_000000000025.jpg", "height": 20, "width": 10},
        ],
        "annotations": [
            {
                "id": 100,
                "image_id": 9,
                "category_id": 1,
                "area": 200,
                "bbox": [10, 5, 20, 10],
                "iscrowd": 0,
                "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]],
            },
            {
                "id": 101,
                "image_id": 9,
                "category_id": 2,
                "area": 32,
                "bbox": [40, 20, 18, 4],
                "iscrowd": 0,
                # The third polygon has two points only; the others stand.
                "segmentation": [
                    [40, 20, 44, 20, 44, 24, 40, 24],
                    [54, 20, 58, 20, 58, 24, 54, 24],
                    [1, 1, 9, 9],
                ],
            },
            {
                "id": 102,
                "image_id": 25,
                "category_id": 1,
                "area": 10,
                "bbox": [1, 0, 2, 20],
                "iscrowd": 1,
                "segmentation": {"size": [20, 10], "counts": counts},
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }
    refs = [
        {
            "ref_id": n,
            "ann_id": ann,
            "image_id": image,
            "file_name": f"COCO_train2014_{image:012d}_{n}.jpg",
            "category_id": 1,
            "split": split,
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [sentence(2 * n, f"thing {n}"), sentence(2 * n + 1, f"that {n}")],
        }
        for n, ann, image, split in ((0, 100, 9, "train"), (1, 101, 9, "val"), (2, 102, 25, "val"))
    ]
    return refs, instances


Writer = Callable[..., Path]


@pytest.fixture
def write_refer(tmp_path: Path) -> Writer:
    """write(refs, instances, dataset=, name=, pictures=): the files under tmp_path."""

    def write(
        refs: Any,
        instances: Any,
        dataset: str = "refcoco",
        name: str = "refs(unc).p",
        pictures: str = "images/train2014",
    ) -> Path:
        folder = tmp_path / dataset
        folder.mkdir(exist_ok=True)
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(refs))
        else:
            (folder / name).write_bytes(pickle.dumps(refs, protocol=2))
        (folder / "instances.json").write_text(json.dumps(instances))
        (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
        for image in instances.get("images", []):
            pixels = np.zeros((max(1, image["height"]), max(1, image["width"]), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / pictures / image["file_name"])
        return tmp_path

    return write
