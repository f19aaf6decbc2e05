"""What `tfanet predict` does with its sources: predictions, in order, into files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tfanet.cli.coco import CocoFiles
from tfanet.cli.places import Places
from tfanet.cli.sources import Source
from tfanet.errors import InputError, plain
from tfanet.progress import Progress
from tfanet.runtime import ImageError, Prediction, Predictor
from tfanet.runtime.bundle.write import new_file
from tfanet.runtime.overlay import save_mask

__all__ = ["Work"]

# The number of a source, of a video that of its frame, and a prediction for each sentence.
Found = tuple[int, int | None, list[Prediction]]


@dataclass
class Work:
    """One call of the verb, its bundle open."""

    predictor: Predictor
    places: Places
    threshold: float | None
    coco: CocoFiles = field(default_factory=CocoFiles)
    failed: list[str] = field(default_factory=list)
    masks: int = 0
    warn: bool = False  # of each source that fails; of a single one the error says it

    def one(self, source: Source) -> tuple[Any, str]:
        """One picture, one sentence: all about its prediction."""
        prediction = self.predictor(source.path, source.texts[0], threshold=self.threshold)
        self._write(prediction, self.places.output, self.places.overlay)
        self.coco.add(source.path.name, _ids([source])[0], [prediction])
        self._write_coco()
        return _about(prediction, self.places, self.predictor.info())

    def several(self, sources: Sequence[Source], show: Progress) -> tuple[Any, str]:
        """All sources, in order; raises InputError at the end where any could not be used."""
        for folder in filter(None, (self.places.output, self.places.overlay)):
            folder.mkdir(parents=True, exist_ok=True)
        videos = any(source.is_video for source in sources)
        ids = _ids(sources)
        images, self.warn = 0, len(sources) > 1
        for number, frame, predictions in self._predictions(sources):
            source, name = sources[number], self.places.names[number]
            file_name = source.path.name
            if frame is not None:
                name, file_name = f"{name}.{frame:06}", f"{name}.{frame:06}.png"
            for place, prediction in enumerate(predictions, 1):
                ending = f".{place}.png" if len(predictions) > 1 else ".png"
                self._write(
                    prediction,
                    self.places.output and self.places.output / (name + ending),
                    self.places.overlay and self.places.overlay / (name + ending),
                )
            images += 1
            image_id = images if videos else ids[number]
            self.coco.add(file_name, image_id, predictions)
            show(file_name, number + (frame is None), len(sources))
        self._write_coco()
        if self.failed:
            rest = f"; the other {images} pictures are done" if images else ""
            raise InputError(
                self.failed[0] + rest
                if len(self.failed) == 1
                else f"{len(self.failed)} of {len(sources)} could not be used, the first: "
                f"{self.failed[0]}{rest}"
            )
        written = {
            name: str(path)
            for name in ("output", "overlay", "results", "labels")
            if (path := getattr(self.places, name))
        }
        result = {
            **written,
            "pictures": images,
            "masks": self.masks,
            "found": len(self.coco.results),
            "backend": self.predictor.info(),
        }
        text = f"{images} pictures, {self.masks} masks, {len(self.coco.results)} of them not empty"
        return result, "\n".join([text, *(f"{name}: {path}" for name, path in written.items())])

    def _predictions(self, sources: Sequence[Source]) -> Iterator[Found]:
        def kind(one: tuple[int, Source]) -> tuple[Any, ...]:
            """Pictures with the same sentences run together; a video by itself."""
            number, source = one
            return source.texts, number if source.is_video else None

        for _, members in groupby(enumerate(sources), kind):
            group = list(members)
            yield from self._video(*group[0]) if group[0][1].is_video else self._pictures(group)

    def _video(self, number: int, video: Source) -> Iterator[Found]:
        try:
            frames = self.predictor.stream(video.path, video.texts, threshold=self.threshold)
            for frame, found in enumerate(frames):
                yield number, frame, found
        except ImageError as error:
            self._fail(error)

    def _pictures(self, group: list[tuple[int, Source]]) -> Iterator[Found]:
        lost: set[int] = set()

        def leave_out(index: int, error: ImageError) -> None:
            lost.add(index)
            # Its number is of no interest: the error's cause begins with its path.
            self._fail(error.__cause__ or error)

        found = self.predictor.stream(
            [source.path for _, source in group],
            group[0][1].texts,
            threshold=self.threshold,
            on_error=leave_out,
        )
        index = 0
        for predictions in found:
            while index in lost:  # it is told before what comes after it
                index += 1
            yield group[index][0], None, predictions
            index += 1

    def _fail(self, error: BaseException) -> None:
        self.failed.append(str(error))
        if self.warn:
            warnings.warn(str(error), stacklevel=1)

    def _write(self, prediction: Prediction, mask: Path | None, overlay: Path | None) -> None:
        self.masks += 1
        if mask is not None:
            save_mask(prediction.mask, mask)
        if overlay is not None:
            prediction.save(overlay)

    def _write_coco(self) -> None:
        for path, write in (
            (self.places.results, self.coco.write_results),
            (self.places.labels, self.coco.write_labels),
        ):
            if path is not None:
                with new_file(path, overwrite=self.places.overwrite) as part:
                    write(part)


def _ids(sources: Sequence[Source]) -> list[int]:
    """Of pictures in COCO's files: what lines say, else the numbers that all files are called."""
    given = [source.image_id for source in sources]
    ids = [one for one in given if one is not None]
    if len(ids) < len(given):
        numbers = [source.path.stem for source in sources]
        named = all(number.isascii() and number.isdigit() for number in numbers)
        ids = list(map(int, numbers)) if named else []
    if len(set(ids)) < len(sources):
        return list(range(1, len(sources) + 1))
    return ids


def _about(
    prediction: Prediction, places: Places, backend: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    instances: list[dict[str, Any]] | None = None
    if prediction.instances is not None:
        instances = [
            {
                "relevance": one.relevance,
                "pixels": one.area,
                "words": one.words and [word._asdict() for word in one.words],
            }
            for one in prediction.instances
        ]
    mask, overlay = (path and str(path) for path in (places.output, places.overlay))
    result: dict[str, Any] = {
        "mask": mask,
        "overlay": overlay,
        "pixels": prediction.area,
        "share": float(prediction.mask.mean()),
        "score": float(prediction.score),
        "no_target": prediction.no_target,
        "instances": instances,
        "timings_ms": prediction.timings,
        "backend": backend,
    }
    first = next(p for p in (mask, overlay, places.results, places.labels) if p)
    timings = ", ".join(f"{name} {value:.1f} ms" for name, value in prediction.timings.items())
    text = (
        f"{first}: {result['pixels']} pixels ({result['share']:.1%} of the picture), "
        f"score {result['score']:.2f}\n{timings} on {backend['engine'] or backend['backend']}"
    )
    if prediction.no_target is not None:
        text += f"\nthe sentence means nothing in the picture: {prediction.no_target:.0%} likely"
    for one in instances or ():
        text += f"\nan object of {one['pixels']} pixels, {one['relevance']:.0%} relevant"
        if one["words"]:
            text += f", aligned with {_strongest(one['words'])}"
    return result, text


def _strongest(words: list[dict[str, Any]]) -> str:
    """The words with an even share or more of what all of them have, most first."""
    even = sum(word["share"] for word in words) / len(words)
    strongest = sorted((word for word in words if word["share"] >= even), key=lambda w: -w["share"])
    return ", ".join(f"'{plain(word['text'])}' ({word['share']:.0%})" for word in strongest)
