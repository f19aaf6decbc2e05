"""Checks a whole dataset: structure, masks, pictures, and the published counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfanet.data.refer import ReferFiles
from tfanet.data.safe_pickle import DataError
from tfanet.progress import Progress
from tfanet.runtime.picture import ImageError, open_picture

__all__ = ["PUBLISHED_COUNTS", "check"]

# (dataset, split_by): {split: (sentences, refs)}, None where no number is published
PUBLISHED_COUNTS: dict[tuple[str, str], dict[str, tuple[int | None, int | None]]] = {
    ("refcoco", "unc"): {
        "train": (120_624, 42_404),
        "val": (10_834, 3_811),
        "testA": (5_657, 1_975),
        "testB": (5_095, 1_810),
    },
    ("refcoco", "google"): {
        "train": (None, 40_000),
        "val": (None, 5_000),
        "test": (None, 5_000),
    },
    ("refcoco+", "unc"): {
        "train": (120_191, 42_278),
        "val": (10_758, 3_805),
        "testA": (5_726, 1_975),
        "testB": (4_889, 1_798),
    },
    ("refcocog", "umd"): {"train": (80_512, 42_226), "val": (4_896, 2_573), "test": (9_602, 5_023)},
    ("refcocog", "google"): {"train": (85_474, 44_822), "val": (9_536, 5_000)},
}


def _picture_fault(path: Path, width: int, height: int) -> str | None:
    try:
        with open_picture(path) as picture:
            size = picture.size
    except ImageError as error:
        return f"picture {error}"
    if size != (width, height):
        return f"picture {path} is {size[0]}x{size[1]}, instances.json says {width}x{height}"
    return None


def check(
    root: str | Path,
    dataset: str | None = None,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read every ref, decode every mask, look at every picture, compare the counts.

    Returns {"dataset", "split_by", "splits": {split: {"refs", "sentences", "published_refs",
    "published_sentences"}}, "pictures", "warnings"}: the published numbers are None where there are
    none, a difference is a warning, since subsets are legitimate; so are refs without sentences,
    which are left out. Raises DataError with the first structural fault and the number of further
    ones.
    """
    files = ReferFiles(Path(root), dataset, split_by, images)
    counts = {split: [0, 0] for split in files.splits}
    faults: list[str] = []
    seen_refs: set[int] = set()
    pictures: set[Path] = set()
    silent = 0
    for index in range(len(files.entries)):
        try:
            ref = files.make_ref(index)
            if ref.ref_id in seen_refs:
                raise DataError(f"{files.path}: two entries have the ref_id {ref.ref_id}")
            seen_refs.add(ref.ref_id)
            if not ref.sentences:
                silent += 1
                continue
            counts[ref.split][0] += 1
            counts[ref.split][1] += len(ref.sentences)
            ref.mask()
            if ref.image_path not in pictures:
                pictures.add(ref.image_path)
                fault = _picture_fault(ref.image_path, ref.width, ref.height)
                if fault:
                    raise DataError(fault)
        except DataError as error:
            faults.append(str(error))
        finally:
            if progress is not None:
                progress("checking refs", index + 1, len(files.entries))
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise DataError(faults[0] + more)

    published = PUBLISHED_COUNTS.get((files.dataset, files.split_by), {})
    splits: dict[str, dict[str, int | None]] = {}
    warnings = [f"{silent:,} refs have no sentence, and are left out"] if silent else []
    for split, (refs, sentences) in counts.items():
        expected = published.get(split, (None, None))
        splits[split] = {
            "refs": refs,
            "sentences": sentences,
            "published_refs": expected[1],
            "published_sentences": expected[0],
        }
        for unit, found, wanted in zip(
            ("sentences", "refs"), (sentences, refs), expected, strict=True
        ):
            if wanted is not None and found != wanted:
                warnings.append(
                    f"{files.dataset} {split} has {found:,} {unit}, published are {wanted:,} "
                    f"({found - wanted:+,})"
                )
    return {
        "dataset": files.dataset,
        "split_by": files.split_by,
        "splits": splits,
        "pictures": len(pictures),
        "warnings": warnings,
    }
