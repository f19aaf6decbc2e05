"""Where `tfanet predict` writes: all of it is looked at before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from tfanet.cli.sources import Source, file_names
from tfanet.errors import InputError
from tfanet.runtime.bundle.write import check_folder, check_output
from tfanet.runtime.overlay import check_mask_name

__all__ = ["Places"]


@dataclass
class Places:
    """Where masks and overlays go, files of one picture or folders; None where they do not."""

    output: Path | None
    overlay: Path | None
    results: Path | None
    labels: Path | None
    overwrite: bool
    names: list[str] = field(default_factory=list)  # of what is written of each source

    @classmethod
    def check(
        cls,
        given: Mapping[str, str | None],
        sources: Sequence[Source],
        *,
        single: bool,
        overwrite: bool,
    ) -> Places:
        """The places of the options `given`; masks and overlays of a `single` one are files.

        Raises:
            InputError: where something cannot be written, or a file would be lost.
        """
        paths = {option: Path(name) if name else None for option, name in given.items()}
        places = cls(
            paths["output"], paths["overlay"], paths["results"], paths["labels"], overwrite
        )
        taken = {source.path.resolve() for source in sources}
        if not single:
            places.names = file_names(sources)
        for option, path in paths.items():
            if path is None:
                continue
            place = path.absolute().parent.resolve() / path.name
            if place in taken:
                raise InputError(
                    f"{path} is given twice: the result would be lost, name another place"
                )
            taken.add(place)
            if option in ("output", "overlay") and not single:
                check_folder(path)
                places.check_names(path, sources)
            else:
                if option == "output":
                    check_mask_name(path)
                check_output(path, overwrite=overwrite)
        return places

    def check_names(self, folder: Path, sources: Sequence[Source]) -> None:
        """Raises InputError where a file of the folder, an input among them, would be replaced."""
        inputs = {source.path.resolve() for source in sources}
        for source, name in zip(sources, self.names, strict=True):
            several = source.is_video or len(source.texts) > 1
            for path in sorted(
                folder.glob(f"{escape(name)}.*png" if several else f"{escape(name)}.png")
            ):
                if path.resolve() in inputs:
                    raise InputError(f"{path} is a picture to segment: name another folder")
                if not self.overwrite:
                    raise InputError(f"{path} exists: name another folder, or give --overwrite")
