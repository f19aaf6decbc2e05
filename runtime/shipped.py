"""What comes with the package and needs nothing else: ready bundles, and a picture to try them on.

tfanet/assets/README.md says how they were made.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tfanet.errors import InputError

__all__ = ["SHIPPED", "shipped_bundle", "shipped_names", "shipped_picture"]

SHIPPED = (Path(str(resources.files("tfanet"))) / "assets").resolve()


def shipped_names() -> list[str]:
    """The names of the shipped bundles, in order."""
    return sorted(manifest.parent.name for manifest in SHIPPED.glob("*/manifest.json"))


def shipped_bundle(name: str) -> Path:
    """The directory of a shipped bundle, such as that of tfanet-tiny.

    Raises:
        InputError: naming those that there are, where there is none of this name.
    """
    names = shipped_names()
    if name not in names:
        raise InputError(
            f"no bundle {name!r:.80} is shipped with tfanet: choose from {', '.join(names)}, or "
            "make one with `tfanet export`"
        )
    return SHIPPED / name


def shipped_picture() -> Path:
    """A picture of six shapes, whose sentences tfanet-tiny has learnt to understand."""
    return SHIPPED / "shapes.png"
