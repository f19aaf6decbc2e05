"""Predictions in COCO's two forms: results to be evaluated, and a dataset with labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfanet.runtime import Instance, Prediction

__all__ = ["CocoFiles"]


class CocoFiles:
    """Collects predictions; an instance, or a whole mask where there are none, is one entry.

    Categories are the sentences, numbered from 1 as they come.
    """

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: dict[str, int] = {}

    def add(self, file_name: str, image_id: int, predictions: Sequence[Prediction]) -> None:
        """The predictions of a picture, one for each sentence."""
        height, width = predictions[0].mask.shape
        self.images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        for prediction in predictions:
            number = self.categories.setdefault(prediction.text, len(self.categories) + 1)
            if prediction.instances is None:
                self._add_region(image_id, number, prediction, prediction.score)
            else:
                for one in prediction.instances:
                    self._add_region(image_id, number, one, one.relevance)

    def _add_region(
        self, image_id: int, category: int, region: Prediction | Instance, score: float
    ) -> None:
        box = region.box
        if box is None:
            return
        x, y, right, lower = box
        shared = {
            "image_id": image_id,
            "category_id": category,
            "bbox": [x, y, right - x, lower - y],
        }
        self.results.append({**shared, "segmentation": region.rle(), "score": float(score)})
        self.annotations.append(
            {
                **shared,
                "id": len(self.annotations) + 1,
                "segmentation": [polygon.ravel().tolist() for polygon in region.polygons()],
                "area": region.area,
                "iscrowd": 0,
                "score": float(score),
            }
        )

    def write_results(self, path: Path) -> None:
        """A list that `COCO.loadRes` of pycocotools reads."""
        path.write_text(json.dumps(self.results, allow_nan=False), encoding="utf-8")

    def write_labels(self, path: Path) -> None:
        """A dataset that pycocotools, supervision and FiftyOne read."""
        categories = [{"id": number, "name": text} for text, number in self.categories.items()]
        data = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        path.write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
