"""What trainings are told: where data lies, where results go, and the options of `pretrain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tfanet.errors import InputError, check_choice
from tfanet.runtime.bundle.write import check_folder

__all__ = ["PARTS", "CommonOptions", "PretrainOptions", "check_positive"]

PARTS = ("backbone", "queries")


@dataclass(frozen=True)
class CommonOptions:
    """Data as in `ReferDataset`, and `output`, the folder for checkpoints.

    `seed` decides the fresh weights and the order of samples; `workers` are processes that load
    pictures. With `overwrite` an earlier training's files are replaced, by the first that is saved.
    """

    data: str | Path
    output: str | Path
    dataset: str | None = None
    split: str = "train"
    split_by: str | None = None
    images: str | Path | None = None
    seed: int = 0
    workers: int = 0
    overwrite: bool = False

    def check_output(self, *files: str, instead: str = "") -> Path:
        """The output folder, in which none of these files is, or `overwrite` says so.

        Raises InputError where one is, `instead` being what else to do; StorageError where nothing
        may be written.
        """
        folder = check_folder(self.output)
        there = [name for name in files if (folder / name).exists()]
        if there and not self.overwrite:
            raise InputError(
                f"{folder} holds {there[0]}: name another folder, {instead}or give --overwrite "
                "(overwrite=True)"
            )
        return folder


@dataclass(frozen=True)
class PretrainOptions(CommonOptions):
    """Arguments of `pretrain`: AdamW with a cosine schedule; `output` gets `model.safetensors`.

    `part` is what is taught: the "backbone", or the "queries" of a family that has some, with the
    backbone at a lower rate. `init` is a checkpoint to start from. `lr` is the largest rate;
    `batch` pictures make a step.
    """

    preset: str = "crossvlt-tiny"
    part: str = "backbone"
    init: str | Path | None = None
    steps: int = 2500
    batch: int = 12
    lr: float = 3e-3

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, batch=self.batch, lr=self.lr)
        check_choice("part", self.part, PARTS)


def check_positive(**values: float | None) -> None:
    """Raises InputError for what is given and not a number above 0."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: it must be more than 0")
